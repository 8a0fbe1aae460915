//! HTTP: listeners, the pipeline every request takes, and what handlers speak. It knows no primitive.

mod accept;
mod budget;
mod call;
mod connection;
pub mod headers;
pub mod json;
pub mod listener;
pub mod ndjson;
pub mod observe;
mod open_streams;
pub mod openapi;
pub mod path;
pub mod pipeline;
pub mod problem;
mod protocol;
mod query;
mod refusal;
mod reply;
mod route;
pub mod sse;
mod stream;
pub mod table;
pub mod trace;

pub use accept::StreamForm;
pub use budget::{Load, LoadLimits};
pub use call::{Call, Deadline, Params};
pub use connection::{ConnectionState, Patience};
pub use problem::{FieldError, Problem};
pub use query::Query;
pub use reply::{Reply, ReplyBody};
pub use route::{
    Answers, Content, Docs, Handle, Handler, HandlerFuture, Parameter, ReplyDocs, Route, handler,
};
pub use sse::{SseEvent, write_comment};
pub use stream::Broken;

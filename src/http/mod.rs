//! HTTP: listeners, the pipeline every request takes, and what handlers speak. It knows no primitive.

mod call;
pub mod json;
pub mod problem;
mod query;
mod reply;
mod route;

pub use call::{Call, Deadline, Params};
pub use problem::{FieldError, Problem};
pub use query::Query;
pub use reply::{Reply, ReplyBody};
pub use route::{Content, Docs, Handler, HandlerFuture, Parameter, ReplyDocs, Route, handler};

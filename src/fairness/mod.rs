//! What keeps one tenant from having everything: lines that take turns, a part of the room, a rate. Pure: no clock, no I/O.

pub mod gcra;
mod lines;
mod part;
mod room;

pub use lines::Lines;
pub use part::Part;
pub use room::{Bounds, NoRoom, Place, Room};

//! What every backend promises. A backend runs it in one line.

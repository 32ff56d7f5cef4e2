//! What must hold before the gate opens, asked of the services themselves. Called by `deploy` and by the commands
//! that look.

pub mod flags;
pub mod smoke;
pub mod target;

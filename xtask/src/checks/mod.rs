//! What must hold before the gate opens. The services themselves are asked. Called by `deploy` and by the
//! commands that only look.

pub mod ask;
pub mod flags;
pub mod smoke;
pub mod target;

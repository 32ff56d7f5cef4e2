//! What is deployed and rolled back: its manifest, its env file, its services as they are seen, its places on disk,
//! and the records that everybody must know. Nothing here runs anything.

pub mod contract;
pub mod endpoint;
pub mod envfile;
pub mod escalation;
pub mod hold;
pub mod ledger;
pub mod model;
pub mod pilot;
pub mod ports;
pub mod state_dir;

//! What is deployed and rolled back, as values: the manifest, the env file, the services as observed, the
//! paths in the state folder, and the records that every command must know. Nothing here runs anything.

pub mod call;
pub mod check;
pub mod cover;
pub mod definition;
pub mod endpoint;
pub mod envfile;
pub mod escalation;
pub mod gate_rule;
pub mod gone;
pub mod hiding;
pub mod hold;
pub mod judge;
pub mod layout;
pub mod lease;
pub mod ledger;
pub mod manifest;
pub mod model;
pub mod names;
pub mod pilot;
pub mod ports;
pub mod shared;
pub mod shelf;
pub mod state_dir;

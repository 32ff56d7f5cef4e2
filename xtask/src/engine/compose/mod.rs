//! The engine `compose`: the docker client with Compose 2 (`docker compose`) or Compose 1 (`docker-compose`).
//! One file for each role of an engine, and one shared client.

pub mod api;
pub mod client;
mod config;
pub mod daemon;
pub mod data;
#[cfg(any(test, fuzzing))]
pub mod hostile;
pub mod images;
mod inspect;
pub mod line;
mod parts;
pub mod pin;
pub mod probes;
mod provide;
mod recorded;
mod runtime;
mod shelf;
mod state;

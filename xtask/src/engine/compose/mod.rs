//! The engine `compose`: Docker through its client and Compose 2 (`docker compose`) or Compose 1
//! (`docker-compose`). One file for each role of an engine, over one client.

pub mod client;
mod data;
mod images;
mod inspect;
mod runtime;
mod state;

//! The engine `swarm`: a stack on the nodes of a Docker Swarm, through its managers. One file for each role of an engine.
//! `spec` says what the services of a Compose stack are on a Swarm, `state` what the Swarm reports; both are pure. `api`
//! asks a manager, `cluster` knows the nodes and the way to the Docker engine of each. What Compose alone understands
//! (its files, building) is asked from the engine `compose` of this client. Commands and terms of a Swarm are here and
//! nowhere else.

mod apply;
pub mod by_hand;
mod change;
pub mod cluster;
pub mod data;
mod failure;
#[cfg(any(test, fuzzing))]
pub mod hostile;
mod images;
mod inspect;
mod names;
mod node;
mod on_nodes;
mod placement;
mod registry;
mod runtime;
mod shelf;
mod spec;
mod state;
mod supply;
mod waiting;
mod waves;

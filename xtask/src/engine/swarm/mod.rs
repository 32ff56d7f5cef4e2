//! The engine `swarm`: a Docker Swarm. `spec` says what a stack is there; nothing here runs yet.

mod spec;

//! End to end: real commands on real pilots, each test with a project, ports and state of its own.
//! `pilot.rs` is the builder, `http.rs` its requests; every other file is about one part of the product.

// A helper of a test that panics has failed the test: that is what it is for.
#![allow(clippy::unwrap_used, clippy::panic)]

mod adopt;
mod alive;
mod all_on_one;
mod archives;
mod attacked;
mod bad_input;
mod browser;
mod canary;
mod checks;
mod contract;
mod cut_off;
mod daemon;
mod docs;
mod drill;
mod envfile;
mod events;
mod ground;
mod holds;
mod host;
mod http;
mod images;
mod in_docker;
mod ledger;
mod look;
mod migration;
mod model;
mod notes;
mod notify;
mod observability;
mod operator;
mod pilot;
mod pins;
mod planned;
mod processes;
mod promises;
mod refused;
mod releases;
mod remote;
mod report;
mod resume;
mod rollback;
mod runbook;
mod scenarios;
mod schema;
mod secrets;
mod services;
mod shell;
mod stopped;
mod terminal;
mod tidy;
mod truths;
mod unchanged;

//! Releases: restore points that never change and that need nothing else. What a release is (`description`,
//! `form`), what differs between two (`changes`), what it is made from (`source`), the store on disk (`store`, `images`,
//! `blobs`), retention, what every client of the engine knows of them (`shared`), and export to another host. Nothing here deploys.

pub mod blobs;
pub mod changes;
pub mod description;
pub mod export;
pub mod form;
pub mod images;
mod in_docker;
pub mod retention;
mod shared;
pub mod source;
pub mod store;

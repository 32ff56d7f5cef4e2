//! Releases: immutable, self-contained restore points. What one is (`description`, `form`), what it is made from
//! (`source`), the store of them on disk, retention, and carrying one to another host. Nothing is deployed here.

pub mod description;
pub mod export;
pub mod form;
pub mod retention;
pub mod source;
pub mod store;

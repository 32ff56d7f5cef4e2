//! The ground: the lock, files, requests, names.

//! Variables by which the pilot's own programs and compose file are configured: the one place that knows them. They are
//! needed where Compose is not there to set them (`engine/process`), and for what is built by `cargo xtask`. Values only.

use std::collections::BTreeMap;

/// The service that an image is for.
pub const ROLE: &str = "SCENARIO_ROLE";
/// The version that an image reports.
pub const VERSION: &str = "SCENARIO_VERSION";
/// The fault for a drill.
pub const FAULT: &str = "SCENARIO_FAULT";
/// The project that a service belongs to.
pub const OWNER: &str = "SCENARIO_PROJECT";
/// The address that a service listens on.
pub const LISTEN: &str = "SCENARIO_LISTEN";
/// The folder of its stored data.
pub const DATA: &str = "SCENARIO_DATA";

/// How the manifest loads the scenario: through the gateway, which gives it to one engine.
pub const SEED_ONE: &str = "POST gateway/admin/seed";
/// The same at each engine, where there are several.
pub const SEED_EACH: &str = "POST engine/scenarios";

/// The variable with the address of another service.
pub fn url_of(service: &str) -> String {
    format!("SCENARIO_{}_URL", service.to_uppercase())
}

/// The version that is built into the image of a service; none if the image is not one of `cargo xtask`.
pub fn version_in(env: &BTreeMap<String, String>) -> Option<&String> {
    env.get(VERSION)
}

/// A setting that may have any number: a stack that is tried out gets another one.
pub const HARMLESS: &str = "QUOTA_PER_RUN";

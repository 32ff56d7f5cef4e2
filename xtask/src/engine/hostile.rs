//! Tests: what Docker and Compose say, which may be anything; the same bytes are given to every reader. The readers are
//! private to the engines, so each engine has its own part. Called by `operations/hostile`.

use crate::base::secrets;
use crate::engine::{compose, swarm};
use serde_json::Value;

/// Has these bytes read by everything that reads what Docker or Compose says.
pub fn body(bytes: &[u8]) {
    swarm::hostile::answers(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    compose::hostile::config(text);
    let Ok(mut value) = serde_json::from_str::<Value>(text) else { return };
    without_secrets(&mut value);
    compose::hostile::containers(&value);
    swarm::hostile::reported(&value);
    swarm::hostile::planned(&value);
}

/// Leaves out the settings that look secret: a reader registers them for the whole process, where they would be masked in
/// what other tests look at.
fn without_secrets(value: &mut Value) {
    match value {
        Value::Array(all) => {
            let is_secret = |one: &Value| {
                let setting = one.as_str().and_then(|text| text.split_once('='));
                setting.is_some_and(|(name, value)| secrets::hides(name, value))
            };
            all.retain(|one| !is_secret(one));
            all.iter_mut().for_each(without_secrets);
        }
        Value::Object(all) => all.values_mut().for_each(without_secrets),
        _ => {}
    }
}

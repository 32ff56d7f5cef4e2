//! Changes the spec of one service that is there, and notices if somebody else has changed it. Called by the files of `swarm`
//! that bring services to a spec.

use crate::engine::compose::api::{Line, status_of};
use crate::engine::swarm::failure::classify;
use crate::engine::swarm::spec;
use crate::engine::swarm::state::id;
use anyhow::{Result, bail};
use serde_json::Value;

/// How often a change is tried again because the Swarm itself has changed the service in between: it writes there how far
/// an update is.
const CHANGES: usize = 10;

/// A spec that replaces every task of a service, also those of the same spec.
pub fn forced(mut spec: Value, now: &Value) -> Value {
    let last = now.pointer("/Spec/TaskTemplate/ForceUpdate").and_then(Value::as_u64);
    spec["TaskTemplate"]["ForceUpdate"] = (last.unwrap_or(0) + 1).into();
    spec
}

/// Gives a service this spec. The Swarm writes there by itself how far an update is, so a service of another version is
/// read anew; if its spec is not what was read before, somebody else has changed it.
pub fn update(line: &mut Line<'_>, service: &Value, spec: &Value) -> Result<()> {
    let path = format!("/services/{}", id(service));
    let mut version = service.pointer("/Version/Index").and_then(Value::as_u64).unwrap_or(0);
    for _ in 0..CHANGES {
        match line.post(&format!("{path}/update?version={version}"), spec) {
            Err(error) if format!("{error:#}").contains("out of sequence") => {
                let now = line.get(&path)?;
                // The answer of a manager that was lost may be missing, and what it was told be done.
                if spec::digest(&now["Spec"]) == spec::digest(spec) {
                    return Ok(());
                }
                if now["Spec"] != service["Spec"] {
                    let name = spec["Name"].as_str().unwrap_or("a service");
                    bail!(
                        "somebody else has changed {name} meanwhile: docker service inspect {name} shows it"
                    );
                }
                version = now.pointer("/Version/Index").and_then(Value::as_u64).unwrap_or(0);
            }
            Err(error) if status_of(&error) == Some(404) => return Err(error.context("the service is gone")),
            other => return other.map(drop).map_err(classify),
        }
    }
    bail!("the Swarm has changed the service {CHANGES} times while it was updated")
}

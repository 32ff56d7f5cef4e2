//! Changes the spec of one service that is there, and notices if somebody else has changed it. Called by the files of `swarm`
//! that bring services to a spec.

use crate::engine::compose::line::{Line, status_of};
use crate::engine::swarm::failure::classify;
use crate::engine::swarm::spec;
use crate::engine::swarm::state::id;
use anyhow::{Result, bail, ensure};
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

/// Removes a service. It is an error if somebody else has changed it since it was read.
pub fn remove(line: &mut Line<'_>, service: &Value) -> Result<()> {
    let path = format!("/services/{}", id(service));
    match line.get(&path) {
        Ok(now) => unchanged(service, &now)?,
        Err(error) if status_of(&error) == Some(404) => return Ok(()),
        Err(error) => return Err(error),
    }
    line.delete(&path)
}

/// It is an error if a service, as it is now, has another spec than before.
fn unchanged(before: &Value, now: &Value) -> Result<()> {
    let name = before.pointer("/Spec/Name").and_then(Value::as_str).unwrap_or("a service");
    ensure!(
        now["Spec"] == before["Spec"],
        "somebody else has changed {name} meanwhile: docker service inspect {name} shows it"
    );
    Ok(())
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
                unchanged(service, &now)?;
                version = now.pointer("/Version/Index").and_then(Value::as_u64).unwrap_or(0);
            }
            Err(error) if status_of(&error) == Some(404) => return Err(error.context("the service is gone")),
            other => return other.map(drop).map_err(classify),
        }
    }
    bail!("the Swarm has changed the service {CHANGES} times while it was updated")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_somebody_else_has_changed_is_not_removed() {
        let before = json!({"ID": "s1", "Spec": {"Name": "shop_web", "Labels": {"a": "1"}}});
        let remove = |now: &Value| {
            let now = now.to_string();
            let answers = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{now}HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                now.len()
            );
            let (mut sent, mut from) = (Vec::new(), answers.as_bytes());
            let removed = remove(&mut Line::new(&mut sent, &mut from, ""), &before);
            (removed, String::from_utf8(sent).unwrap().contains("DELETE /services/s1"))
        };
        let (removed, is_sent) = remove(&before);
        assert!(removed.is_ok() && is_sent);
        let mut other = before.clone();
        other["Spec"]["Labels"]["a"] = "2".into();
        let (removed, is_sent) = remove(&other);
        let error = removed.unwrap_err().to_string();
        assert!(error.contains("somebody else has changed shop_web") && !is_sent, "{error}");
    }
}

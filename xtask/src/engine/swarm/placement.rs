//! On which nodes the tasks of a service may be: kept on the one that has its data, and off those of which nothing is known.
//! Pure. Called by `apply` and `images`.

use crate::engine::swarm::node::Node;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// What a constraint begins with that keeps tasks off a node, and one that keeps them on it.
const OFF: &str = "node.id!=";
const ON: &str = "node.id==";

fn constraints(spec: &Value) -> impl Iterator<Item = &str> {
    let all = spec.pointer("/TaskTemplate/Placement/Constraints").and_then(Value::as_array);
    all.into_iter().flatten().filter_map(Value::as_str)
}

/// The node that a spec keeps its tasks on.
pub fn pin(spec: &Value) -> Option<&str> {
    constraints(spec).find_map(|one| one.strip_prefix(ON))
}

/// The nodes that a spec keeps its tasks off.
pub fn off(spec: &Value) -> impl Iterator<Item = &str> {
    constraints(spec).filter_map(|one| one.strip_prefix(OFF))
}

/// Keeps the tasks of a service on the node that has its data, or off nodes that nothing is known of.
pub fn constrain(spec: &mut Value, pin: Option<&String>, barred: &[&Node]) {
    let own = match pin {
        Some(node) => vec![format!("{ON}{node}")],
        None => barred.iter().map(|node| format!("{OFF}{}", node.id)).collect(),
    };
    if own.is_empty() {
        return;
    }
    let placement = &mut spec["TaskTemplate"]["Placement"];
    if placement.is_null() {
        *placement = json!({});
    }
    let mut all: Vec<Value> = placement["Constraints"].as_array().cloned().unwrap_or_default();
    all.extend(own.into_iter().map(Value::String));
    placement["Constraints"] = all.into();
}

/// Lets tasks be put on these nodes again, if the stack itself does not keep them off (`wanted`). By swarmkit's `IsTaskDirty`
/// none is restarted for that; no test sees it.
pub fn let_on(spec: &mut Value, wanted: &Value, nodes: &BTreeSet<String>) {
    let own: BTreeSet<&str> = off(wanted).collect();
    let is_kept = |one: &Value| {
        let node = one.as_str().and_then(|one| one.strip_prefix(OFF));
        node.is_none_or(|node| own.contains(node) || !nodes.contains(node))
    };
    if let Some(Value::Array(all)) = spec.pointer_mut("/TaskTemplate/Placement/Constraints") {
        all.retain(is_kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::swarm::node::tests::node;

    #[test]
    fn tasks_are_kept_off_a_node_until_it_is_back_and_the_constraints_of_the_stack_stay() {
        let of = |all: &[&str]| json!({"TaskTemplate": {"Placement": {"Constraints": all}}});
        let wanted = of(&["node.labels.disk==ssd", "node.id!=a"]);
        let mut spec = wanted.clone();
        constrain(&mut spec, None, &[&node("b"), &node("c")]);
        assert_eq!(off(&spec).collect::<Vec<_>>(), ["a", "b", "c"]);
        let_on(&mut spec, &wanted, &["a".to_owned(), "b".to_owned()].into());
        assert_eq!(off(&spec).collect::<Vec<_>>(), ["a", "c"]);
        let_on(&mut spec, &wanted, &["c".to_owned()].into());
        assert_eq!(spec, wanted);
        // One that has its data on a node stays there.
        let mut spec = json!({});
        constrain(&mut spec, Some(&"a".to_owned()), &[&node("b")]);
        assert_eq!((pin(&spec), off(&spec).count()), (Some("a"), 0));
        let pinned = spec.clone();
        let_on(&mut spec, &json!({}), &["a".to_owned()].into());
        assert_eq!(spec, pinned);
    }
}

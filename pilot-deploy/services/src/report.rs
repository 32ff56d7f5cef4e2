//! The decision report of a scenario. Pure: the same scenario and seed give the same report.

use crate::seed::Scenario;
use crate::simulate::mix;
use serde_json::{Value, json};

/// The start of logical time for repeatable answers: 2025-01-01T00:00:00Z in Unix milliseconds.
pub const EPOCH_MS: u64 = 1_735_689_600_000;

/// Scores the options of `scenario` and recommends the best.
pub fn report(scenario: &Scenario, seed: u64) -> Value {
    let score = |id: &str| 40 + mix(id, seed, 0) % 60;
    let options: Vec<Value> = scenario
        .options
        .iter()
        .map(|o| json!({"id": o.id, "name": o.name, "score": score(&o.id), "description": o.description}))
        .collect();
    // With equal scores the first option wins, so that a tie is repeatable too.
    let best = scenario.options.iter().rev().max_by_key(|o| score(&o.id)).map(|o| o.id.as_str());
    let confidence = (50 + mix(&scenario.scenario_id, seed, 1) % 50) as f64 / 100.0;
    json!({
        "decision": {"title": scenario.title, "options": options},
        "recommendation": {"primary": best},
        "analysis": {"confidence": confidence},
        "meta": {"scenarioId": scenario.scenario_id, "seed": seed, "timestamp": EPOCH_MS + seed % 86_400_000},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_report_and_the_best_score_is_recommended() {
        let scenario: Scenario = serde_json::from_str(include_str!("../../seed/demo-scenario.json")).unwrap();
        let one = report(&scenario, 42);
        assert_eq!(one, report(&scenario, 42));
        assert_ne!(one, report(&scenario, 43));
        let options = one["decision"]["options"].as_array().unwrap();
        let best = options.iter().map(|o| o["score"].as_u64().unwrap()).max().unwrap();
        let primary = options.iter().find(|o| o["id"] == one["recommendation"]["primary"]).unwrap();
        assert_eq!(primary["score"].as_u64(), Some(best));
    }
}

//! A scenario, as in `seed/demo-scenario.json`, and the schema that it must fit. The engine stores scenarios.
//! `POST /admin/seed` refuses one that does not fit, with the reason.

use serde::{Deserialize, Serialize};

/// A decision, with its options.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scenario {
    /// Name in URLs: letters, digits, `-` and `_`, at most 64.
    pub scenario_id: String,
    /// Title of the report.
    pub title: String,
    /// What the decision is about.
    #[serde(default)]
    pub description: String,
    /// At least two options, each with a different id.
    pub options: Vec<ScenarioOption>,
}

/// One option of the decision.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScenarioOption {
    /// Id, unique within the scenario.
    pub id: String,
    /// Its name, for people.
    pub name: String,
    /// What it means.
    #[serde(default)]
    pub description: String,
}

impl Scenario {
    /// Checks what the types cannot express. The error names the field.
    pub fn check(&self) -> Result<(), String> {
        check_id("scenarioId", &self.scenario_id)?;
        if self.title.trim().is_empty() {
            return Err("title: must not be empty".into());
        }
        if self.options.len() < 2 {
            return Err(format!("options: at least 2, found {}", self.options.len()));
        }
        for (n, option) in self.options.iter().enumerate() {
            check_id(&format!("options[{n}].id"), &option.id)?;
            if option.name.trim().is_empty() {
                return Err(format!("options[{n}].name: must not be empty"));
            }
            if self.options[..n].iter().any(|other| other.id == option.id) {
                return Err(format!("options[{n}].id: {} is used twice", option.id));
            }
        }
        Ok(())
    }
}

/// The rule for ids, also for ids in queries.
pub fn check_id(field: &str, id: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !id.is_empty() && id.len() <= 64 && id.chars().all(fits) {
        return Ok(());
    }
    Err(format!("{field}: 1 to 64 letters, digits, - or _"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_seed_fits() {
        let text = include_str!("../../seed/demo-scenario.json");
        serde_json::from_str::<Scenario>(text).unwrap().check().unwrap();
    }

    #[test]
    fn what_does_not_fit_names_its_field() {
        let fault = |text: &str| {
            serde_json::from_str::<Scenario>(text)
                .map_err(|e| e.to_string())
                .and_then(|s| s.check())
                .unwrap_err()
        };
        let option = r#"{"id":"a","name":"A"}"#;
        assert!(fault("{}").contains("scenarioId"));
        assert!(
            fault(&format!(r#"{{"scenarioId":"x","title":"t","options":[{option}]}}"#))
                .contains("at least 2")
        );
        assert!(
            fault(&format!(r#"{{"scenarioId":"x","title":"t","options":[{option},{option}]}}"#))
                .contains("twice")
        );
        assert!(
            fault(&format!(r#"{{"scenarioId":"x/y","title":"t","options":[{option},{option}]}}"#))
                .contains("scenarioId")
        );
        assert!(
            fault(&format!(r#"{{"scenarioId":"x","title":"t","extra":1,"options":[{option}]}}"#))
                .contains("extra")
        );
    }
}

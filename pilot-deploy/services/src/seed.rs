//! A scenario as `seed/demo-scenario.json` has it, and the schema it must fit. The engine stores
//! these; `POST /admin/seed` refuses what does not fit with the reason.

use serde::{Deserialize, Serialize};

/// One decision to be supported, with its options.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scenario {
    /// Name in URLs: letters, digits, `-` and `_`, at most 64.
    pub scenario_id: String,
    /// Headline of the report.
    pub title: String,
    /// What the decision is about.
    #[serde(default)]
    pub description: String,
    /// At least two, with ids of their own.
    pub options: Vec<ScenarioOption>,
}

/// One way to decide.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScenarioOption {
    /// Name within the scenario.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What it means.
    #[serde(default)]
    pub description: String,
}

impl Scenario {
    /// What the types cannot say; the error names the field.
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
                return Err(format!("options[{n}].id: {} stands twice", option.id));
            }
        }
        Ok(())
    }
}

/// The rule for ids, used for those in queries too.
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

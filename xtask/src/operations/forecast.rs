//! What a rollback would change, do and cost, as people know it from plan-and-apply tools: `+` is added, `-` removed, `~`
//! changed. Made from the same values as the plan that is executed. `Forecast::of` and `lines` are pure. Called by
//! `rollback --plan`.

use crate::base::files::human;
use crate::base::output::Output;
use crate::deploy::converge::Preview;
use crate::deploy::difference::{Change, Difference};
use crate::deploy::step::Step;
use crate::release::description::Release;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How something changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sign {
    /// It is added.
    #[serde(rename = "+")]
    Added,
    /// It is removed.
    #[serde(rename = "-")]
    Removed,
    /// It is changed.
    #[serde(rename = "~")]
    Changed,
}

impl Sign {
    /// As it is printed.
    pub fn as_char(self) -> char {
        match self {
            Self::Added => '+',
            Self::Removed => '-',
            Self::Changed => '~',
        }
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// How it changes.
    pub sign: Sign,
    /// Of what: a service, a setting, or stored data.
    pub name: String,
    /// In words: old → new.
    pub what: String,
}

/// A step, and what happens if it fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Act {
    /// The step in words.
    pub step: String,
    /// What happens if it fails.
    pub if_it_fails: String,
}

/// What a rollback would change, do and cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// The target release.
    pub release: String,
    /// Its label.
    pub label: String,
    /// The scenarios, which are the reason for it.
    pub scenarios: Vec<String>,
    /// The services.
    pub services: Vec<Row>,
    /// The settings of the env file.
    pub settings: Vec<Row>,
    /// The stored data.
    pub data: Vec<Row>,
    /// What differs and is none of these.
    pub other: Vec<String>,
    /// The steps in order.
    pub steps: Vec<Act>,
    /// How many milliseconds the public was out in earlier rollbacks, at the median, and of how many.
    pub downtime_ms: Option<(u64, usize)>,
}

impl Forecast {
    /// `sizes`: the bytes of stored data, as far as they are known. `downtimes`: those of earlier rollbacks, in
    /// milliseconds.
    pub fn of(
        preview: &Preview,
        release: &Release,
        sizes: &BTreeMap<String, u64>,
        mut downtimes: Vec<u64>,
    ) -> Self {
        let Preview { drift, plan, .. } = preview;
        downtimes.sort_unstable();
        let median = downtimes.get(downtimes.len() / 2).copied();
        Self {
            release: release.id.clone(),
            label: release.label.clone(),
            scenarios: plan.scenarios.iter().map(|scenario| scenario.as_str().to_owned()).collect(),
            services: services(drift, &plan.steps),
            settings: settings(drift),
            data: data(&plan.steps, sizes),
            other: drift.iter().filter(|d| is_other(d)).map(ToString::to_string).collect(),
            steps: plan
                .steps
                .iter()
                .map(|step| Act { step: step.to_string(), if_it_fails: step.if_it_fails().into() })
                .collect(),
            downtime_ms: median.map(|median| (median, downtimes.len())),
        }
    }

    /// Is there anything to do?
    pub fn changes(&self) -> bool {
        !self.steps.is_empty()
    }

    /// The lines that people read.
    pub fn lines(&self, out: &Output) -> Vec<String> {
        let why = if self.scenarios.is_empty() {
            String::new()
        } else {
            format!(" ({})", self.scenarios.join(" + "))
        };
        let mut lines = vec![format!("to release {}, {}{why}", self.release, self.label)];
        if !self.changes() {
            lines.push("  nothing to do".into());
            return lines;
        }
        for (title, rows) in [
            ("services", &self.services),
            ("settings of the env file", &self.settings),
            ("stored data", &self.data),
        ] {
            let widest = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
            lines.extend((!rows.is_empty()).then(|| format!("\n{title}")));
            for Row { sign, name, what } in rows {
                lines.push(format!("  {} {name:<widest$}  {what}", out.sign(sign.as_char())));
            }
        }
        lines.extend((!self.other.is_empty()).then(|| "\nalso".to_owned()));
        lines.extend(self.other.iter().map(|other| format!("  {other}")));
        lines.push("\nsteps".into());
        let mut same = 0;
        for (n, Act { step, if_it_fails }) in self.steps.iter().enumerate() {
            lines.push(format!("  {}. {step}", n + 1));
            same += 1;
            // Said once for steps that follow each other.
            if self.steps.get(n + 1).is_none_or(|next| next.if_it_fails != *if_it_fails) {
                let which = if same == 1 { "it" } else { "one of these" };
                lines.push(format!("     if {which} fails: {if_it_fails}"));
                same = 0;
            }
        }
        lines.push(match self.downtime_ms {
            Some((ms, 1)) => {
                format!("\nthe public was out for {:.1} s in the rollback before", ms as f64 / 1e3)
            }
            Some((ms, runs)) => {
                format!(
                    "\nthe public was out for {:.1} s at the median of the last {runs} rollbacks",
                    ms as f64 / 1e3
                )
            }
            None => {
                "\nhow long the public will be out is not known: there is no rollback before to tell from"
                    .into()
            }
        });
        lines
    }
}

fn short(id: &str) -> String {
    id.trim_start_matches("sha256:").chars().take(12).collect()
}

fn is_other(difference: &Difference) -> bool {
    matches!(
        difference,
        Difference::Shortage { .. }
            | Difference::Release { .. }
            | Difference::ComposeFile
            | Difference::Unknown { .. }
            | Difference::EnvFile { trouble: Some(_), .. }
    )
}

/// A change of a setting: `true → false`.
fn change(change: &Change) -> (Sign, String) {
    let value = |value: &String| if value.is_empty() { "(empty)".to_owned() } else { value.clone() };
    match (&change.now, &change.release) {
        (Some(now), Some(wanted)) if now == wanted => {
            (Sign::Changed, format!("another value → {}", value(wanted)))
        }
        (Some(now), Some(wanted)) => (Sign::Changed, format!("{} → {}", value(now), value(wanted))),
        (Some(now), None) => (Sign::Removed, value(now)),
        (None, Some(wanted)) => (Sign::Added, value(wanted)),
        (None, None) => (Sign::Added, "(a secret)".into()),
    }
}

/// Each service that changes, once, with everything that changes of it; and those that only restart.
fn services(drift: &[Difference], steps: &[Step]) -> Vec<Row> {
    let mut all: BTreeMap<String, (Sign, Vec<String>)> = BTreeMap::new();
    let mut add = |name: &String, sign: Sign, what: String| {
        let row = all.entry(name.clone()).or_insert((sign, Vec::new()));
        row.1.push(what);
        if sign != Sign::Changed {
            row.0 = sign;
        }
    };
    for difference in drift {
        match difference {
            Difference::Image { service, running, running_version, image, version, .. } => {
                let now = running_version.as_deref().unwrap_or("an unknown version");
                let (running, image) = (short(running), short(image));
                add(service, Sign::Changed, format!("{now} ({running}) → {version} ({image})"));
            }
            Difference::Env { service, changes, .. } => {
                let words: Vec<String> =
                    changes.iter().map(|one| format!("{} {}", one.name, change(one).1)).collect();
                add(service, Sign::Changed, words.join(", "));
            }
            Difference::Settings { service } => {
                add(
                    service,
                    Sign::Changed,
                    "limits, volumes, health check or number of instances → those of the release".into(),
                );
            }
            Difference::Down { service, state } if state == "missing" => {
                add(service, Sign::Added, "is missing".into());
            }
            Difference::Down { service, state } => add(service, Sign::Changed, format!("{state} → running")),
            Difference::Paused { service } => add(service, Sign::Changed, "paused → running".into()),
            Difference::Extra { service } => {
                add(service, Sign::Removed, "the release does not have it".into());
            }
            Difference::Unhealthy { service, reason } => {
                add(service, Sign::Changed, format!("not healthy ({reason}) → restart"));
            }
            Difference::StoreCorrupt { service, reason } => add(service, Sign::Changed, reason.clone()),
            Difference::DataMissing { service } => add(service, Sign::Changed, "its data is gone".into()),
            Difference::ImageLost { service } => {
                add(service, Sign::Changed, "its image is loaded from the release".into());
            }
            _ => {}
        }
    }
    let restarted = steps.iter().flat_map(|step| match step {
        Step::Apply { services, .. } => services.as_slice(),
        _ => &[],
    });
    for service in restarted {
        all.entry(service.clone()).or_insert((Sign::Changed, vec!["restart".into()]));
    }
    all.into_iter().map(|(name, (sign, what))| Row { sign, name, what: what.join("; ") }).collect()
}

fn settings(drift: &[Difference]) -> Vec<Row> {
    let of = |difference: &Difference| match difference {
        Difference::EnvFile { changes, trouble: None, .. } => changes.clone(),
        _ => Vec::new(),
    };
    let row = |one: Change| {
        let (sign, what) = change(&one);
        Row { sign, name: one.name, what }
    };
    drift.iter().flat_map(of).map(row).collect()
}

/// What happens to stored data. A copy of what is removed or replaced is made and verified before.
fn data(steps: &[Step], sizes: &BTreeMap<String, u64>) -> Vec<Row> {
    let size =
        |name: &String| sizes.get(name).map(|bytes| format!(" of {}", human(*bytes))).unwrap_or_default();
    let copied = steps.iter().find_map(|step| match step {
        Step::Preserve { data, .. } => Some(data.as_slice()),
        _ => None,
    });
    let copied = copied.unwrap_or_default();
    let fate = |name: &String| -> (Sign, &str) {
        let is = |services: &[String]| services.contains(name);
        for step in steps {
            match step {
                Step::ReturnData { except } if !is(except) => {
                    return (Sign::Changed, "is brought back from it");
                }
                Step::RestoreData { services, .. } if is(services) => {
                    return (Sign::Changed, "is replaced by what the backup has");
                }
                _ => {}
            }
        }
        (Sign::Removed, "is removed")
    };
    let row = |name: &String| {
        let (sign, what) = fate(name);
        Row {
            sign,
            name: name.clone(),
            what: format!("a verified copy{} is made, then it {what}", size(name)),
        }
    };
    copied.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_setting_and_data_is_shown_once_with_old_and_new() {
        let secret = Some("(a secret)".to_owned());
        let (yes, no) = (Some("true".to_owned()), Some("false".to_owned()));
        let one = |name: &str, now: &Option<String>, release: &Option<String>| Change {
            name: name.into(),
            now: now.clone(),
            release: release.clone(),
        };
        let drift = [
            Difference::Image {
                service: "engine".into(),
                running: "sha256:0123456789abcdef".into(),
                running_version: Some("v2".into()),
                release: "r1".into(),
                image: "sha256:fedcba9876543210".into(),
                version: "v1".into(),
            },
            Difference::Env {
                service: "engine".into(),
                release: "r1".into(),
                changes: vec![one("CACHE", &yes, &no)],
            },
            Difference::EnvFile {
                release: "r1".into(),
                changes: vec![
                    one("CACHE", &yes, &no),
                    one("NEW", &yes, &None),
                    one("TOKEN", &secret, &secret),
                ],
                trouble: None,
            },
            Difference::Down { service: "jobs".into(), state: "missing".into() },
            Difference::Extra { service: "old".into() },
            Difference::ComposeFile,
        ];
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let steps = [
            Step::Preserve { data: names(&["jobs", "db"]), stop: Vec::new() },
            Step::RestoreData { from: "b1".into(), services: names(&["db"]) },
            Step::Apply { services: names(&["engine", "gateway"]), force: Vec::new(), held_back: Vec::new() },
        ];
        let said = |rows: Vec<Row>| -> Vec<String> {
            rows.iter().map(|row| format!("{} {}: {}", row.sign.as_char(), row.name, row.what)).collect()
        };
        assert_eq!(
            said(services(&drift, &steps)),
            [
                "~ engine: v2 (0123456789ab) → v1 (fedcba987654); CACHE true → false",
                "~ gateway: restart",
                "+ jobs: is missing",
                "- old: the release does not have it",
            ]
        );
        assert_eq!(
            said(settings(&drift)),
            ["~ CACHE: true → false", "- NEW: true", "~ TOKEN: another value → (a secret)"]
        );
        assert_eq!(
            said(data(&steps, &BTreeMap::from([("jobs".into(), 2_000_000)]))),
            [
                "- jobs: a verified copy of 1.9 MiB is made, then it is removed",
                "~ db: a verified copy is made, then it is replaced by what the backup has",
            ]
        );
        assert_eq!(drift.iter().filter(|d| is_other(d)).count(), 1);
    }
}

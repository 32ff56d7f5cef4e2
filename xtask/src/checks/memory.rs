//! How much memory the services use: by their own metric, where the manifest names one, else by the engine's word.
//! Called by `deploy` and by the benchmark.

use crate::base::deadline::Deadline;
use crate::base::http::Client;
use crate::checks::ask::send;
use crate::checks::target::{REQUEST, Target};
use crate::engine::roles::Inspect;
use crate::stack::manifest::MemoryRule;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;

/// Memory in use, in bytes, by service, of its instance with most; by container where the engine is asked.
pub fn memory(
    target: &Target<'_>,
    engine: &dyn Inspect,
    deadline: Deadline,
) -> Result<BTreeMap<String, f64>> {
    match &target.pilot.manifest.memory {
        Some(rule) => {
            let largest = |name: &str| {
                let all = target.each(name, REQUEST, |client| of(client, rule))?;
                Ok((name.to_owned(), all.into_iter().fold(0.0, f64::max)))
            };
            target.reachable(rule.request.service.as_deref()).map(largest).collect()
        }
        None => {
            let all = engine.usage(deadline)?.into_iter();
            all.map(|usage| {
                let bytes =
                    bytes(&usage.memory).with_context(|| format!("{}: {}", usage.name, usage.memory))?;
                Ok((usage.name, bytes))
            })
            .collect()
        }
    }
}

/// What one service says.
fn of(client: &Client, rule: &MemoryRule) -> Result<f64> {
    let answer = send(client, &rule.request, None)?;
    ensure!(answer.status == 200, "{} answered {}", rule.request, answer.brief());
    let value = |line: &str| line.strip_prefix(&rule.metric)?.strip_prefix(' ')?.trim().parse().ok();
    answer.body.lines().find_map(value).with_context(|| format!("it does not report {}", rule.metric))
}

/// `1.5MiB / 256MiB`, as an engine says it: the first figure, in bytes.
fn bytes(text: &str) -> Option<f64> {
    let first = text.split('/').next()?.trim();
    let at = first.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = first.split_at(at);
    let factor = match unit {
        "B" | "bytes" => 1.0,
        "KiB" => 1024.0,
        "kB" | "KB" => 1e3,
        "MiB" => 1024.0 * 1024.0,
        "MB" => 1e6,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        "GB" => 1e9,
        _ => return None,
    };
    number.trim().parse::<f64>().ok().map(|number| number * factor)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn the_figures_of_engines_are_read_and_others_are_not_guessed() {
        assert_eq!(bytes("1.5MiB / 256MiB"), Some(1.5 * 1024.0 * 1024.0));
        assert_eq!(bytes("512 B"), Some(512.0));
        assert_eq!(bytes("2GiB / 4GiB"), Some(2.0 * 1024.0 * 1024.0 * 1024.0));
        for wrong in ["", "--", "-- / --", "12", "5 sheep", "MiB"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
        assert_eq!(bytes(&crate::base::files::human(3 << 20)).map(f64::round), Some(3.0 * 1024.0 * 1024.0));
    }
}

//! The parts of a stack that do not depend on each other. Compose 2 works on them side by side, each with a
//! process of its own: that is quicker than one process for all. Called only by `runtime`.

use crate::base::deadline::Deadline;
use crate::engine::compose::client::{Compose, Generation};
use crate::engine::compose::line::listed;
use crate::release::description::Release;
use crate::stack::definition::Definition;
use anyhow::Result;
use std::collections::BTreeSet;

/// How many parts there are at most. More processes cost more than they gain.
pub const PARTS: usize = 4;

/// The services that always start, in parts: a service is in the same part as all that it depends on.
fn independent(definition: &Definition) -> Vec<BTreeSet<String>> {
    let always = definition.services.iter().filter(|(_, service)| service.profiles.is_empty());
    let mut parts: Vec<BTreeSet<String>> = Vec::new();
    for (name, service) in always {
        let own: BTreeSet<String> = service.depends_on.iter().chain([name]).cloned().collect();
        let (joined, apart): (Vec<_>, Vec<_>) = parts.into_iter().partition(|part| !part.is_disjoint(&own));
        parts = apart;
        parts.push(joined.into_iter().flatten().chain(own).collect());
    }
    // The largest first, each into the part that has the fewest services so far.
    parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
    let mut few: Vec<BTreeSet<String>> = Vec::new();
    for part in parts {
        if few.len() < PARTS {
            few.push(part);
        } else if let Some(smallest) = few.iter_mut().min_by_key(|part| part.len()) {
            smallest.extend(part);
        }
    }
    few
}

impl Compose {
    /// The services of each part of a release; one empty part is all of it. Compose 1 starts too slowly for
    /// several processes and does not say all that a service depends on. Networks must be there, because two
    /// processes that make the same one make two.
    pub fn parts(&self, release: &Release, deadline: Deadline) -> Result<Vec<BTreeSet<String>>> {
        let whole = || Ok(vec![BTreeSet::new()]);
        let Some(definition) = self.pilot.definition.as_ref().filter(|_| release.is_recorded()) else {
            return whole();
        };
        if matches!(self.generation(deadline)?, Generation::One(_)) {
            return whole();
        }
        let parts = independent(definition);
        if parts.len() < 2 {
            return whole();
        }
        let there = self.get("/networks", deadline)?;
        let there: BTreeSet<&str> = listed(&there)?.iter().filter_map(|one| one["Name"].as_str()).collect();
        let all_there = definition.networks.values().all(|network| there.contains(network.name.as_str()));
        if all_there { Ok(parts) } else { whole() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::definition::Service;
    use std::collections::BTreeMap;

    fn parts(services: &[(&str, &[&str], &[&str])]) -> Vec<String> {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let service = |(name, depends_on, profiles): &(&str, &[&str], &[&str])| {
            let service =
                Service { depends_on: set(depends_on), profiles: set(profiles), ..Service::default() };
            ((*name).to_owned(), service)
        };
        let services = services.iter().map(service).collect();
        let definition = Definition::new(services, BTreeMap::new(), BTreeMap::new());
        let words = |part: BTreeSet<String>| part.into_iter().collect::<Vec<_>>().join(" ");
        independent(&definition).into_iter().map(words).collect()
    }

    #[test]
    fn what_depends_on_each_other_is_one_part() {
        assert_eq!(parts(&[("a", &[], &[]), ("b", &[], &[]), ("c", &[], &["debug"])]), ["a", "b"]);
        let chain: &[(&str, &[&str], &[&str])] =
            &[("api", &["db"], &[]), ("db", &[], &[]), ("mail", &[], &[]), ("web", &["api"], &[])];
        assert_eq!(parts(chain), ["api db web", "mail"]);
        // Two that depend on a third.
        assert_eq!(
            parts(&[("a", &["z"], &[]), ("b", &[], &[]), ("c", &["z"], &[]), ("z", &[], &[])]),
            ["a c z", "b"]
        );
    }

    #[test]
    fn there_are_few_parts_of_about_the_same_size() {
        let names: Vec<String> = (0..30).map(|n| format!("s{n}")).collect();
        let services: Vec<(&str, &[&str], &[&str])> =
            names.iter().map(|name| (name.as_str(), [].as_slice(), [].as_slice())).collect();
        let sizes: Vec<usize> = parts(&services).iter().map(|part| part.split(' ').count()).collect();
        assert_eq!(sizes, [8, 8, 7, 7]);
    }
}

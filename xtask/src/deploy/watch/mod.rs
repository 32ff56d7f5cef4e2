//! Does what runs stay well? A look says what was seen at one moment; `Watch` takes one look after another, and says
//! whether all is well, something is bad, or it is too early to tell. Pure: time and looks are values. `look` makes a look,
//! `keep` is the step of a run. Called by `keep` and by `guard`.

pub mod keep;
pub mod look;

use crate::base::count::count;
use crate::base::observed::Observed;
use crate::stack::manifest::WatchRule;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// What is wrong with a service at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ill {
    /// In words.
    pub why: String,
    /// It does not run, and nothing starts it: it is not on its way.
    pub is_gone: bool,
}

/// A service at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// How the engine finds its instances; another one was started anew.
    pub handles: Vec<String>,
    /// How often the engine has restarted them by itself.
    pub restarts: u64,
    /// What is wrong with it.
    pub ill: Option<Ill>,
}

/// What was seen at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// When, since the watch began.
    pub at: Duration,
    /// The services; unknown if the engine does not answer.
    pub services: Observed<BTreeMap<String, Seen>>,
    /// The watched checks that were made, and why one has failed.
    pub checks: BTreeMap<String, Option<String>>,
}

/// What the looks so far mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All is well at this moment.
    Well,
    /// Something is not well, but not for long enough, or it is only slow to start.
    NotYet(String),
    /// The last look has seen nothing.
    Unseen(String),
    /// Too much is wrong.
    Bad(String),
}

/// What the looks so far have shown, in little memory, however many there were.
#[derive(Clone, Debug)]
pub struct Watch {
    rule: WatchRule,
    /// How long a service may take to start.
    ready: Duration,
    /// Everything was verified just before, so nothing is on its way at the first look.
    verified: bool,
    services: BTreeMap<String, Course>,
    /// How often in a row each check has failed.
    failed: BTreeMap<String, usize>,
}

/// What happened to one service.
#[derive(Clone, Debug)]
struct Course {
    handles: Vec<String>,
    /// Its restarts at several moments, as far back as they are counted.
    restarts: VecDeque<(Duration, u64)>,
    /// When it was seen to have started.
    since: Duration,
    /// Was it well since then?
    was_well: bool,
    /// How many looks in a row it was not well.
    ill: usize,
}

impl Watch {
    /// Nothing was seen yet. `verified`: everything was well a moment ago.
    pub fn new(rule: WatchRule, ready: Duration, verified: bool) -> Self {
        Self { rule, ready, verified, services: BTreeMap::new(), failed: BTreeMap::new() }
    }

    /// What this look means after those before it.
    pub fn see(&mut self, look: &Look) -> Verdict {
        let services = match &look.services {
            Observed::Known(services) => services,
            Observed::Unknown(why) => return Verdict::Unseen(why.clone()),
        };
        let each = services.iter().map(|(name, seen)| self.follow(name, seen, look.at));
        let mut verdicts: Vec<Verdict> = each.collect();
        // What a check needs may be on its way.
        if verdicts.iter().all(|verdict| *verdict == Verdict::Well) {
            verdicts = look.checks.iter().map(|(name, failed)| self.count(name, failed.as_ref())).collect();
        }
        let bad = verdicts.iter().find(|verdict| matches!(verdict, Verdict::Bad(_)));
        let other = || verdicts.iter().find(|verdict| **verdict != Verdict::Well);
        bad.or_else(other).cloned().unwrap_or(Verdict::Well)
    }

    fn follow(&mut self, name: &str, seen: &Seen, at: Duration) -> Verdict {
        let (verified, rule) = (self.verified, &self.rule);
        let course = self.services.entry(name.to_owned()).or_insert_with(|| Course {
            handles: seen.handles.clone(),
            restarts: VecDeque::from([(at, seen.restarts)]),
            since: at,
            was_well: verified,
            ill: 0,
        });
        let is_gone = seen.ill.as_ref().is_some_and(|ill| ill.is_gone);
        let last = course.restarts.back().map_or(0, |(_, restarts)| *restarts);
        let replaced = course.handles != seen.handles && !is_gone;
        if replaced {
            (course.handles, course.restarts) = (seen.handles.clone(), VecDeque::new());
        }
        if replaced || !is_gone && seen.restarts != last {
            (course.since, course.was_well, course.ill) = (at, false, 0);
        }
        if !is_gone {
            course.restarts.push_back((at, seen.restarts));
        }
        // The oldest one that is kept says how many there were when the time began.
        while course.restarts.get(1).is_some_and(|(then, _)| at.saturating_sub(*then) >= rule.time) {
            course.restarts.pop_front();
        }
        let first = course.restarts.front().map_or(0, |(_, restarts)| *restarts);
        let restarts = course.restarts.back().map_or(0, |(_, restarts)| restarts.saturating_sub(first));
        if restarts > rule.restarts {
            let within = humantime::format_duration(rule.time);
            let times = count(restarts as usize, "time");
            return Verdict::Bad(format!("{name} was restarted {times} within {within}"));
        }
        let Some(Ill { why, is_gone }) = &seen.ill else {
            (course.was_well, course.ill) = (true, 0);
            return Verdict::Well;
        };
        course.ill += 1;
        let starts = !is_gone && !course.was_well;
        match starts {
            true if at.saturating_sub(course.since) > self.ready => {
                let ready = humantime::format_duration(self.ready);
                Verdict::Bad(format!("{why}; it was not well within {ready} after its start"))
            }
            true => Verdict::NotYet(format!("{why}; it may still be starting")),
            false => judged(why, course.ill, rule.failures),
        }
    }

    fn count(&mut self, name: &str, failed: Option<&String>) -> Verdict {
        let times = self.failed.entry(name.to_owned()).or_default();
        let Some(why) = failed else {
            *times = 0;
            return Verdict::Well;
        };
        *times += 1;
        judged(&format!("{name}: {why}"), *times, self.rule.failures)
    }
}

fn judged(why: &str, times: usize, failures: usize) -> Verdict {
    if times >= failures {
        return Verdict::Bad(format!("{why}, {} in a row", count(times, "look")));
    }
    Verdict::NotYet(why.to_owned())
}

#[cfg(test)]
mod tests;

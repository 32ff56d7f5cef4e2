//! The common observation of `status`, `assess`, `diagnose`, `preflight` and `evidence`, so that all of them
//! see the same: the stack, how it differs from the target release, and what a rollback would do. Changes
//! nothing.

use crate::base::count::count;
use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::next::{Context as Whose, Next};
use crate::base::observed::Observed;
use crate::base::screen;
use crate::base::secrets;
use crate::base::threads::joined;
use crate::checks::ask::send;
use crate::deploy::converge::Preview;
use crate::deploy::difference::{Difference, Scenario};
use crate::deploy::drift::scenarios;
use crate::deploy::gate::Gate;
use crate::deploy::observe::Observation;
use crate::deploy::plan::{Goal, Plan, Purpose};
use crate::deploy::session::Session;
use crate::deploy::view::View;
use crate::operations::target;
use crate::release::description::Release;
use crate::stack::manifest::SessionRule;
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What was observed.
pub struct Look {
    /// The release that is deployed, if any is recorded.
    pub current: Option<Release>,
    /// The release that a rollback would go to, if there is one.
    pub target: Option<Release>,
    /// The observation.
    pub now: Observation,
    /// The differences from the release; empty if there is no release.
    pub drift: Vec<Difference>,
    /// What a rollback would do.
    pub plan: Option<Plan>,
    /// The sessions that are running; none if the manifest does not say how to ask.
    pub sessions: Option<Observed<Value>>,
    /// The last log lines of each service, with secrets masked; empty if none were requested.
    pub logs: BTreeMap<String, Observed<Vec<String>>>,
}

/// Refuses (exit 2) a project of which nothing exists: its name is mistyped. Names those that there are.
pub fn is_a_project(session: &Session) -> Result<()> {
    let Session { pilot, engine, .. } = session;
    let services = engine.services(Deadline::after(pilot.manifest.limits.engine));
    // Of an engine that does not answer, nothing is known.
    if pilot.state.path().exists() || services.map_or(true, |services| !services.is_empty()) {
        return Ok(());
    }
    let what =
        format!("there is no project {}: it has no state folder, and nothing of it runs", pilot.project);
    let others = pilot.other_projects();
    let nearest = others.iter().max_by(|a, b| likeness(a, pilot).total_cmp(&likeness(b, pilot)));
    let next = match nearest {
        Some(name) => Next::shell(Whose::new(Some(name), None, None).xtask("status"))
            .so(format!("there are {}", others.join(", "))),
        None => Next::xtask("up").so("makes it; there is no other project here"),
    };
    Err(fail(Exit::Usage, what, next))
}

fn likeness(name: &str, pilot: &Pilot) -> f64 {
    strsim::jaro_winkler(name, &pilot.project)
}

/// Observes the pilot and reads this number of log lines of each service, which may be 0.
pub fn look(session: &Session, lines: usize, deadline: Deadline) -> Result<Look> {
    let _shown = screen::doing("look at what runs");
    let (current, target, trouble) = releases(session);
    let plain = |release| session.preview(&Goal::plain(release, Purpose::Rollback), deadline);
    let preview = target.as_ref().or(current.as_ref()).map(plain);
    let (now, mut drift, plan) = match preview {
        Some(Ok(Preview { now, drift, plan, .. })) => (now, drift, target.is_some().then_some(plan)),
        other => {
            let tree = View::tree(&session.pilot, session.engine.as_ref(), &session.store)?;
            let now = tree.observe(session.engine.as_ref(), deadline);
            let why = other.and_then(Result::err).map(|error| cannot_tell("what the release has", &error));
            (now, why.into_iter().collect(), None)
        }
    };
    drift.extend(trouble);
    let rule = session.pilot.manifest.sessions.as_ref();
    let sessions = rule.map(|rule| sessions(session, &now, rule).into());
    let logs = std::thread::scope(|scope| {
        let read = |name: &str| -> Result<Vec<String>> {
            let mut all = Vec::new();
            for instance in now.instances(name)? {
                let text = session.engine.logs(instance, lines, deadline)?;
                all.extend(secrets::mask(&text).lines().map(str::to_owned));
            }
            Ok(all)
        };
        let services = session.pilot.services().filter(|_| lines > 0);
        let jobs: Vec<_> = services.map(|name| (name.to_owned(), scope.spawn(move || read(name)))).collect();
        jobs.into_iter().map(|(name, job)| (name, joined(job).into())).collect()
    });
    Ok(Look { current, target, now, drift, plan, sessions, logs })
}

/// What the service answers that has the sessions. Without a name, it is the one of the gate.
fn sessions(session: &Session, now: &Observation, rule: &SessionRule) -> Result<Value> {
    let service = rule.request.service.as_deref().unwrap_or(session.pilot.gateway());
    let endpoint = now.endpoints.get(service).with_context(|| format!("{service} does not run"))?;
    let client = session.engine.reach(endpoint, session.pilot.manifest.limits.probe);
    let answer = send(&client, &rule.request, None)?;
    ensure!(answer.status == 200, "{} answered {}", rule.request, answer.brief());
    Ok(answer.json())
}

/// The release that is deployed, the target of a rollback, and what could not be read about them.
fn releases(session: &Session) -> (Option<Release>, Option<Release>, Vec<Difference>) {
    let mut trouble = Vec::new();
    let current = session.store.current().unwrap_or_else(|error| {
        trouble.push(cannot_tell("which release is deployed", &error));
        None
    });
    let target = target::default_target(session).unwrap_or_else(|error| {
        trouble.push(cannot_tell("where a rollback would go", &error));
        None
    });
    (current, target, trouble)
}

fn cannot_tell(what: &str, error: &anyhow::Error) -> Difference {
    Difference::Unknown { what: what.into(), why: format!("{error:#}") }
}

impl Look {
    /// The release that the drift is measured against: the target of a rollback, or else the deployed
    /// release.
    pub fn against(&self) -> Option<&Release> {
        self.target.as_ref().or(self.current.as_ref())
    }

    /// The exit code and the next command: 0 if all is well, 1 if not, 4 if the engine does not answer.
    pub fn verdict(&self) -> (Exit, Option<Next>) {
        let same = self.drift.iter().all(|d| *d == Difference::ComposeFile);
        let held = self.now.holds.held(&[]).is_some();
        let well = self.current.as_ref().is_some_and(Release::is_known_good)
            && self.now.gate == Gate::Open
            && !held
            && same;
        match &self.now.stack {
            Observed::Unknown(_) => (Exit::Host, Some(Next::xtask("host"))),
            Observed::Known(_) if well => (Exit::Ok, None),
            Observed::Known(_) if self.target.is_none() => (Exit::NotRestored, Some(Next::xtask("up"))),
            // All is as it should be, except that a person holds the gate closed.
            Observed::Known(_) if held && same => (Exit::NotRestored, Some(Next::xtask("kill-switch off"))),
            Observed::Known(_) => (Exit::NotRestored, Some(Next::xtask("rollback"))),
        }
    }

    /// The verdict, as a sentence.
    pub fn sentence(&self) -> String {
        let from = self.against().map_or("its release".into(), |release| format!("release {}", release.id));
        let differences = count(self.drift.len(), "difference");
        match (&self.now.stack, self.verdict().0) {
            (Observed::Unknown(why), _) => {
                format!("the engine does not answer, so it is not known what runs: {why}")
            }
            (_, Exit::Ok) => format!("all is well: {from} serves"),
            _ if self.against().is_none() => "there is no release, so there is no way back yet".into(),
            _ if !self.drift.is_empty() => format!("not as it should be: {differences} from {from}"),
            _ => match &self.now.gate {
                Gate::Open => format!("not as it should be: {from} runs, and is not known-good"),
                Gate::Closed(_) => format!("{from} runs as it should, but the public is shut out"),
                Gate::Unknown(_) => format!("{from} runs, but it is not known whether the public is let in"),
            },
        }
    }

    /// As JSON, with the extra values of a command.
    pub fn told(&self, more: Value) -> Value {
        let mut told = json!({
            "release": self.current.as_ref().map(|release| &release.id),
            "target": self.target.as_ref().map(|release| &release.id),
            "drift_from": self.against().map(|release| &release.id),
            "observation": self.now,
            "drift": self.drift,
        });
        if let (Value::Object(told), Value::Object(more)) = (&mut told, more) {
            told.extend(more);
        }
        told
    }

    /// The scenarios that a rollback would choose, each with its differences.
    pub fn reasons(&self) -> Vec<(Scenario, String)> {
        let all = scenarios(&self.drift);
        let why = |scenario: &Scenario| {
            let own = |d: &&Difference| scenarios(std::slice::from_ref(*d)).contains(scenario);
            self.drift.iter().filter(own).map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        all.iter().map(|scenario| (*scenario, why(scenario))).collect()
    }
}

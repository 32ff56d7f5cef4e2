//! Shows what a rollback would do, and keeps it in a file: `rollback --plan --out FILE` writes a plan,
//! `rollback --plan-file FILE` executes it as it stands, and refuses if what it was made from has changed since. Called by
//! `rollback` and its command.

use crate::base::deadline::{Deadline, now_ms};
use crate::base::failure::{Exit, fail};
use crate::base::files::{self, Mode};
use crate::base::next::Next;
use crate::base::observed::Observed;
use crate::deploy::converge::Preview;
use crate::deploy::difference::Scenario;
use crate::deploy::event::{Event, Finished};
use crate::deploy::gate::Gate;
use crate::deploy::run::{self, Request};
use crate::deploy::session::Session;
use crate::deploy::step::Step;
use crate::operations::forecast::Forecast;
use crate::operations::foresee::{Foreseen, foresee};
use crate::operations::with_data;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// The version of this format.
const FORMAT: u32 = 1;

/// The parts of the world that a plan is made from, each with a checksum.
type World = BTreeMap<String, String>;

/// What is to be shown of a plan, and what is to be done with it.
#[derive(Debug)]
pub struct Showing<'a> {
    /// Write the plan to this file.
    pub save: Option<&'a Path>,
    /// Say by the exit code whether there is anything to do.
    pub by_exit_code: bool,
}

/// Shows what would be done, and changes nothing.
pub fn show(
    request: &Request,
    showing: &Showing<'_>,
    session: &Session,
    deadline: Deadline,
) -> Result<Finished> {
    let out = &session.out;
    let (preview, release) = match foresee(request, session, deadline)? {
        Foreseen::Plan(plan) => *plan,
        Foreseen::Commit(rev) if showing.save.is_some() => {
            let what = format!("a plan for {rev} cannot be saved, because its release is not built yet");
            let next = Next::xtask("releases list").so("names the releases that there are");
            return Err(fail(Exit::Usage, what, next));
        }
        Foreseen::Commit(rev) => {
            out.say(format!(
                "close the gate, build {rev} in a separate worktree, then continue as with a release"
            ));
            return Ok(Finished { scenarios: vec![Scenario::Commit], ..Finished::plain(Exit::Ok) });
        }
    };
    let limit = deadline.within(session.pilot.manifest.limits.engine);
    let forecast =
        Forecast::of(&preview, &release, &sizes(&preview, limit), run::downtimes(&session.pilot.state));
    if out.is_json() {
        out.event(&Event::Drift { release: &release.id, differences: &preview.drift });
        let left_ms = deadline.left().as_millis() as u64;
        out.event(&Event::Planned { plan: &preview.plan, left_ms });
        out.event(&Event::Result { value: &serde_json::to_value(&forecast)? });
    }
    forecast.lines(out).into_iter().for_each(|line| out.say(line));
    if let Some(what) = with_data::told(request)? {
        out.note(what);
    }
    let hold = preview.now.holds.held(&[]);
    if let Some(hold) = &hold {
        out.say(format!("  the gate is {hold}"));
    }
    let changes = forecast.changes();
    let mut next = changes.then(|| Next::words_of(request.words()).so("does this; nothing was changed yet"));
    if let Some(to) = showing.save {
        save(to, request, forecast, &preview, session)?;
        let words = ["rollback".to_owned(), "--plan-file".to_owned(), to.display().to_string()];
        next = Some(Next::words_of(words).so("does this, if nothing has changed until then"));
    }
    let exit = if changes && showing.by_exit_code { Exit::Changes } else { Exit::Ok };
    let finished = Finished {
        release: Some(release.id),
        scenarios: preview.plan.scenarios,
        held: hold.is_some(),
        hold,
        ..Finished::plain(exit)
    };
    Ok(finished.then(next.as_ref(), out.context()))
}

/// The bytes of the data that would be copied, as far as the engine tells.
fn sizes(preview: &Preview, deadline: Deadline) -> BTreeMap<String, u64> {
    let copied = preview.plan.steps.iter().flat_map(|step| match step {
        Step::Preserve { data, .. } => data.as_slice(),
        _ => &[],
    });
    let engine = preview.running.engine.as_ref();
    copied.filter_map(|name| Some((name.clone(), engine.bytes(name, deadline).ok().flatten()?))).collect()
}

/// A plan as it is saved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavedPlan {
    /// The version of this format.
    version: u32,
    /// The project that it is for.
    project: String,
    /// Unix milliseconds.
    made_ms: u64,
    /// What was asked for.
    pub request: Request,
    /// What it was made from.
    world: World,
    /// What it would do, for whoever has to approve it.
    forecast: Forecast,
}

/// What a plan is made from. What changes by itself, such as the words of an error, is no part of it.
fn world(preview: &Preview, release: &str, session: &Session) -> Result<World> {
    let now = &preview.now;
    let services: Vec<_> = now
        .stack
        .known()
        .into_iter()
        .flat_map(|stack| &stack.services)
        .map(|(name, service)| {
            let each =
                service.0.iter().map(|one| json!([one.handle, one.image, one.env, one.settings, one.state]));
            json!([name, each.collect::<Vec<_>>()])
        })
        .collect();
    let gate = match &now.gate {
        Gate::Open => "open".to_owned(),
        Gate::Closed(reason) => format!("closed: {reason}"),
        Gate::Unknown(_) => "unknown".to_owned(),
    };
    let holds: Vec<String> = match &now.holds {
        Observed::Known(holds) => holds.iter().map(|hold| hold.id.clone()).collect(),
        Observed::Unknown(_) => vec!["unknown".into()],
    };
    let env = &session.pilot.env_path;
    let env = if env.exists() { files::sha256(env)? } else { "missing".into() };
    let sum = |value: serde_json::Value| files::sha256_bytes(value.to_string().as_bytes());
    Ok([
        ("the release to go to", release.to_owned()),
        ("the env file", env),
        ("what runs", sum(json!(services))),
        ("the gate", gate),
        ("who holds the gate", sum(json!(holds))),
        ("the steps", sum(json!(preview.plan.steps))),
    ]
    .map(|(part, sum)| (part.to_owned(), sum))
    .into())
}

/// Writes the plan. An existing file is not replaced.
fn save(
    to: &Path,
    request: &Request,
    forecast: Forecast,
    preview: &Preview,
    session: &Session,
) -> Result<()> {
    let plan = SavedPlan {
        version: FORMAT,
        project: session.pilot.project.clone(),
        made_ms: now_ms(),
        request: request.clone(),
        world: world(preview, &forecast.release, session)?,
        forecast,
    };
    if to.exists() {
        let what = format!("{} exists already, and nothing was written", to.display());
        return Err(fail(Exit::Usage, what, "name another file, or remove that one"));
    }
    files::write_json(to, &plan, Mode::Private)
}

/// Reads a plan. Errors (exit 2): it is no plan, or it is for another project.
pub fn read(from: &Path, session: &Session) -> Result<SavedPlan> {
    let refused = |why: String| {
        let what = format!("{} cannot be executed: {why}", from.display());
        fail(Exit::Usage, what, Next::xtask("rollback --plan --out FILE").so("makes a plan"))
    };
    let text = files::read_text(from).map_err(|error| refused(format!("{error:#}")))?;
    let plan: SavedPlan =
        serde_json::from_str(&text).map_err(|error| refused(format!("it is no plan: {error}")))?;
    if plan.version != FORMAT {
        return Err(refused(format!("its format is {}, and this program knows {FORMAT}", plan.version)));
    }
    if plan.project != session.pilot.project {
        return Err(refused(format!("it is for project {:?}", plan.project)));
    }
    Ok(plan)
}

impl SavedPlan {
    /// Refuses (exit 2) if the plan that would be made now is another one. The caller holds the lock.
    pub fn check(&self, session: &Session, deadline: Deadline) -> Result<()> {
        let now = match foresee(&self.request, session, deadline)? {
            Foreseen::Plan(plan) => world(&plan.0, &plan.1.id, session)?,
            // Its release is gone.
            Foreseen::Commit(_) => World::new(),
        };
        let changed: Vec<&str> = self
            .world
            .iter()
            .filter(|(part, sum)| now.get(*part) != Some(sum))
            .map(|(part, _)| part.as_str())
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        let what =
            format!("the plan was not executed, because this has changed since: {}", changed.join(", "));
        Err(fail(Exit::Usage, what, Next::xtask("rollback --plan").so("shows what would be done now")))
    }
}

//! `rollback`: goes back to the last known-good release, or to another one. The work is done in
//! `operations::rollback`.

use crate::base::deadline::Deadline;
use crate::commands::values::ScenarioName;
use crate::deploy::event::Finished;
use crate::deploy::run::{Command, Request};
use crate::deploy::session::Session;
use crate::operations::planned::{self, Showing};
use crate::operations::rollback::{self, Options};
use crate::operations::with_data;
use anyhow::Result;
use std::path::PathBuf;
use std::time::Duration;

/// `cargo xtask rollback`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask rollback\n  cargo xtask rollback --plan\n  cargo xtask rollback --plan --out plan.json\n  cargo xtask rollback --plan-file plan.json\n  cargo xtask rollback --to previous\n  cargo xtask rollback --to HEAD~1\n  cargo xtask rollback --to previous --with-data\n  cargo xtask rollback --open"
)]
pub struct Args {
    /// Release to go back to: r3, a version (v1.0.0) or `previous`; or a commit, or a label of known-good.toml, which is
    /// built when no release was made from it [default: the last known-good]
    #[arg(long, value_name = "RELEASE|REV")]
    to: Option<String>,
    /// Why, when you know better than the drift; can be given more than once
    #[arg(long, value_enum)]
    scenario: Vec<ScenarioName>,
    /// Show what would be done and touch nothing
    #[arg(long)]
    plan: bool,
    /// With --plan: exit code 8 if there is something to do, 0 if not
    #[arg(long, requires = "plan")]
    detailed_exitcode: bool,
    /// With --plan: write the plan to this file, to be executed later with --plan-file
    #[arg(long, requires = "plan", value_name = "FILE")]
    out: Option<PathBuf>,
    /// Execute the plan in this file, and refuse if what it was made from has changed since
    #[arg(long, value_name = "FILE", conflicts_with_all = ["plan", "to", "scenario", "with_data", "open"])]
    plan_file: Option<PathBuf>,
    /// Time it may take [default: the budget in pilot.toml]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    budget: Option<Duration>,
    /// Also switch your checkout to that commit; refused over uncommitted work
    #[arg(long, requires = "to")]
    checkout: bool,
    /// Also go back to the data as that release left it: the snapshot that `up` took (`before_deploy`). What was
    /// written since is backed up first
    #[arg(long)]
    with_data: bool,
    /// Open the gate at the end, even if a person closed it; lifts the holds that stand now
    #[arg(long)]
    open: bool,
    /// Give up interrupted runs, and begin a new one; their backups stay
    #[arg(long)]
    abandon: bool,
}

impl Args {
    /// What it is called if it changes something.
    pub fn changes(&self) -> Option<&'static str> {
        (!self.plan).then_some("rollback")
    }
}

/// Shows the plan, or executes it.
pub fn run(args: &Args, yes: bool, session: &Session) -> Result<Finished> {
    let scenarios = args.scenario.iter().map(|name| (*name).into()).collect();
    let mut request = Request { to: args.to.clone(), scenarios, ..Request::by(Command::Rollback) };
    if args.open {
        request.lift_standing(&session.ledger())?;
    }
    if args.with_data {
        request = with_data::chosen(request, session)?;
    }
    if args.plan {
        let budget = args.budget.unwrap_or(session.pilot.manifest.limits.budget);
        let showing = Showing { save: args.out.as_deref(), by_exit_code: args.detailed_exitcode };
        return planned::show(&request, &showing, session, Deadline::from(session.out.start(), budget));
    }
    let plan = args.plan_file.as_deref().map(|file| planned::read(file, session)).transpose()?;
    if let Some(plan) = &plan {
        request = plan.request.clone();
    }
    let Args { budget, checkout, abandon, .. } = *args;
    rollback::run(&Options { request, budget, checkout, abandon, plan }, yes, session)
}

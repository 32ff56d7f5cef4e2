//! `kill-switch on|off|status`: a person closes or opens the gate. The work is done in `operations::kill_switch`.

use crate::deploy::event::Finished;
use crate::deploy::session::Session;
use crate::operations::kill_switch;
use anyhow::Result;
use clap::ValueEnum;

/// `cargo xtask kill-switch`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask kill-switch on --reason \"bad answers\"\n  cargo xtask kill-switch off\n  cargo xtask kill-switch status"
)]
pub struct Args {
    /// What to do with the gate
    #[arg(value_enum)]
    action: Action,
    /// Why it is closed; clients see this text
    #[arg(long, default_value = "closed by hand")]
    reason: String,
}

impl Args {
    /// What it is called if it changes something.
    pub fn changes(&self) -> Option<&'static str> {
        match self.action {
            Action::On => Some("kill-switch on"),
            Action::Off => Some("kill-switch off"),
            Action::Status => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Close the gate: only health, metrics and admin requests are answered
    On,
    /// Verify the pilot, then open the gate
    Off,
    /// Say whether the gate is open, and who closed it
    Status,
}

/// Runs the action.
pub fn run(args: &Args, session: &Session) -> Result<Finished> {
    match args.action {
        Action::On => kill_switch::on(&args.reason, session),
        Action::Off => kill_switch::off(session),
        Action::Status => kill_switch::status(session),
    }
}

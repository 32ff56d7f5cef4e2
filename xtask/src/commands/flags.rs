//! `flags`: the safety flags of the running services, and which of them are wrong.

use crate::base::count::count;
use crate::base::failure::{Exit, fail};
use crate::base::next::Next;
use crate::checks::flags::flags;
use crate::checks::target::Target;
use crate::deploy::event::{Event, Finished};
use crate::deploy::session::Session;
use anyhow::Result;
use serde_json::json;

/// `cargo xtask flags`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  cargo xtask flags")]
pub struct Args {}

/// Exit 1 if a flag is wrong, or could not be read.
pub fn run(session: &Session) -> Result<Finished> {
    let pilot = &session.pilot;
    if pilot.manifest.flags.is_none() {
        let what = "the manifest has no [flags], so there is nothing to check";
        return Err(fail(Exit::Usage, what, "docs/manifest.md says how to add them"));
    }
    let flags = flags(&Target::new(pilot, session.engine.as_ref(), &pilot.env()?)?);
    let out = &session.out;
    let violations = flags.iter().filter(|flag| !flag.ok()).count();
    out.event(&Event::Result { value: &json!({"flags": flags, "violations": violations}) });
    for flag in &flags {
        let is = flag.is.as_deref().unwrap_or("not reported");
        out.say(out.marked(Some(flag.ok()), &format!("{:<8} {:<32} {is}", flag.by(), flag.name)));
        if !flag.ok() {
            out.say(format!("    should be {}", flag.want));
        }
    }
    let words = format!("{}, {}", count(flags.len(), "flag"), count(violations, "violation"));
    out.verdict(format!("\n{}", out.marked(Some(violations == 0), &words)));
    let exit = if violations == 0 { Exit::Ok } else { Exit::NotRestored };
    let next = (violations > 0).then(|| Next::xtask("rollback"));
    Ok(Finished::plain(exit).then(next.as_ref(), out.context()))
}

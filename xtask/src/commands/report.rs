//! `report`: the report of a run, as text; where its page is; opens that. Needs no engine.

use crate::base::deadline::Deadline;
use crate::base::failure::{Exit, fail};
use crate::base::next::Next;
use crate::base::output::Output;
use crate::base::proc::cmd;
use crate::deploy::event::{Event, Finished};
use crate::operations::{history, report};
use crate::stack::pilot::Pilot;
use anyhow::{Context, Result};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// How long the program that opens the page may take to do so.
const OPENING: Duration = Duration::from_secs(10);

/// `cargo xtask report`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask report\n  cargo xtask report 12 --open\n  cargo xtask report > ticket.md"
)]
pub struct Args {
    /// Id of the run, or its number, as `history` shows it [default: the newest]
    run: Option<String>,
    /// Open the page in the browser
    #[arg(long)]
    open: bool,
}

/// Shows it as Markdown, and where the page is.
pub fn run(args: &Args, pilot: &Pilot, out: &Output) -> Result<Finished> {
    let dir = history::named(&pilot.state, args.run.as_deref())?;
    let (text, story) = report::of(&dir)?;
    let page = dir.page();
    out.event(&Event::Result { value: &json!({"report": story, "folder": dir.path()}) });
    out.say(text.trim_end());
    if !page.exists() {
        out.say(format!(
            "\nthis run has no page, because it has not ended; its folder: {}",
            dir.path().display()
        ));
        if args.open {
            let what =
                format!("cannot open the page of run {}: it has none, because it has not ended", story.run);
            return Err(fail(Exit::Usage, what, Next::xtask("history")));
        }
        return Ok(Finished::plain(Exit::Ok));
    }
    out.say(format!("\npage: {}", page.display()));
    if args.open {
        open(&page)?;
    }
    Ok(Finished::plain(Exit::Ok))
}

/// By the program that opens files on this system.
fn open(page: &Path) -> Result<()> {
    let program = ["xdg-open", "open"].into_iter().find_map(|name| which::which(name).ok());
    let Some(program) = program else {
        let what = format!("cannot open {}: neither xdg-open nor open is installed", page.display());
        return Err(fail(Exit::Host, what, "open this file in a browser"));
    };
    let opened = cmd(program, &[&page.display().to_string()]).run(Deadline::after(OPENING));
    opened.with_context(|| format!("cannot open {}", page.display())).map(drop)
}

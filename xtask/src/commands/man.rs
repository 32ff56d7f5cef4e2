//! `man`: the manual pages, made from the command line's own description. Called by `main`, which needs no stack for it.

use crate::base::failure::Exit;
use crate::base::files::{self, Mode};
use crate::base::output::Output;
use crate::deploy::event::{Event, Finished};
use anyhow::{Context, Result};
use serde_json::json;
use std::path::PathBuf;

/// `cargo xtask man`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask man --to ~/.local/share/man/man1\n  cargo xtask man | man -l -\nThen:\n  man xtask\n  man xtask-rollback"
)]
pub struct Args {
    /// Write a page for each command into this folder [default: print the one of `xtask`]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

/// Prints or writes the pages of this command line.
pub fn run(args: &Args, line: clap::Command, out: &Output) -> Result<Finished> {
    let mut line = line.name("xtask").bin_name("xtask").disable_help_subcommand(true);
    line.build();
    let Some(folder) = &args.to else {
        let page = page(&line)?;
        out.event(&Event::Result { value: &json!({"page": page}) });
        out.say(page.trim_end());
        return Ok(Finished::plain(Exit::Ok));
    };
    files::make_folder(folder)?;
    let visible = line.get_subcommands().filter(|command| !command.is_hide_set());
    let mut names = Vec::new();
    for command in std::iter::once(&line).chain(visible) {
        let whole = command.get_bin_name().unwrap_or_else(|| command.get_name()).replace(' ', "-");
        let path = folder.join(format!("{whole}.1"));
        files::write(&path, page(&command.clone().display_name(whole))?.as_bytes(), Mode::Plain)?;
        names.push(path);
    }
    out.event(&Event::Result { value: &json!({"pages": names}) });
    out.say(format!("{} manual pages are in {}", names.len(), folder.display()));
    Ok(Finished::plain(Exit::Ok))
}

/// One page, as roff.
fn page(command: &clap::Command) -> Result<String> {
    let mut bytes = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut bytes).context("cannot make a manual page")?;
    String::from_utf8(bytes).context("a manual page is no text")
}

//! Asking before something is deleted. With no terminal nobody can answer: that is an error which names
//! `--yes`, never a silent yes and never a wait.

use crate::base::failure::{Exit, fail};
use anyhow::{Context, Result};
use std::io::{IsTerminal, Write};

/// Goes on only with `--yes` or a yes at the terminal.
pub fn confirm(yes: bool, what: &str) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        let what = format!("{what}\nthis has to be confirmed, and there is no terminal to ask at");
        return Err(fail(Exit::Usage, what, "the same command with --yes"));
    }
    // Not on standard output, which may be read by a program.
    let mut err = std::io::stderr();
    write!(err, "{what}\ngo on? [y/N] ").and_then(|()| err.flush()).context("cannot ask")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(fail(Exit::Usage, "not confirmed; nothing was changed", ""))
}

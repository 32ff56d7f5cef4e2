//! Asks the user before something is deleted. Without a terminal there is nobody to ask: that is an error
//! which names `--yes`, never a silent yes, and never a wait.

use crate::base::failure::{Exit, fail};
use crate::base::screen;
use anyhow::{Context, Result};
use std::io::{IsTerminal, Write};

/// Returns if the user gave `--yes` or answers yes at the terminal. Otherwise an error (exit 2).
pub fn confirm(yes: bool, what: &str) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        let what = format!("{what}\nthis must be confirmed, and there is no terminal to ask at");
        return Err(fail(Exit::Usage, what, "run the same command with --yes"));
    }
    let _lent = screen::lend();
    // Not to standard output: a program may be reading that.
    let mut err = std::io::stderr();
    write!(err, "{what}\ngo on? [y/N] ")
        .and_then(|()| err.flush())
        .context("cannot write the question to standard error")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer from standard input")?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(fail(Exit::Usage, "not confirmed; nothing was changed", ""))
}

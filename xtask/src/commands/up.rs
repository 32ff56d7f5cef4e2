//! `up`: deploys a new release, from the source or from something else. The work is done in `operations::up`.

use crate::deploy::event::Finished;
use crate::deploy::session::Session;
use crate::operations::candidate::Source;
use crate::operations::up::{self, Options};
use anyhow::Result;

/// `cargo xtask up`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask up\n  cargo xtask up --tag v1.1.0\n  cargo xtask up --from main~1 --stay"
)]
pub struct Args {
    /// Use existing images with this tag instead of building the source
    #[arg(long, conflicts_with = "from")]
    tag: Option<String>,
    /// Build this commit (or label of known-good.toml) in a separate worktree
    #[arg(long, value_name = "REV")]
    from: Option<String>,
    /// Make a new env file from .env.poc.example; the old one is backed up
    #[arg(long)]
    defaults: bool,
    /// If this release fails, leave it as it is behind the closed gate, to look at it; otherwise the release before is
    /// brought back
    #[arg(long)]
    stay: bool,
    /// What `up` does by itself since it watches what it has deployed
    #[arg(long, hide = true)]
    rollback_on_failure: bool,
}

/// Makes the release, starts it, and decides whether it is good.
pub fn run(args: &Args, session: &Session) -> Result<Finished> {
    let source = match (&args.tag, &args.from) {
        (Some(tag), _) => Source::Tag(tag),
        (None, Some(rev)) => Source::Commit(rev),
        (None, None) => Source::Tree,
    };
    let Args { defaults, stay, .. } = *args;
    up::run(&Options { source, defaults, stay }, session)
}

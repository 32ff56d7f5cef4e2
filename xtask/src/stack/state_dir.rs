//! Every path in the state folder (`.pilot/`, or the folder in `PILOT_STATE_DIR`), and the order of runs and
//! backups. No other code names a file or folder in it. Nothing here knows what the files contain.

use crate::base::files;
use crate::stack::layout::Layout;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The state folder of one stack. It need not exist yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// The state folder at this path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The env file of a project other than the default one. It is called as in the folder of the stack.
    pub fn env_file(&self, name: &str) -> PathBuf {
        self.0.join(Path::new(name).file_name().unwrap_or_default())
    }

    /// Locked by the command that changes the stack.
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Locked by the command that is opening the gate.
    pub fn opening(&self) -> PathBuf {
        self.0.join("opening")
    }

    /// Id of the release that runs.
    pub fn current(&self) -> PathBuf {
        self.0.join("current")
    }

    /// The holds, a file each.
    pub fn holds(&self) -> PathBuf {
        self.0.join("holds")
    }

    /// Why the gate was closed, for a gate that cannot tell it.
    pub fn closing(&self) -> PathBuf {
        self.0.join("closing")
    }

    /// What was removed on purpose: lifted holds and old releases.
    pub fn gone(&self) -> PathBuf {
        self.0.join("gone.json")
    }

    /// What is paused while its data is copied, a file for each copy.
    pub fn pauses(&self) -> PathBuf {
        self.0.join("pauses")
    }

    /// A file of an older version that had stopped the gateway.
    pub fn fence(&self) -> PathBuf {
        self.0.join("fence.json")
    }

    /// The releases, a folder each.
    pub fn releases(&self) -> PathBuf {
        self.0.join("releases")
    }

    /// Folder of a release.
    pub fn release(&self, id: &str) -> PathBuf {
        self.releases().join(id)
    }

    /// The compose files that pin the services of releases.
    pub fn pins(&self) -> PathBuf {
        self.0.join("pins")
    }

    /// The compose file that pins the services of a release.
    pub fn pin(&self, release: &str) -> PathBuf {
        self.pins().join(format!("{release}.json"))
    }

    /// What services mount from releases: a folder for each content, by its checksum. The path is the one that
    /// Compose gets, so it does not depend on how the state folder was named.
    pub fn mounted(&self) -> PathBuf {
        files::real_path(&self.0).join("mounted")
    }

    /// What images consist of.
    pub fn blobs(&self) -> PathBuf {
        self.0.join("blobs")
    }

    /// A part of images, by its checksum.
    pub fn blob(&self, sum: &str) -> PathBuf {
        self.blobs().join(sum)
    }

    /// The archives of images that older versions have made.
    pub fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    /// The archive of an image, by its content id.
    pub fn image(&self, id: &str) -> PathBuf {
        self.images().join(format!("{}.tar", id.trim_start_matches("sha256:")))
    }

    /// The xtask of a release, by its checksum.
    pub fn program(&self, sum: &str) -> PathBuf {
        self.0.join("bin").join(sum)
    }

    /// A link to the xtask of the newest release.
    pub fn newest_program(&self) -> PathBuf {
        self.0.join("xtask")
    }

    /// Where an import unpacks an archive. The name has the process id.
    pub fn import(&self) -> PathBuf {
        self.0.join(format!("import.{}.new", std::process::id()))
    }

    /// The folders of imports that were cut off, or that run now.
    pub fn imports(&self) -> Result<Vec<PathBuf>> {
        let names = files::names(&self.0)?;
        let own = names.iter().filter(|name| name.starts_with("import.") && name.ends_with(".new"));
        Ok(own.map(|name| self.0.join(name)).collect())
    }

    /// Checkouts of other commits, a folder each.
    pub fn worktrees(&self) -> PathBuf {
        self.0.join("worktrees")
    }

    /// Everything of the process engine.
    pub fn process(&self) -> PathBuf {
        files::real_path(&self.0).join("process")
    }

    /// Backups that a user made, a folder each.
    pub fn backups(&self) -> PathBuf {
        self.0.join("backups")
    }

    /// What belongs to the repository off the host: a second ledger, whose lock is held while backups are sent or
    /// fetched.
    pub fn remote(&self) -> Self {
        Self(self.0.join("remote"))
    }

    /// In that folder: where a backup is fetched to before it is verified. The name has the process id, because what a
    /// killed command has started may still write to its own.
    pub fn fetched(&self) -> PathBuf {
        self.0.join(format!("fetched.{}", std::process::id()))
    }

    /// The same of every command, also of those that were killed.
    pub fn every_fetched(&self) -> Result<Vec<PathBuf>> {
        let names = files::names(&self.0)?;
        Ok(names.iter().filter(|name| name.starts_with("fetched.")).map(|name| self.0.join(name)).collect())
    }

    /// In that folder: the repository that backups were sent to last.
    pub fn sent_to(&self) -> PathBuf {
        self.0.join("sent-to.json")
    }

    /// Runs, a folder each.
    pub fn runs(&self) -> PathBuf {
        self.0.join("rollbacks")
    }

    /// Exported releases.
    pub fn exports(&self) -> PathBuf {
        self.0.join("exports")
    }

    /// Evidence that a user asked for, a folder each.
    pub fn evidence(&self) -> PathBuf {
        self.0.join("evidence")
    }

    /// The files that prometheus and grafana are started with.
    pub fn observability(&self) -> PathBuf {
        self.0.join("observability")
    }

    /// The metrics file of `snapshot`.
    pub fn snapshot(&self) -> PathBuf {
        self.0.join("pilot-metrics.json")
    }

    /// What was done to the stack, one line for each command; and the lines before that, once it is full.
    pub fn audit(&self) -> [PathBuf; 2] {
        ["audit.log", "audit.log.1"].map(|name| self.0.join(name))
    }

    /// What is counted for Prometheus, and the file that is locked meanwhile.
    pub fn counts(&self) -> [PathBuf; 2] {
        ["counts.json", "counts.lock"].map(|name| self.0.join(name))
    }

    /// State folders of drills.
    pub fn drills(&self) -> PathBuf {
        self.0.join("drills")
    }

    /// State folders of other projects.
    pub fn projects(&self) -> PathBuf {
        self.0.join("projects")
    }

    /// In the state folder of a drill: a second ledger, whose lock is held while the drill runs.
    pub fn drill(&self) -> Self {
        Self(self.0.join("drill"))
    }

    /// In the state folder of a drill: which engine it uses.
    pub fn drill_engine(&self) -> PathBuf {
        self.0.join("engine")
    }

    /// In the state folder of a drill: the user wants to keep it.
    pub fn drill_kept(&self) -> PathBuf {
        self.0.join("kept")
    }

    /// In the state folder of a drill: the files of its stack, if they are not those of the real one.
    pub fn drill_stack(&self) -> PathBuf {
        self.0.join("stack")
    }

    /// In the state folder of a drill: what was deployed by hand.
    pub fn by_hand(&self) -> PathBuf {
        self.0.join("by-hand")
    }

    /// The id of the next run or backup: one more than the highest number of any run or backup, and the time.
    pub fn next_id(&self) -> Result<String> {
        let runs = self.every_run()?.last().map_or(0, |(number, _)| *number);
        let backups = files::names(&self.backups())?;
        let backups = backups.iter().map(|name| number(name.trim_start_matches('.'))).max().unwrap_or(0);
        Ok(format!("{:04}-{}", runs.max(backups) + 1, files::stamp()))
    }

    /// Makes the folder of a new run in the state folder. If that fails (a full disk), in the fallback
    /// folder. `fill` writes the request.
    pub fn new_run(&self, fill: impl Fn(&RunDir) -> Result<()>) -> Result<RunDir> {
        let id = self.next_id()?;
        let make = |dir: PathBuf| {
            files::make_private_folder(&dir)?;
            let run = RunDir(dir);
            fill(&run)?;
            Ok::<_, anyhow::Error>(run)
        };
        let own = self.runs().join(&id);
        make(own.clone()).or_else(|error| {
            files::remove(&own).ok();
            let folder = files::own_temporary(&self.fallback_purpose());
            make(folder.with_context(|| format!("{error:#}"))?.join(&id))
                .with_context(|| format!("{error:#}"))
        })
    }

    /// The folders of all runs, in order, also those in the fallback folder. Runs without a number (of
    /// older versions) come first.
    pub fn every_run(&self) -> Result<Vec<(u64, RunDir)>> {
        let mut all = Vec::new();
        for folder in std::iter::once(self.runs()).chain(self.fallbacks()) {
            let names = files::names(&folder)?;
            let own = names.iter().filter(|name| !name.starts_with('.'));
            all.extend(own.map(|name| (number(name), RunDir(folder.join(name)))));
        }
        all.sort_by(|a, b| (a.0, &a.1.0).cmp(&(b.0, &b.1.0)));
        Ok(all)
    }

    /// The paths of every env file that may exist: of releases, backups and runs.
    pub fn every_env_file(&self, layout: &Layout) -> Vec<PathBuf> {
        let older = Layout::default();
        let names: BTreeSet<&String> = layout.private().chain(older.private()).collect();
        let each = |folder: PathBuf| {
            let inner = files::names(&folder).unwrap_or_default().into_iter().map(|name| folder.join(name));
            inner
                .flat_map(|dir| names.iter().map(move |name| dir.join(name)).collect::<Vec<_>>())
                .collect::<Vec<_>>()
        };
        let runs = self.every_run().unwrap_or_default().into_iter().map(|(_, run)| run.0);
        [self.releases(), self.backups()].into_iter().chain(runs).flat_map(each).collect()
    }

    /// Where the runs are that found no room here.
    pub fn fallbacks(&self) -> Vec<PathBuf> {
        files::own_temporaries(&self.fallback_purpose())
    }

    fn fallback_purpose(&self) -> String {
        format!("pilot-runs-{}", &files::sha256_bytes(self.0.display().to_string().as_bytes())[..12])
    }
}

/// The number at the start of the id of a run or backup; 0 for a run of an older
/// version, whose id is only a time.
pub fn number(id: &str) -> u64 {
    id.split_once('-').and_then(|(number, _)| number.parse().ok()).unwrap_or(0)
}

/// The id of a backup of a run, as users write it: the id of the run for its first (folder `backup`), `ID.2`
/// for `backup-2`. Nothing for any other folder.
pub fn backup_id(run: &str, folder: &Path) -> Option<String> {
    let name = folder.file_name()?.to_str()?;
    let n = match name.strip_prefix("backup-") {
        None if name == "backup" => String::new(),
        None => return None,
        Some(n) => format!(".{}", n.parse::<u32>().ok()?),
    };
    Some(format!("{run}{n}"))
}

/// The files in the folder of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// The run in this folder.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The run's id.
    pub fn id(&self) -> String {
        self.0.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// What the user asked for.
    pub fn request(&self) -> PathBuf {
        self.0.join("request.json")
    }

    /// The journal: one event a line.
    pub fn journal(&self) -> PathBuf {
        self.0.join("journal.jsonl")
    }

    /// How the run ended. The file exists once it has ended.
    pub fn report(&self) -> PathBuf {
        self.0.join("report.json")
    }

    /// The report for people.
    pub fn page(&self) -> PathBuf {
        self.0.join("report.html")
    }

    /// The report to paste into the page of an incident.
    pub fn markdown(&self) -> PathBuf {
        self.0.join("report.md")
    }

    /// The report for CI.
    pub fn junit(&self) -> PathBuf {
        self.0.join("report.xml")
    }

    /// The evidence: what there was before the run changed anything.
    pub fn evidence(&self) -> PathBuf {
        self.0.join("evidence")
    }

    /// The evidence of a run that failed after it had changed something: what there was at its end.
    pub fn evidence_of_the_end(&self) -> PathBuf {
        self.0.join("evidence-at-the-end")
    }

    /// Marks a failed run whose backups may have the only copy of some data.
    pub fn owes(&self) -> PathBuf {
        self.0.join("owes-data")
    }

    /// Marks a run that was given up.
    pub fn given_up(&self) -> PathBuf {
        self.0.join("given-up")
    }

    /// An env file that was edited between its backup and its replacement.
    pub fn edited_env_file(&self) -> PathBuf {
        self.0.join("env-file-edited-meanwhile")
    }

    /// Its n-th backup, from 1.
    pub fn backup(&self, n: u32) -> PathBuf {
        self.0.join(if n == 1 { "backup".to_owned() } else { format!("backup-{n}") })
    }

    /// Its backups, also unfinished ones, with their ids.
    pub fn backups(&self) -> Result<Vec<(String, PathBuf)>> {
        let run = self.id();
        let dirs = files::names(&self.0)?.into_iter().map(|name| self.0.join(name));
        Ok(dirs.filter_map(|dir| Some((backup_id(&run, &dir)?, dir))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_the_number_and_runs_without_one_come_first() {
        assert_eq!(number("0012-20261124T084736659"), 12);
        assert_eq!(number("20261124T084736659"), 0);
        assert_eq!(backup_id("0012-x", Path::new("/a/backup")).as_deref(), Some("0012-x"));
        assert_eq!(backup_id("0012-x", Path::new("/a/backup-2")).as_deref(), Some("0012-x.2"));
        assert_eq!(backup_id("0012-x", Path::new("/a/evidence")), None);
    }
}

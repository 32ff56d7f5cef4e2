//! What is on the disk after a power cut: the data of a file once the file is synced, its name once the folder is synced
//! that it is in. Nothing here makes or reads a file. Called by `files`, which gives it to everybody.

use anyhow::{Context, Result};
use std::fs::File;
use std::path::Path;

/// Makes the entries of a folder durable: what was created in it, renamed and removed.
pub fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).with_context(|| format!("cannot sync {}", folder.display()))
}

/// Makes what another program has written to a regular file durable.
pub fn sync(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("cannot sync {}", path.display()))
}

/// Makes a folder durable with all files and folders below it. Links and special files are entries, and no more.
pub fn sync_below(folder: &Path) -> Result<()> {
    let cannot = || format!("cannot read {}", folder.display());
    for entry in std::fs::read_dir(folder).with_context(cannot)? {
        let entry = entry.with_context(cannot)?;
        let kind = entry.file_type().with_context(cannot)?;
        if kind.is_dir() {
            sync_below(&entry.path())?;
        } else if kind.is_file() {
            sync(&entry.path())?;
        }
    }
    sync_folder(folder)
}

/// Renames a file or folder, durably: what it is called after this it is called after a power cut. An error of the
/// rename itself leaves both as they were.
pub fn rename(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::rename(from, to)?;
    let folders = [to, from].map(|path| path.parent().filter(|folder| !folder.as_os_str().is_empty()));
    let [into, out_of] = folders.map(|folder| folder.unwrap_or(Path::new(".")));
    File::open(into)?.sync_all()?;
    if into == out_of { Ok(()) } else { File::open(out_of)?.sync_all() }
}

//! The tree as a file system that the kernel has mounted. At a chosen change it stops: that change and all that
//! follows fail, until the power is back. Nothing here knows what the files mean.

use crate::pilot::Random;
use crate::power::tree::{Body, Data, Folder, Node, Number, Tree};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// The kernel asks again each time: after a power cut nothing that it remembers is so.
const NOT_REMEMBERED: Duration = Duration::ZERO;

/// What the disk has room for, and has room for still, in blocks.
const ROOM: u64 = 4 << 20;
const BLOCK: u32 = 4096;

/// A disk that is mounted until this is dropped.
pub struct Disk {
    at: PathBuf,
    inside: Arc<Mutex<Inside>>,
    session: Option<BackgroundSession>,
}

struct Inside {
    tree: Tree,
    /// Changes so far.
    changes: usize,
    /// The same when it stopped.
    counted: usize,
    /// The number of the change at which everything stops.
    stop_at: Option<usize>,
    /// What it was, once it has stopped.
    stopped: Option<String>,
    /// Folders that are being read, with what was in them when they were opened.
    listings: BTreeMap<u64, Vec<(Number, FileType, std::ffi::OsString)>>,
}

impl Disk {
    /// An empty one at this path.
    pub fn mount(at: &Path) -> Self {
        let inside = Inside {
            tree: Tree::new(),
            changes: 0,
            counted: 0,
            stop_at: None,
            stopped: None,
            listings: BTreeMap::new(),
        };
        let inside = Arc::new(Mutex::new(inside));
        std::fs::create_dir_all(at).unwrap();
        let mut options = Config::default();
        options.mount_options = vec![MountOption::FSName("power-cut".into()), MountOption::Exec];
        let session = fuser::spawn_mount(Kernel(inside.clone()), at, &options);
        Self { at: at.to_owned(), inside, session: Some(session.unwrap()) }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that is on it at this moment, to come back to.
    pub fn remember(&self) -> Tree {
        self.inside().tree.clone()
    }

    /// Brings back what was remembered. No program may have a file open.
    pub fn bring_back(&self, tree: &Tree) {
        let mut inside = self.inside();
        inside.tree = tree.again(&inside.tree);
        inside.stopped = None;
    }

    /// Everything is synced, and from now on changes are counted: the one with this number is the first that does not
    /// happen.
    pub fn stop_at(&self, change: usize) {
        let mut inside = self.inside();
        inside.tree.sync_all();
        inside.changes = 0;
        inside.stop_at = Some(change);
    }

    /// At what it stopped; nothing while it works.
    pub fn stopped(&self) -> Option<String> {
        self.inside().stopped.clone()
    }

    /// From now on everything fails, and no change is counted.
    pub fn stop(&self) {
        let mut inside = self.inside();
        inside.counted = inside.changes;
        inside.stopped.get_or_insert_with(|| "the end".into());
    }

    /// The power is back. No program may have a file open.
    pub fn power_cut(&self, random: &mut Random) {
        let mut inside = self.inside();
        inside.tree.cut(random);
        inside.stop_at = None;
        inside.stopped = None;
    }

    /// How many changes there were from when they were counted until it stopped.
    pub fn so_many(&self) -> usize {
        self.inside().counted
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.inside().stopped = None;
        let unmounted = self.session.take().is_none_or(|session| session.umount_and_join().is_ok());
        if !unmounted {
            // Something has a file open: it goes when that is closed.
            Command::new("umount").arg("--lazy").arg(&self.at).status().ok();
        }
    }
}

type Done<T> = Result<T, Errno>;

impl Inside {
    fn works(&self) -> Done<()> {
        if self.stopped.is_some() { Err(Errno::EIO) } else { Ok(()) }
    }

    /// Before each change; the last one does not happen.
    fn change(&mut self, what: &str, number: Number, name: &OsStr) -> Done<()> {
        self.works()?;
        self.changes += 1;
        if self.stop_at.is_some_and(|last| self.changes >= last) {
            let path = self.tree.path(number);
            let path = if name.is_empty() { path } else { path.join(name) };
            self.stopped = Some(format!("{what} {}", path.display()));
            self.stop_at = None;
        }
        self.works()
    }

    fn node(&self, number: Number) -> Done<&Node> {
        self.works()?;
        self.tree.node(number).ok_or(Errno::ENOENT)
    }

    fn attributes(&self, number: Number) -> Done<FileAttr> {
        let node = self.node(number)?;
        Ok(FileAttr {
            ino: INodeNo(number),
            size: node.length(),
            blocks: node.length().div_ceil(512),
            atime: node.changed,
            mtime: node.changed,
            ctime: node.changed,
            crtime: node.changed,
            kind: kind(node),
            perm: node.mode,
            nlink: node.names,
            uid: node.owner.0,
            gid: node.owner.1,
            rdev: 0,
            blksize: BLOCK,
            flags: 0,
        })
    }

    fn find(&self, folder: Number, name: &OsStr) -> Done<Number> {
        self.node(folder)?;
        self.tree.find(folder, name).ok_or(Errno::ENOENT)
    }

    fn make(&mut self, what: &str, folder: Number, name: &OsStr, node: Node) -> Done<FileAttr> {
        if self.find(folder, name).is_ok() {
            return Err(Errno::EEXIST);
        }
        self.change(what, folder, name)?;
        let number = self.tree.make(folder, name, node);
        self.attributes(number)
    }

    fn remove(&mut self, what: &str, folder: Number, name: &OsStr) -> Done<()> {
        let number = self.find(folder, name)?;
        if self.tree.folder(number).is_some_and(|folder| !folder.now.is_empty()) {
            return Err(Errno::ENOTEMPTY);
        }
        self.change(what, folder, name)?;
        self.tree.set(vec![(folder, name.to_owned(), None)]);
        Ok(())
    }

    fn rename(&mut self, from: (Number, &OsStr), to: (Number, &OsStr), flags: RenameFlags) -> Done<()> {
        let moved = self.find(from.0, from.1)?;
        let there = self.find(to.0, to.1).ok();
        if there.is_some() && flags.contains(RenameFlags::RENAME_NOREPLACE) {
            return Err(Errno::EEXIST);
        }
        let exchange = flags.contains(RenameFlags::RENAME_EXCHANGE);
        let full = there.and_then(|number| self.tree.folder(number)).is_some_and(|f| !f.now.is_empty());
        match there {
            None if exchange => return Err(Errno::ENOENT),
            Some(_) if full && !exchange => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        self.change(if exchange { "exchange" } else { "rename" }, from.0, from.1)?;
        let left = if exchange { there } else { None };
        self.tree.set(vec![(from.0, from.1.to_owned(), left), (to.0, to.1.to_owned(), Some(moved))]);
        Ok(())
    }

    fn sync(&mut self, number: Number) -> Done<()> {
        self.change("sync", number, OsStr::new(""))?;
        self.tree.sync(number);
        Ok(())
    }

    fn list(&mut self, number: Number) -> Done<FileHandle> {
        self.node(number)?;
        let folder = self.tree.folder(number).ok_or(Errno::ENOTDIR)?;
        let entry = |(name, number): (&std::ffi::OsString, &Number)| {
            (*number, self.tree.node(*number).map_or(FileType::RegularFile, kind), name.clone())
        };
        let all = folder.now.iter().map(entry).collect();
        let handle = self.listings.last_key_value().map_or(1, |(last, _)| last + 1);
        self.listings.insert(handle, all);
        Ok(FileHandle(handle))
    }
}

fn kind(node: &Node) -> FileType {
    match node.body {
        Body::File(_) => FileType::RegularFile,
        Body::Folder(_) => FileType::Directory,
        Body::Link(_) => FileType::Symlink,
    }
}

/// The side of the kernel.
struct Kernel(Arc<Mutex<Inside>>);

impl Kernel {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entry(done: Done<FileAttr>, reply: ReplyEntry) {
    match done {
        Ok(attributes) => reply.entry(&NOT_REMEMBERED, &attributes, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn attr(done: Done<FileAttr>, reply: ReplyAttr) {
    match done {
        Ok(attributes) => reply.attr(&NOT_REMEMBERED, &attributes),
        Err(error) => reply.error(error),
    }
}

fn empty(done: Done<()>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn file(mode: u32, umask: u32, body: Body) -> Node {
    Node::new(body, (mode & !umask & 0o7777) as u16)
}

impl Filesystem for Kernel {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let inside = self.inside();
        entry(inside.find(parent.0, name).and_then(|number| inside.attributes(number)), reply);
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        attr(self.inside().attributes(number.0), reply);
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        changed: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut inside = self.inside();
        let mut set = || {
            inside.works()?;
            if let Some(size) = size {
                inside.change("set the length of", number.0, OsStr::new(""))?;
                inside.tree.set_length(number.0, size);
            }
            let node = inside.tree.node_mut(number.0).ok_or(Errno::ENOENT)?;
            node.mode = mode.map_or(node.mode, |mode| (mode & 0o7777) as u16);
            node.owner = (uid.unwrap_or(node.owner.0), gid.unwrap_or(node.owner.1));
            node.changed = match changed {
                Some(TimeOrNow::SpecificTime(time)) => time,
                Some(TimeOrNow::Now) => SystemTime::now(),
                None => node.changed,
            };
            inside.attributes(number.0)
        };
        attr(set(), reply);
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        match self.inside().node(number.0).map(|node| &node.body) {
            Ok(Body::Link(to)) => reply.data(to.as_os_str().as_encoded_bytes()),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let node = file(mode, umask, Body::Folder(Folder::default()));
        entry(self.inside().make("make the folder", parent.0, name, node), reply);
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let node = file(0o777, 0, Body::Link(target.to_owned()));
        entry(self.inside().make("make the link", parent.0, name, node), reply);
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let node = file(mode, umask, Body::File(Data::default()));
        match self.inside().make("create", parent.0, name, node) {
            Ok(attributes) => {
                let (generation, handle) = (Generation(0), FileHandle(0));
                reply.created(&NOT_REMEMBERED, &attributes, generation, handle, FopenFlags::empty());
            }
            Err(error) => reply.error(error),
        }
    }

    fn link(&self, _: &Request, number: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut inside = self.inside();
        let mut link = || {
            if inside.find(parent.0, name).is_ok() {
                return Err(Errno::EEXIST);
            }
            inside.change("give a second name", parent.0, name)?;
            inside.tree.set(vec![(parent.0, name.to_owned(), Some(number.0))]);
            inside.attributes(number.0)
        };
        entry(link(), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.inside().remove("remove", parent.0, name), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.inside().remove("remove the folder", parent.0, name), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        empty(self.inside().rename((parent.0, name), (new_parent.0, new_name), flags), reply);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.inside().works() {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.inside().node(number.0).map(|node| &node.body) {
            Ok(Body::File(data)) => {
                let from = data.now.len().min(offset as usize);
                let to = data.now.len().min(from + size as usize);
                reply.data(&data.now[from..to]);
            }
            Ok(_) => reply.error(Errno::EISDIR),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut inside = self.inside();
        match inside.change("write to", number.0, OsStr::new("")) {
            Ok(()) if inside.tree.write(number.0, offset, data) => reply.written(data.len() as u32),
            Ok(()) => reply.error(Errno::ENOENT),
            Err(error) => reply.error(error),
        }
    }

    fn fsync(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(self.inside().sync(number.0), reply);
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(self.inside().sync(number.0), reply);
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.inside().list(number.0) {
            Ok(handle) => reply.opened(handle, FopenFlags::empty()),
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let inside = self.inside();
        let all = inside.listings.get(&handle.0).map_or(&[][..], Vec::as_slice);
        for (at, (number, kind, name)) in all.iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(*number), at as u64 + 1, *kind, name) {
                break;
            }
        }
        match inside.works() {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.inside().listings.remove(&handle.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(ROOM, ROOM, ROOM, ROOM, ROOM, BLOCK, 255, BLOCK);
    }
}

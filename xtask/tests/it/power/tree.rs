//! What a disk holds, twice: as programs see it now, and as it would be after a power cut. No kernel here: `disk`
//! mounts it.
//!
//! It promises what POSIX does and no more. A sync of a file keeps its data; a sync of a folder keeps its entries; a
//! rename is kept as a whole or not at all. Of the rest a power cut keeps what chance wants: nothing, all, what came
//! first, or some of it.

use crate::pilot::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

/// The number of a file or folder. None is used again after a power cut, so that the kernel mistakes no new file for
/// an old one.
pub type Number = u64;

/// The number of the topmost folder.
pub const ROOT: Number = 1;

type Entries = BTreeMap<OsString, Number>;

/// One entry of a folder that is set, or removed.
type Entry = (Number, OsString, Option<Number>);

/// A change to the data of a file.
#[derive(Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

/// The data of a file.
#[derive(Clone, Default)]
pub struct Data {
    pub now: Arc<Vec<u8>>,
    synced: Arc<Vec<u8>>,
    /// What came after the last sync.
    since: Vec<Change>,
}

/// The entries of a folder.
#[derive(Clone, Default)]
pub struct Folder {
    pub now: Entries,
    synced: Entries,
}

#[derive(Clone)]
pub enum Body {
    File(Data),
    Folder(Folder),
    Link(PathBuf),
}

/// A file, folder or link. Mode, owner and time are always kept.
#[derive(Clone)]
pub struct Node {
    pub body: Body,
    pub mode: u16,
    pub owner: (u32, u32),
    pub changed: SystemTime,
    /// How many entries name it.
    pub names: u32,
}

#[derive(Clone)]
pub struct Tree {
    nodes: BTreeMap<Number, Node>,
    /// Changes to entries that no sync has kept, in their order. Each is kept as a whole.
    pending: Vec<Vec<Entry>>,
    next: Number,
}

impl Change {
    fn apply(&self, data: &mut Vec<u8>) {
        match self {
            Self::Length(length) => data.resize(*length as usize, 0),
            Self::Write(at, bytes) => {
                let (from, to) = (*at as usize, *at as usize + bytes.len());
                if data.len() < to {
                    data.resize(to, 0);
                }
                data[from..to].copy_from_slice(bytes);
            }
        }
    }
}

impl Data {
    fn change(&mut self, change: Change) {
        change.apply(Arc::make_mut(&mut self.now));
        self.since.push(change);
    }

    fn sync(&mut self) {
        self.synced = self.now.clone();
        self.since.clear();
    }

    /// What a power cut leaves of it.
    fn cut(&self, random: &mut Random) -> Arc<Vec<u8>> {
        if self.since.is_empty() {
            return self.synced.clone();
        }
        let mut data = Vec::clone(&self.synced);
        match random.below(5) {
            0 => {}
            1 => return self.now.clone(),
            // The length is kept, and the data is not.
            2 => data.resize(self.now.len(), 0),
            3 => {
                let kept = random.below(self.since.len() as u64 + 1) as usize;
                self.since[..kept].iter().for_each(|change| change.apply(&mut data));
            }
            _ => {
                let kept = self.since.iter().filter(|_| random.below(2) == 0);
                kept.for_each(|change| change.apply(&mut data));
            }
        }
        Arc::new(data)
    }
}

impl Tree {
    pub fn new() -> Self {
        let root = Node::new(Body::Folder(Folder::default()), 0o755);
        Self { nodes: [(ROOT, root)].into(), pending: Vec::new(), next: ROOT + 1 }
    }

    pub fn node(&self, number: Number) -> Option<&Node> {
        self.nodes.get(&number)
    }

    pub fn node_mut(&mut self, number: Number) -> Option<&mut Node> {
        self.nodes.get_mut(&number)
    }

    pub fn folder(&self, number: Number) -> Option<&Folder> {
        match &self.nodes.get(&number)?.body {
            Body::Folder(folder) => Some(folder),
            _ => None,
        }
    }

    fn folder_mut(&mut self, number: Number) -> Option<&mut Folder> {
        match &mut self.nodes.get_mut(&number)?.body {
            Body::Folder(folder) => Some(folder),
            _ => None,
        }
    }

    fn data_mut(&mut self, number: Number) -> Option<&mut Data> {
        let node = self.nodes.get_mut(&number)?;
        node.changed = SystemTime::now();
        match &mut node.body {
            Body::File(data) => Some(data),
            _ => None,
        }
    }

    /// What is called so in a folder.
    pub fn find(&self, folder: Number, name: &OsStr) -> Option<Number> {
        self.folder(folder)?.now.get(name).copied()
    }

    /// Makes something new in a folder.
    pub fn make(&mut self, folder: Number, name: &OsStr, node: Node) -> Number {
        let number = self.next;
        self.next += 1;
        self.nodes.insert(number, node);
        self.set(vec![(folder, name.to_owned(), Some(number))]);
        number
    }

    /// Changes entries, all of them or none.
    pub fn set(&mut self, entries: Vec<Entry>) {
        for (folder, name, to) in &entries {
            if let Some(number) = to {
                self.nodes.get_mut(number).unwrap().names += 1;
            }
            let now = &mut self.folder_mut(*folder).unwrap().now;
            let before = match to {
                Some(number) => now.insert(name.clone(), *number),
                None => now.remove(name),
            };
            if let Some(before) = before {
                self.nodes.get_mut(&before).unwrap().names -= 1;
            }
            self.nodes.get_mut(folder).unwrap().changed = SystemTime::now();
        }
        self.pending.push(entries);
    }

    /// Writes to a file. False if it is none.
    pub fn write(&mut self, number: Number, at: u64, bytes: &[u8]) -> bool {
        self.data_mut(number).map(|data| data.change(Change::Write(at, bytes.to_vec()))).is_some()
    }

    /// Sets the length of a file. False if it is none.
    pub fn set_length(&mut self, number: Number, length: u64) -> bool {
        self.data_mut(number).map(|data| data.change(Change::Length(length))).is_some()
    }

    /// Keeps the data of a file, or the entries of a folder.
    pub fn sync(&mut self, number: Number) {
        match self.nodes.get_mut(&number).map(|node| &mut node.body) {
            Some(Body::File(data)) => data.sync(),
            Some(Body::Folder(_)) => {
                let here = |change: &[Entry]| change.iter().any(|(folder, ..)| *folder == number);
                let chosen: Vec<bool> = self.pending.iter().map(|change| here(change)).collect();
                let kept = self.with_what_they_need(&chosen);
                self.keep(&kept);
            }
            _ => {}
        }
    }

    /// Keeps everything, as a disk does that is left alone for a while.
    pub fn sync_all(&mut self) {
        let all: Vec<Number> = self.nodes.keys().copied().collect();
        all.into_iter().for_each(|number| self.sync(number));
    }

    /// The pending changes that are chosen, and those before them that have set the same entries: no disk keeps what
    /// came later and forgets what it came from.
    fn with_what_they_need(&self, chosen: &[bool]) -> BTreeSet<usize> {
        let mut entries = BTreeSet::new();
        let mut kept = BTreeSet::new();
        for (at, change) in self.pending.iter().enumerate().rev() {
            let same = change.iter().any(|(folder, name, _)| entries.contains(&(*folder, name)));
            if same || chosen[at] {
                kept.insert(at);
                entries.extend(change.iter().map(|(folder, name, _)| (*folder, name)));
            }
        }
        kept
    }

    fn keep(&mut self, kept: &BTreeSet<usize>) {
        for (at, change) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            if !kept.contains(&at) {
                self.pending.push(change);
                continue;
            }
            for (folder, name, to) in change {
                let synced = &mut self.folder_mut(folder).unwrap().synced;
                match to {
                    Some(number) => synced.insert(name, number),
                    None => synced.remove(&name),
                };
            }
        }
    }

    /// The power is off: what was not synced is gone, or not.
    pub fn cut(&mut self, random: &mut Random) {
        let so_many = self.pending.len();
        let kept = match random.below(4) {
            0 => BTreeSet::new(),
            1 => (0..so_many).collect(),
            2 => (0..random.below(so_many as u64 + 1) as usize).collect(),
            _ => {
                let lot: Vec<bool> = self.pending.iter().map(|_| random.below(2) == 0).collect();
                self.with_what_they_need(&lot)
            }
        };
        self.keep(&kept);
        self.pending.clear();
        let old = std::mem::take(&mut self.nodes);
        self.take_over(&old, ROOT, ROOT, random);
    }

    /// The same tree under numbers of its own, all of it synced.
    pub fn again(&self, after: &Self) -> Self {
        let mut tree = self.clone();
        tree.sync_all();
        tree.next = after.next;
        tree.cut(&mut Random::of(0));
        tree
    }

    fn take_over(&mut self, old: &BTreeMap<Number, Node>, from: Number, to: Number, random: &mut Random) {
        let mut node = old[&from].clone();
        node.names = 1;
        match &mut node.body {
            Body::Link(_) => {}
            Body::File(data) => {
                let left = data.cut(random);
                *data = Data { now: left.clone(), synced: left, since: Vec::new() };
            }
            Body::Folder(folder) => {
                for number in folder.synced.values_mut() {
                    let new = self.next;
                    self.next += 1;
                    self.take_over(old, *number, new, random);
                    *number = new;
                }
                folder.now = folder.synced.clone();
            }
        }
        self.nodes.insert(to, node);
    }

    /// The path of something that has a name now, for messages.
    pub fn path(&self, number: Number) -> PathBuf {
        let mut open = vec![(ROOT, PathBuf::new())];
        while let Some((at, path)) = open.pop() {
            if at == number {
                return path;
            }
            let below = self.folder(at).into_iter().flat_map(|folder| &folder.now);
            open.extend(below.map(|(name, number)| (*number, path.join(name))));
        }
        PathBuf::from("(a file without a name)")
    }
}

impl Node {
    pub fn new(body: Body, mode: u16) -> Self {
        Self { body, mode, owner: (0, 0), changed: SystemTime::now(), names: 0 }
    }

    /// Bytes of a file.
    pub fn length(&self) -> u64 {
        match &self.body {
            Body::File(data) => data.now.len() as u64,
            Body::Folder(_) => 0,
            Body::Link(to) => to.as_os_str().len() as u64,
        }
    }
}

/// What a file has after each of many power cuts; nothing if it is not there.
fn after_cuts(tree: &Tree, path: &[&str]) -> BTreeSet<Option<Vec<u8>>> {
    let after = |seed| {
        let mut tree = tree.clone();
        tree.cut(&mut Random::of(seed));
        let at = path.iter().try_fold(ROOT, |folder, name| tree.find(folder, OsStr::new(name)))?;
        match &tree.node(at)?.body {
            Body::File(data) => Some(Vec::clone(&data.now)),
            _ => None,
        }
    };
    (0..200).map(after).collect()
}

#[test]
fn a_power_cut_keeps_what_was_synced_and_no_more_than_there_was() {
    let set = |all: &[Option<&str>]| all.iter().map(|one| one.map(|text| text.as_bytes().to_vec())).collect();
    let (mut tree, name) = (Tree::new(), OsStr::new("file"));
    let folder = tree.make(ROOT, OsStr::new("folder"), Node::new(Body::Folder(Folder::default()), 0o755));
    let file = tree.make(folder, name, Node::new(Body::File(Data::default()), 0o644));
    tree.write(file, 0, b"old");
    let torn: BTreeSet<_> = set(&[None, Some(""), Some("\0\0\0"), Some("old")]);
    assert_eq!(after_cuts(&tree, &["folder", "file"]), torn);
    // Its data alone, and its entry in a folder that has none.
    tree.sync(file);
    tree.sync(folder);
    assert_eq!(after_cuts(&tree, &["folder", "file"]), set(&[None, Some("old")]));
    tree.sync(ROOT);
    assert_eq!(after_cuts(&tree, &["folder", "file"]), set(&[Some("old")]));
    // A rename over it without a sync of what is renamed, as careless programs do it.
    let new = tree.make(folder, OsStr::new("new"), Node::new(Body::File(Data::default()), 0o644));
    tree.write(new, 0, b"new");
    tree.set(vec![(folder, "new".into(), None), (folder, name.to_owned(), Some(new))]);
    let careless = set(&[Some("old"), Some(""), Some("\0\0\0"), Some("new")]);
    assert_eq!(after_cuts(&tree, &["folder", "file"]), careless);
    tree.sync(new);
    assert_eq!(after_cuts(&tree, &["folder", "file"]), set(&[Some("old"), Some("new")]));
    // Into another folder: the sync of one keeps both sides.
    tree.sync(folder);
    tree.set(vec![(folder, name.to_owned(), None), (ROOT, "moved".into(), Some(new))]);
    for seed in 0..200 {
        let mut tree = tree.clone();
        tree.cut(&mut Random::of(seed));
        let there = tree.find(ROOT, OsStr::new("folder")).and_then(|folder| tree.find(folder, name));
        assert!(there.is_some() != tree.find(ROOT, OsStr::new("moved")).is_some(), "seed {seed}");
    }
    tree.sync(folder);
    assert_eq!(after_cuts(&tree, &["moved"]), set(&[Some("new")]));
}

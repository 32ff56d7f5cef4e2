//! What images consist of, each part stored once (a blob, named by its checksum) however many images share it. The
//! stream that an engine saves is cut into its large members and the rest; the rest, in order, is the index of the
//! image, which is a blob too. Joined again, they are the same stream, byte for byte. Only the headers of the tar
//! are understood, so it does not matter how Docker lays an image out: as `ID/layer.tar` up to version 24, or as
//! blobs of OCI from 25 on. Memory is constant. Called by `images`.

use crate::base::files::{self, Mode};
use crate::release::form::is_sum;
use crate::stack::state_dir::StateDir;
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use tar::EntryType;

/// The first line of an index: its format.
const FORMAT: &str = "image index 1";

/// A smaller member of the tar stays in the index, in bytes.
const LARGE: u64 = 64 << 10;

/// The largest index, in bytes. A header and the small members of a layer are about 4 KiB.
pub const LARGEST_INDEX: u64 = 64 << 20;

/// How much is read at a time, in bytes.
const BLOCK: usize = 1 << 20;

/// The unit of a tar, in bytes.
const UNIT: usize = 512;

/// Eleven octal digits: a size below this fits into a header of a tar (POSIX ustar).
const IN_HEADER: u64 = 8 << 30;

/// A part of the stream of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// These bytes of the index.
    Inside(Range<usize>),
    /// A blob: its checksum, and its length in bytes.
    Blob(String, u64),
}

/// Cuts a stream to its end, and returns its index.
pub fn cut(from: &mut dyn Read, state: &StateDir) -> Result<Vec<u8>> {
    let mut index = Index::default();
    let mut tar = Tar::default();
    let mut unit = [0; UNIT];
    loop {
        let read = fill(from, &mut unit).context("cannot read the image")?;
        index.keep(&unit[..read])?;
        if read < UNIT {
            return Ok(index.written());
        }
        match tar.member(&unit) {
            Member::None => {}
            // Not a tar, or not of a kind that is known. Nothing is lost: what follows is one blob.
            Member::Unknown => index.blob(Arriving::new(state, None)?.all(from, None)?)?,
            Member::Large(bytes) => {
                index.blob(Arriving::new(state, Some(bytes))?.all(from, Some(bytes))?)?;
                index.copy(from, padding(bytes))?;
            }
            Member::Small(bytes) => {
                let data = index.copy(from, bytes + padding(bytes))?;
                tar.extend(&unit, data);
            }
        }
    }
}

/// The parts that an index lists, in order. Errors: it is no index, or one of a newer format.
pub fn parts(index: &[u8]) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    let mut at = 0;
    let line = |at: usize| -> Result<(&str, usize)> {
        let end = index[at..].iter().position(|byte| *byte == b'\n').context("it ends in a line")?;
        Ok((
            std::str::from_utf8(&index[at..at + end]).context("it has a line that is no text")?,
            at + end + 1,
        ))
    };
    let (format, next) = line(0)?;
    ensure!(format == FORMAT, "it begins with {format:?}, and not with {FORMAT:?}");
    at = next.max(at);
    while at < index.len() {
        let (text, next) = line(at)?;
        at = next;
        match text.split(' ').collect::<Vec<_>>()[..] {
            ["bytes", count] => {
                let end = at.checked_add(count.parse()?).filter(|end| *end <= index.len());
                let end = end.context("it ends in the middle of a part")?;
                parts.push(Part::Inside(at..end));
                at = end;
            }
            ["blob", sum, bytes] if is_sum(sum) => parts.push(Part::Blob(sum.to_owned(), bytes.parse()?)),
            _ => bail!("it has the line {text:?}"),
        }
    }
    Ok(parts)
}

/// The parts of the same tar without the members that are these blobs.
pub fn without(parts: Vec<Part>, blobs: &BTreeSet<String>) -> Vec<Part> {
    let (mut left, mut after) = (Vec::new(), 0);
    for part in parts {
        match (part, left.last_mut()) {
            // The header is before a blob, and what fills its last unit is after it. The size of a larger member is in
            // an extension before its header, which is then about the next member.
            (Part::Blob(sum, bytes), Some(Part::Inside(before)))
                if blobs.contains(&sum) && bytes < IN_HEADER && before.len() >= UNIT =>
            {
                before.end -= UNIT;
                after = padding(bytes);
            }
            (Part::Inside(range), _) => {
                let begin = range.end.min(range.start + after as usize);
                left.push(Part::Inside(begin..range.end));
                after = 0;
            }
            (blob, _) => left.push(blob),
        }
    }
    left
}

/// An index that is being written.
#[derive(Default)]
struct Index {
    done: Vec<u8>,
    /// What follows in it, and is not written yet.
    open: Vec<u8>,
}

impl Index {
    fn keep(&mut self, bytes: &[u8]) -> Result<()> {
        self.open.extend_from_slice(bytes);
        self.check()
    }

    fn check(&self) -> Result<()> {
        let length = (self.done.len() + self.open.len()) as u64;
        ensure!(
            length < LARGEST_INDEX,
            "the image has more than {} of small files",
            files::human(LARGEST_INDEX)
        );
        Ok(())
    }

    /// Keeps the next `bytes` of the stream, and returns them.
    fn copy(&mut self, from: &mut dyn Read, bytes: u64) -> Result<&[u8]> {
        let begin = self.open.len();
        let read = from.take(bytes).read_to_end(&mut self.open).context("cannot read the image")?;
        if (read as u64) < bytes {
            return Err(ends_early()).context("cannot read the image");
        }
        self.check()?;
        Ok(&self.open[begin..])
    }

    fn blob(&mut self, (sum, bytes): (String, u64)) -> Result<()> {
        self.close();
        self.done.extend_from_slice(format!("blob {sum} {bytes}\n").as_bytes());
        self.check()
    }

    fn close(&mut self) {
        if self.done.is_empty() {
            self.done.extend_from_slice(format!("{FORMAT}\n").as_bytes());
        }
        if !self.open.is_empty() {
            self.done.extend_from_slice(format!("bytes {}\n", self.open.len()).as_bytes());
            self.done.append(&mut self.open);
        }
    }

    fn written(mut self) -> Vec<u8> {
        self.close();
        self.done
    }
}

/// What a unit of a tar says of what follows it.
enum Member {
    /// It is not a header: zeros, as at the end.
    None,
    Unknown,
    Small(u64),
    Large(u64),
}

/// Reads the headers of a tar.
#[derive(Default)]
struct Tar {
    /// The size of the next member, if an extension said it: one above 8 GiB does not fit into its header (POSIX pax).
    size: Option<u64>,
}

impl Tar {
    fn member(&mut self, unit: &[u8; UNIT]) -> Member {
        if unit.iter().all(|byte| *byte == 0) {
            return Member::None;
        }
        let header = tar::Header::from_byte_slice(unit);
        // The checksum is made with spaces in its own place.
        let sum: u32 = unit
            .iter()
            .enumerate()
            .map(|(n, byte)| u32::from(if (148..156).contains(&n) { b' ' } else { *byte }))
            .sum();
        let (true, Ok(said)) = (header.cksum().is_ok_and(|told| told == sum), header.entry_size()) else {
            return Member::Unknown;
        };
        let kind = header.entry_type();
        let regular = matches!(kind, EntryType::Regular | EntryType::Continuous);
        let bytes = if extends(kind) { said } else { self.size.take().unwrap_or(said) };
        match bytes {
            bytes if bytes < LARGE => Member::Small(bytes),
            bytes if regular => Member::Large(bytes),
            _ => Member::Unknown,
        }
    }

    /// Reads an extension of the next header.
    fn extend(&mut self, unit: &[u8; UNIT], data: &[u8]) {
        let header = tar::Header::from_byte_slice(unit);
        if header.entry_type() == EntryType::XHeader {
            let bytes = header.entry_size().unwrap_or(0).min(data.len() as u64) as usize;
            let mut records = tar::PaxExtensions::new(&data[..bytes]).flatten();
            let size = records.find(|record| record.key_bytes() == b"size");
            self.size = size.and_then(|record| record.value().ok()?.parse().ok());
        }
    }
}

/// Is the member about the next one?
fn extends(kind: EntryType) -> bool {
    use EntryType::{GNULongLink, GNULongName, XGlobalHeader, XHeader};
    matches!(kind, XHeader | XGlobalHeader | GNULongName | GNULongLink)
}

fn padding(bytes: u64) -> u64 {
    bytes.next_multiple_of(UNIT as u64) - bytes
}

fn ends_early() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it ends early")
}

/// Reads until the block is full or the stream ends; returns how much was read.
fn fill(from: &mut dyn Read, block: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < block.len() {
        match from.read(&mut block[read..]) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// A blob that arrives. Nothing is written as long as a blob of the store begins with the same bytes: most of a new
/// image is in the store.
struct Arriving<'a> {
    state: &'a StateDir,
    hash: Sha256,
    bytes: u64,
    /// Blobs of the same length that begin with the same bytes.
    same: Vec<(String, File)>,
    new: Option<Staged>,
    block: Vec<u8>,
}

/// A file that is removed if it was not published.
struct Staged(PathBuf, File);

impl Drop for Staged {
    fn drop(&mut self) {
        files::remove(&self.0).ok();
    }
}

impl<'a> Arriving<'a> {
    fn new(state: &'a StateDir, bytes: Option<u64>) -> Result<Self> {
        files::make_folder(&state.blobs())?;
        let (mut same, block) = (Vec::new(), vec![0; BLOCK]);
        for name in files::names(&state.blobs())?.into_iter().filter(|name| bytes.is_some() && is_sum(name)) {
            let path = state.blob(&name);
            if Some(files::size(&path)?) == bytes {
                same.push((name, files::open_regular(&path)?));
            }
        }
        Ok(Self { state, hash: Sha256::new(), bytes: 0, same, new: None, block })
    }

    /// Takes `bytes` of the stream, or all of it. Returns the checksum and the length.
    fn all(mut self, from: &mut dyn Read, bytes: Option<u64>) -> Result<(String, u64)> {
        let mut block = vec![0; BLOCK];
        loop {
            let left = bytes.map_or(u64::MAX, |all| all - self.bytes);
            let want = left.min(BLOCK as u64) as usize;
            let read = fill(from, &mut block[..want]).context("cannot read the image")?;
            if read < want && bytes.is_some() {
                return Err(ends_early()).context("cannot read the image");
            }
            self.add(&block[..read])?;
            if read < want || want == 0 {
                return self.published();
            }
        }
    }

    fn add(&mut self, block: &[u8]) -> Result<()> {
        self.hash.update(block);
        if self.new.is_none() {
            let (at, other) = (self.bytes, &mut self.block[..block.len()]);
            let (same, differ): (Vec<_>, Vec<_>) = std::mem::take(&mut self.same)
                .into_iter()
                .partition(|(_, file)| file.read_exact_at(other, at).is_ok() && other == block);
            match same.is_empty() {
                true => self.write_on(differ.first().map(|(_, file)| file))?,
                false => self.same = same,
            }
        }
        if let Some(Staged(path, file)) = &mut self.new {
            file.write_all(block).with_context(|| format!("cannot write {}", path.display()))?;
        }
        self.bytes += block.len() as u64;
        Ok(())
    }

    /// From here on it is a new blob. `begins` has what arrived so far.
    fn write_on(&mut self, begins: Option<&File>) -> Result<()> {
        let path = self.state.blobs().join(format!("{}.new", files::random()?));
        let mut file = files::create_new(&path, Mode::Plain)?;
        if let Some(mut begins) = begins {
            let copied = begins
                .seek(SeekFrom::Start(0))
                .and_then(|_| io::copy(&mut begins.take(self.bytes), &mut file));
            copied.with_context(|| format!("cannot write {}", path.display()))?;
        }
        self.new = Some(Staged(path, file));
        Ok(())
    }

    /// What is new is read back.
    fn published(mut self) -> Result<(String, u64)> {
        let sum = format!("{:x}", std::mem::take(&mut self.hash).finalize());
        if self.new.is_none() && !self.same.iter().any(|(name, _)| *name == sum) {
            let other = self.same.pop();
            self.write_on(other.as_ref().map(|(_, file)| file))?;
        }
        if let Some(Staged(path, file)) = &self.new {
            file.sync_all().with_context(|| format!("cannot write {}", path.display()))?;
            ensure!(files::sha256(path)? == sum, "{} is not what was written to it", path.display());
            // The folder is synced when the index is written, which comes after all blobs that it names.
            let to = self.state.blob(&sum);
            std::fs::rename(path, &to).with_context(|| format!("cannot write {}", to.display()))?;
        }
        Ok((sum, self.bytes))
    }
}

/// The stream of an image, from its parts. Each blob is checked before its last byte is given out.
pub struct Joined {
    state: StateDir,
    index: Vec<u8>,
    parts: std::vec::IntoIter<Part>,
    /// What is left of the part inside the index.
    inside: Range<usize>,
    /// The blob that is read: its checksum, the bytes that are left, and the checksum so far.
    blob: Option<(String, File, u64, Sha256)>,
}

impl Joined {
    /// The stream with these parts of an index.
    pub fn new(state: &StateDir, index: Vec<u8>, parts: Vec<Part>) -> Self {
        Self { state: state.clone(), index, parts: parts.into_iter(), inside: 0..0, blob: None }
    }
}

impl Read for Joined {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.inside.is_empty() {
                let read = self.inside.len().min(into.len());
                let from = self.inside.start;
                into[..read].copy_from_slice(&self.index[from..from + read]);
                self.inside.start += read;
                return Ok(read);
            }
            if let Some((sum, file, left, hash)) = &mut self.blob {
                let most = (into.len() as u64).min(*left) as usize;
                let read = file.read(&mut into[..most])?;
                hash.update(&into[..read]);
                *left -= read as u64;
                if *left > 0 && read > 0 {
                    return Ok(read);
                }
                let same = format!("{:x}", hash.finalize_reset()) == *sum && *left == 0;
                let path = self.state.blob(sum);
                self.blob = None;
                if !same {
                    let what = format!("{} was altered: its checksum is not its name", path.display());
                    return Err(io::Error::other(what));
                }
                if read > 0 {
                    return Ok(read);
                }
                continue;
            }
            match self.parts.next() {
                None => return Ok(0),
                Some(Part::Inside(range)) => self.inside = range,
                Some(Part::Blob(sum, bytes)) => {
                    let path = self.state.blob(&sum);
                    let file = files::open_regular(&path);
                    let file = file.map_err(|error| io::Error::other(format!("{error:#}")))?;
                    let there = file.metadata()?.len();
                    if there != bytes {
                        let what =
                            format!("{} was altered: it has {there} bytes, not {bytes}", path.display());
                        return Err(io::Error::other(what));
                    }
                    self.blob = Some((sum, file, bytes, Sha256::new()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Kept {
        _scratch: files::Scratch,
        state: StateDir,
    }

    fn kept() -> Kept {
        let scratch = files::Scratch::new("blobs-test").unwrap();
        let state = StateDir::new(scratch.path().join("state"));
        Kept { _scratch: scratch, state }
    }

    /// Bytes that do not repeat, the same for the same seed.
    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(2).wrapping_add(1);
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    fn tar_of(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, data) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, *data).unwrap();
        }
        tar.into_inner().unwrap()
    }

    impl Kept {
        fn cut(&self, stream: &[u8]) -> Result<Vec<u8>> {
            cut(&mut &*stream, &self.state)
        }

        fn joined(&self, index: &[u8]) -> Result<Vec<u8>> {
            self.joined_without(index, &[])
        }

        fn joined_without(&self, index: &[u8], blobs: &[&[u8]]) -> Result<Vec<u8>> {
            let sums = blobs.iter().map(|blob| files::sha256_bytes(blob)).collect();
            let mut all = Vec::new();
            Joined::new(&self.state, index.to_vec(), without(parts(index)?, &sums)).read_to_end(&mut all)?;
            Ok(all)
        }

        fn blobs(&self) -> Vec<String> {
            files::names(&self.state.blobs()).unwrap()
        }

        /// Cuts a stream and joins it again. Returns the index.
        #[track_caller]
        fn there_and_back(&self, stream: &[u8]) -> Vec<u8> {
            let index = self.cut(stream).unwrap();
            assert!(self.joined(&index).unwrap() == stream);
            index
        }
    }

    #[test]
    fn two_images_that_share_a_layer_store_it_once_and_come_back_byte_for_byte() {
        let kept = kept();
        let (shared, small) = (noise(1, 300_001), noise(2, 70_000));
        let old = tar_of(&[("a/layer.tar", &shared), ("a/json", b"{}"), ("manifest.json", b"[1]")]);
        // As Docker 25 lays it out, with a layer more.
        let name = format!("blobs/sha256/{}", "0".repeat(64));
        let new = tar_of(&[("oci-layout", b"{}"), (&name, &shared), ("blobs/sha256/b", &small)]);
        let index = kept.there_and_back(&old);
        assert!(index.len() < 8_000, "{}", index.len());
        kept.there_and_back(&new);
        let mut sums = [files::sha256_bytes(&shared), files::sha256_bytes(&small)];
        sums.sort();
        assert_eq!(kept.blobs(), sums);
    }

    #[test]
    fn without_some_layers_it_is_the_tar_of_the_others() {
        let kept = kept();
        let (first, second, third) = (noise(1, 300_001), noise(2, 70_000), noise(3, LARGE as usize));
        let all = [
            ("a/layer.tar", &first[..]),
            ("b/VERSION", b"1.0"),
            ("b/layer.tar", &second),
            ("c/layer.tar", &third),
        ];
        let index = kept.there_and_back(&tar_of(&all));
        let expect = |left_out: &[&[u8]]| {
            let left: Vec<_> = all.into_iter().filter(|(_, data)| !left_out.contains(data)).collect();
            assert!(kept.joined_without(&index, left_out).unwrap() == tar_of(&left), "{}", left_out.len());
        };
        for left_out in
            [&[&first[..]][..], &[&second], &[&first, &third], &[&first, &second, &third], &[b"other"]]
        {
            expect(left_out);
        }
        // What is left out is not read.
        std::fs::remove_file(kept.state.blob(&files::sha256_bytes(&second))).unwrap();
        expect(&[&second]);
    }

    #[test]
    fn any_stream_comes_back_also_one_that_is_no_tar() {
        let kept = kept();
        let long = "n".repeat(180);
        let odd = tar_of(&[(&long, &noise(3, 100_000)), ("empty", b""), ("x", &noise(4, LARGE as usize))]);
        let mut cut_off = odd.clone();
        cut_off.truncate(odd.len() - 700);
        let mut damaged = odd.clone();
        damaged[3] ^= 1;
        for stream in [&[][..], b"v1.0.0", &noise(5, 512), &noise(6, 200_000), &odd, &cut_off, &damaged] {
            kept.there_and_back(stream);
        }
    }

    #[test]
    fn the_size_of_a_member_above_8_gib_is_in_an_extension() {
        let record = b"21 size=123456789012\n";
        let data = noise(7, 100_000);
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_size(record.len() as u64);
        header.set_cksum();
        let mut tar = Tar::default();
        let unit: &[u8; UNIT] = header.as_bytes();
        assert!(matches!(tar.member(unit), Member::Small(21)));
        tar.extend(unit, record);
        let mut plain = tar::Header::new_ustar();
        plain.set_size(0);
        plain.set_cksum();
        assert!(matches!(tar.member(plain.as_bytes()), Member::Large(123_456_789_012)));
        assert!(matches!(tar.member(plain.as_bytes()), Member::Small(0)), "it counts for one member only");
        // The same in a stream.
        let record = b"15 size=100000\n";
        header.set_size(record.len() as u64);
        header.set_cksum();
        let mut stream = header.as_bytes().to_vec();
        stream.extend(record);
        stream.resize(1024, 0);
        stream.extend(plain.as_bytes());
        stream.extend(&data);
        stream.resize(stream.len().next_multiple_of(UNIT) + 1024, 0);
        let kept = kept();
        kept.there_and_back(&stream);
        assert_eq!(kept.blobs(), [files::sha256_bytes(&data)]);
    }

    #[test]
    fn a_blob_that_differs_late_is_another_one_and_a_damaged_one_is_named_and_mended() {
        let kept = kept();
        let first = noise(8, 3 * BLOCK);
        let mut second = first.clone();
        second[2 * BLOCK + 5] ^= 1;
        let index = kept.there_and_back(&tar_of(&[("layer.tar", &first)]));
        kept.there_and_back(&tar_of(&[("layer.tar", &second)]));
        assert_eq!(kept.blobs().len(), 2);
        let path = kept.state.blob(&files::sha256_bytes(&first));
        let whole = std::fs::read(&path).unwrap();
        for damaged in [second, whole[..100].to_vec(), [whole.as_slice(), b"x"].concat()] {
            std::fs::write(&path, damaged).unwrap();
            let error = format!("{:#}", kept.joined(&index).unwrap_err());
            assert!(error.contains(&path.display().to_string()) && error.contains("altered"), "{error}");
            kept.there_and_back(&tar_of(&[("layer.tar", &first)]));
        }
        std::fs::remove_file(&path).unwrap();
        assert!(format!("{:#}", kept.joined(&index).unwrap_err()).contains(&path.display().to_string()));
    }

    #[test]
    fn a_stream_that_ends_early_is_no_image_and_leaves_nothing() {
        let kept = kept();
        let whole = tar_of(&[("layer.tar", &noise(9, 200_000))]);
        let error = kept.cut(&whole[..100_000]).unwrap_err();
        assert!(format!("{error:#}").contains("ends early"), "{error:#}");
        assert_eq!(kept.blobs(), [""; 0]);
    }

    #[test]
    fn an_index_that_is_none_is_refused() {
        let sum = files::sha256_bytes(b"");
        for text in [
            "",
            "image index 2\n",
            "image index 1",
            "image index 1\nbytes 5\nabc",
            "image index 1\nbytes x\n",
        ] {
            assert!(parts(text.as_bytes()).is_err(), "{text:?}");
        }
        for blob in ["../../x 5", "", &sum, &format!("{sum} -1"), &format!("{sum} 1 2"), &sum.to_uppercase()]
        {
            assert!(parts(format!("image index 1\nblob {blob}\n").as_bytes()).is_err(), "{blob:?}");
        }
        assert_eq!(parts(format!("image index 1\nblob {sum} 0\n").as_bytes()).unwrap(), [Part::Blob(sum, 0)]);
    }
}

//! The newest lines of something that is written as it comes: the end of a log, in constant memory. Called by the
//! engines.

use std::io::{Result, Write};

/// Bytes that may come before older ones are dropped, so that not every write moves everything.
const SLACK: usize = 2 << 20;

/// Keeps the newest bytes of what is written to it.
pub struct Newest {
    most: usize,
    bytes: Vec<u8>,
    /// How many bytes came in all.
    pub bytes_seen: usize,
    /// How many lines came in all.
    pub lines_seen: usize,
}

impl Newest {
    /// Keeps `most` bytes.
    pub fn new(most: usize) -> Self {
        Self { most, bytes: Vec::new(), bytes_seen: 0, lines_seen: 0 }
    }

    /// The newest whole lines, and whether there were older ones.
    pub fn lines(mut self) -> (Vec<u8>, bool) {
        let is_cut = self.bytes_seen > self.most;
        if is_cut {
            // One byte more than is kept: if it ends a line, the rest begins with a whole one.
            let from = self.bytes.len().saturating_sub(self.most + 1);
            let ends = self.bytes[from..].iter().position(|byte| *byte == b'\n');
            self.bytes.drain(..ends.map_or(from + 1, |at| from + at + 1));
        }
        (self.bytes, is_cut)
    }
}

impl Write for Newest {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.bytes_seen += bytes.len();
        self.lines_seen += bytes.iter().filter(|byte| **byte == b'\n').count();
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > self.most + SLACK {
            self.bytes.drain(..self.bytes.len() - self.most - 1);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_lines_are_kept_however_much_comes() {
        let newest = |text: &str, most: usize| {
            let mut newest = Newest::new(most);
            newest.write_all(text.as_bytes()).unwrap();
            let (bytes, is_cut) = newest.lines();
            (String::from_utf8(bytes).unwrap(), is_cut)
        };
        assert_eq!(newest("a\nbb\n", 5), ("a\nbb\n".into(), false));
        assert_eq!(newest("a\nbb\n", 4), ("bb\n".into(), true));
        assert_eq!(newest("a\nbb\n", 3), ("bb\n".into(), true));
        assert_eq!(newest("a\nbb\n", 2), (String::new(), true));
        assert_eq!(newest("one long line", 4), ("line".into(), true));
        let mut much = Newest::new(100);
        for n in 0..1_000_000 {
            writeln!(much, "line {n}").unwrap();
            assert!(much.bytes.len() <= 100 + SLACK);
        }
        assert_eq!(much.lines_seen, 1_000_000);
        let (bytes, is_cut) = much.lines();
        let text = String::from_utf8(bytes).unwrap();
        assert!(is_cut && text.starts_with("line 999") && text.ends_with("line 999999\n"), "{text}");
    }
}

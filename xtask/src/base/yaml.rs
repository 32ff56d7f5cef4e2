//! YAML, within a bound. An alias stands for a whole value, which may have aliases again, so ten short lines can mean
//! billions of values, and a parser would use up the memory. No other code parses YAML. Called by what reads compose files
//! and what Compose 1 prints.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use yaml_rust2::parser::{Event, MarkedEventReceiver, Parser};
use yaml_rust2::scanner::Marker;
use yaml_rust2::{Yaml, YamlLoader};

/// The most memory that the values of a text may need, in bytes: far more than any compose file does.
const MOST: usize = 64 << 20;

/// What one value needs beside its text.
const VALUE: usize = 64;

/// The documents of a text. Errors: it is not YAML, or its aliases make too much of it.
pub fn documents(text: &str) -> Result<Vec<Yaml>> {
    // Without an alias, there is no more than there is text.
    if text.contains('*') {
        let mut needed = Needed::default();
        Parser::new(text.chars()).load(&mut needed, true).context("it is not YAML")?;
        ensure!(needed.all <= MOST, "its aliases make more than {} MiB of it", MOST >> 20);
    }
    YamlLoader::load_from_str(text).context("it is not YAML")
}

/// How much memory a text needs. Nothing is kept of it.
#[derive(Default)]
struct Needed {
    all: usize,
    /// The lists and maps that are open: their anchors, and what there was before them.
    open: Vec<(usize, usize)>,
    /// What stands behind each anchor.
    anchors: BTreeMap<usize, usize>,
}

impl Needed {
    fn add(&mut self, bytes: usize) {
        self.all = self.all.saturating_add(bytes);
    }
}

impl MarkedEventReceiver for Needed {
    fn on_event(&mut self, event: Event, _: Marker) {
        match event {
            Event::Scalar(text, _, anchor, _) => {
                self.add(VALUE + text.len());
                self.anchors.insert(anchor, VALUE + text.len());
            }
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                self.open.push((anchor, self.all));
                self.add(VALUE);
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some((anchor, before)) = self.open.pop() {
                    self.anchors.insert(anchor, self.all.saturating_sub(before));
                }
            }
            Event::Alias(anchor) => self.add(self.anchors.get(&anchor).copied().unwrap_or(VALUE)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_that_make_too_much_of_a_text_are_refused() {
        let read = documents("a: &a {b: [1, 2]}\nc: *a\nd: {<<: *a}\n").unwrap();
        assert_eq!(read[0]["c"]["b"][1].as_i64(), Some(2));
        assert_eq!(documents("a: 1\n---\nb: 2\n").unwrap().len(), 2);
        let nines = |n: usize| format!("x{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 9].join(", "));
        let text: String = (1..10).map(nines).collect();
        let error = documents(&format!("x0: &a0 lol\n{text}")).unwrap_err();
        assert!(error.to_string().contains("its aliases make more than 64 MiB of it"), "{error:#}");
        // The end of the counting itself.
        let text: String = (1..99).map(nines).collect();
        assert!(documents(&format!("x0: &a0 lol\n{text}")).is_err());
        for text in ["[", "a: *b", "*"] {
            assert!(documents(text).unwrap_err().to_string().contains("not YAML"), "{text}");
        }
    }
}

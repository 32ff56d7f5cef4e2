//! Tests: a stream of events that may be anything. It is read to its end or refused; what was read is the same however the
//! stream arrives, and when it is written and read again; and it is what the standard says (WHATWG HTML, server-sent
//! events), as far as this tool needs that. Called by `hostile`.

use crate::base::http::{Client, Event, Pass, Reply, Request, Wire};
use anyhow::Result;
use std::io::Read;
use std::sync::Arc;
use ureq::http::HeaderMap;

/// The longest line and the most events that are read.
const LINE: usize = 64 << 10;
const EVENTS: usize = 10_000;

/// A service that answers with these bytes, some at a time.
struct Answers {
    bytes: Vec<u8>,
    at_a_time: usize,
}

impl Wire for Answers {
    fn base(&self) -> &str {
        "http://service"
    }

    fn send(&self, _: &Request<'_>) -> Result<Reply> {
        let body = Slowly { bytes: self.bytes.clone(), at: 0, at_a_time: self.at_a_time };
        Ok(Reply { status: 200, headers: HeaderMap::new(), body: Box::new(body) })
    }
}

struct Slowly {
    bytes: Vec<u8>,
    at: usize,
    at_a_time: usize,
}

impl Read for Slowly {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = into.len().min(self.at_a_time).min(self.bytes.len() - self.at);
        into[..read].copy_from_slice(&self.bytes[self.at..self.at + read]);
        self.at += read;
        Ok(read)
    }
}

/// Id, name and data.
type Plain = (String, String, String);

fn plain(event: Event) -> Plain {
    (event.id, event.name, event.data)
}

fn stream(bytes: &[u8], at_a_time: usize) -> crate::base::http::Events {
    let wire = Answers { bytes: bytes.to_vec(), at_a_time };
    let stream = Client::over(Arc::new(wire), "any", Pass::default()).stream("/x", None);
    let Ok(stream) = stream else { unreachable!("the service answers with 200") };
    stream
}

fn read(bytes: &[u8], at_a_time: usize) -> Result<Vec<Plain>> {
    Ok(stream(bytes, at_a_time).rest()?.into_iter().map(plain).collect())
}

pub(super) fn body(bytes: &[u8]) {
    let whole = read(bytes, usize::MAX);
    let slowly = read(bytes, 3);
    assert_eq!(whole.as_ref().ok(), slowly.as_ref().ok(), "it matters how the stream arrives");
    let Ok(events) = whole else { return };
    assert!(events.len() <= EVENTS);
    let Ok(text) = std::str::from_utf8(bytes) else { unreachable!("what is no text was read") };
    assert!(text.split('\n').all(|line| line.len() <= LINE), "a line was read that is too long");
    assert_eq!(events, by_the_standard(text), "the events are not those of the standard");
    let again: String = events.iter().map(as_text).collect();
    // At the end of data, one would be taken for a part of the line end.
    let is_plain = !again.contains('\r');
    assert!(
        !is_plain || read(again.as_bytes(), usize::MAX).ok().as_ref() == Some(&events),
        "written again: {again:?}"
    );
    if let Some((_, name, data)) = events.last() {
        let first = events.iter().find(|event| event.1 == *name);
        let found = stream(bytes, usize::MAX).until(name).map(plain).ok();
        assert_eq!(found.as_ref(), first, "another event is found than the first {name}: {data}");
    }
}

fn as_text((id, name, data): &Plain) -> String {
    let data: String = data.split('\n').map(|line| format!("data: {line}\n")).collect();
    format!("id: {id}\nevent: {name}\n{data}\n")
}

/// The same by the words of the standard, as simple as can be. Differences that are meant: the id does not go over to
/// the next event, lines end with a line feed, and an event without data counts if it has a name.
fn by_the_standard(text: &str) -> Vec<Plain> {
    let mut events = Vec::new();
    let (mut id, mut name, mut data) = (String::new(), String::new(), Vec::new());
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for line in text.split_inclusive('\n') {
        let line = line.strip_suffix('\n').unwrap_or(line);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            let (id, name) = (std::mem::take(&mut id), std::mem::take(&mut name));
            let data: Vec<&str> = std::mem::take(&mut data);
            if !name.is_empty() || !data.is_empty() {
                let name = if name.is_empty() { "message".to_owned() } else { name };
                events.push((id, name, data.join("\n")));
            }
            continue;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => id = value.to_owned(),
            "event" => name = value.to_owned(),
            "data" => data.push(value),
            _ => {}
        }
    }
    events
}

//! HTTP over one connection to a Docker engine: questions, and answers that are bounded in size. Which connection it is, is
//! decided in `api`. Called by it, and by whoever asks several questions at once.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::fmt;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};

/// Largest head of an answer, in bytes, and the most fields in it.
const HEAD: usize = 64 << 10;
const FIELDS: usize = 64;

/// Largest body of an answer, in bytes. A record with files has half a megabyte.
const BODY: u64 = 64 << 20;

/// What is said if an engine answers nothing.
const ENDED: &str = "the engine ended the connection";

/// An answer that is an error.
#[derive(Debug)]
pub struct Refused {
    /// The HTTP status.
    pub status: u16,
    /// What the engine says.
    pub message: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the engine refused ({}): {}", self.status, self.message)
    }
}

impl std::error::Error for Refused {}

/// The status of an answer that is an error.
pub fn status_of(error: &anyhow::Error) -> Option<u16> {
    error.downcast_ref().map(|refused: &Refused| refused.status)
}

/// A connection to an engine.
pub struct Line<'a> {
    to: &'a mut dyn Write,
    from: BufReader<&'a mut dyn Read>,
    /// What a path begins with.
    version: &'a str,
}

impl<'a> Line<'a> {
    /// One that is asked and answers here. Each path begins with `version`.
    pub fn new(to: &'a mut dyn Write, from: &'a mut dyn Read, version: &'a str) -> Self {
        Self { to, from: BufReader::new(from), version }
    }

    /// Does the engine answer?
    pub fn ping(&mut self) -> Result<()> {
        self.ask_plain("GET", "/_ping", None).map(drop)
    }

    /// GET.
    pub fn get(&mut self, path: &str) -> Result<Value> {
        self.ask("GET", path, None)
    }

    /// POST with a JSON body.
    pub fn post(&mut self, path: &str, body: &Value) -> Result<Value> {
        self.ask("POST", path, Some(body))
    }

    /// POST without a body.
    pub fn order(&mut self, path: &str) -> Result<()> {
        self.ask("POST", path, None).map(drop)
    }

    /// DELETE. It is no error if it is gone already.
    pub fn delete(&mut self, path: &str) -> Result<()> {
        match self.ask("DELETE", path, None) {
            Err(error) if status_of(&error) == Some(404) => Ok(()),
            other => other.map(drop),
        }
    }

    fn ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let answer = self.ask_plain(method, path, body)?;
        if answer.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer).context("the answer is garbled").with_context(|| tried(method, path))
    }

    /// The answer as it is.
    fn ask_plain(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Vec<u8>> {
        let tried = || tried(method, path);
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} {}{path} HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            self.version,
            body.len()
        );
        self.to
            .write_all(head.as_bytes())
            .and_then(|()| self.to.write_all(body.as_bytes()))
            .and_then(|()| self.to.flush())
            .with_context(tried)?;
        let (status, answer) = self.answer().with_context(tried)?;
        if status >= 400 {
            let said: Value = serde_json::from_slice(&answer).unwrap_or_default();
            let said = said["message"].as_str().map(str::to_owned);
            let message = said.unwrap_or_else(|| String::from_utf8_lossy(&answer).trim().to_owned());
            return Err(anyhow::Error::new(Refused { status, message })).with_context(tried);
        }
        Ok(answer)
    }

    /// The status and the body of an answer.
    fn answer(&mut self) -> Result<(u16, Vec<u8>)> {
        let head = self.head()?;
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        let mut parsed = httparse::Response::new(&mut fields);
        ensure!(parsed.parse(&head)?.is_complete(), "the head of the answer is incomplete");
        let status = parsed.code.context("the answer has no status")?;
        let field = |name: &str| {
            let found = parsed.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(found.value).ok()
        };
        let chunked = field("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        let length = field("content-length").and_then(|value| value.parse::<u64>().ok());
        let mut body = Vec::new();
        match length {
            _ if chunked => self.chunks(&mut body)?,
            Some(length) => self.exactly(length, &mut body)?,
            None if status == 204 || status == 304 => {}
            None => bail!("the answer does not say how long it is"),
        }
        Ok((status, body))
    }

    fn head(&mut self) -> Result<Vec<u8>> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let before = head.len();
            self.line(&mut head)?;
            if head.len() == before {
                bail!(std::io::Error::new(ErrorKind::UnexpectedEof, ENDED));
            }
            ensure!(head.len() <= HEAD, "the head of the answer is longer than {HEAD} bytes");
        }
        Ok(head)
    }

    /// Reads to the end of a line; its length has a bound.
    fn line(&mut self, into: &mut Vec<u8>) -> Result<()> {
        let most = HEAD as u64;
        self.from.by_ref().take(most).read_until(b'\n', into).context("cannot read the answer")?;
        Ok(())
    }

    fn exactly(&mut self, length: u64, into: &mut Vec<u8>) -> Result<()> {
        ensure!(length <= BODY.saturating_sub(into.len() as u64), "the answer is longer than {BODY} bytes");
        let read = self.from.by_ref().take(length).read_to_end(into).context("cannot read the answer")?;
        ensure!(read as u64 == length, "the answer was cut off");
        Ok(())
    }

    fn chunks(&mut self, into: &mut Vec<u8>) -> Result<()> {
        loop {
            let mut line = Vec::new();
            self.line(&mut line)?;
            let httparse::Status::Complete((_, size)) = httparse::parse_chunk_size(&line)
                .map_err(|_invalid| anyhow::anyhow!("the answer is garbled"))?
            else {
                bail!("the answer was cut off")
            };
            self.exactly(size, into)?;
            let mut end = Vec::new();
            self.line(&mut end)?;
            if size == 0 {
                return Ok(());
            }
        }
    }
}

/// What was asked, without what narrows it.
fn tried(method: &str, path: &str) -> String {
    format!("{method} {}", path.split('?').next().unwrap_or(path))
}

/// What is in an answer that is a list.
pub fn listed(answer: &Value) -> Result<&[Value]> {
    answer.as_array().map(Vec::as_slice).context("the engine gave no list")
}

/// What a list is narrowed to, as a part of the query of a path: what has all of these labels.
pub fn by_labels(labels: &[String]) -> String {
    in_path(&json!({ "label": labels }).to_string())
}

/// A text as a part of the query of a path.
pub fn in_path(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let part = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is made of an answer.
    fn read(answer: &str) -> Result<Value> {
        let (mut sent, mut from) = (Vec::new(), answer.as_bytes());
        let value = Line::new(&mut sent, &mut from, "").get("/nodes?x=1")?;
        assert!(sent.starts_with(b"GET /nodes?x=1 HTTP/1.1\r\n"));
        Ok(value)
    }

    #[test]
    fn an_answer_is_read_whole_or_is_an_error() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\":1}";
        assert_eq!(read(whole).unwrap()["a"], 1);
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\"a\r\n4\r\n\":1}\r\n0\r\n\r\n";
        assert_eq!(read(chunked).unwrap()["a"], 1);
        for cut in [
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{a",
            &whole[..whole.len() - 1],
            &chunked[..chunked.len() - 12],
            "HTTP/1.1 200 OK\r\n",
            "",
            "no http\r\n\r\n",
        ] {
            assert!(read(cut).is_err(), "{cut}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", u64::MAX / 2);
        assert!(read(&endless).unwrap_err().chain().any(|cause| cause.to_string().contains("longer than")));
        let chunk = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\nffffffffffffffff\r\n";
        assert!(read(chunk).unwrap_err().chain().any(|cause| cause.to_string().contains("longer than")));
        let long = format!("HTTP/1.1 200 OK\r\nA: {}", "b".repeat(2 * HEAD));
        assert!(read(&long).is_err());
    }

    #[test]
    fn a_refusal_has_its_status_and_what_was_said() {
        let body = r#"{"message":"rpc error: code = Unknown desc = The swarm does not have a leader."}"#;
        let error =
            read(&format!("HTTP/1.1 500 No\r\nContent-Length: {}\r\n\r\n{body}", body.len())).unwrap_err();
        assert_eq!(status_of(&error), Some(500));
        assert!(format!("{error:#}").contains("have a leader"), "{error:#}");
    }
}

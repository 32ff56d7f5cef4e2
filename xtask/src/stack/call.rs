//! A request to a service and what its answer must be, as a manifest has it: plain data, and the comparison with an
//! answer. Nothing is sent here: that is in `checks/ask`. Used by `manifest`, `checks` and `deploy`.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::{self, Write};

/// A request, and what its answer must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// `GET service/path?query`. Variables in it, such as `${REASON}`, are replaced.
    pub request: Line,
    /// The JSON body, with variables.
    pub json: Option<Value>,
    /// Is it sent as the public sends it, without the admin token?
    pub public: bool,
    /// The status that the answer must have.
    pub status: u16,
    /// Headers that it must have, in lowercase, each with its value if that matters.
    pub headers: BTreeMap<String, Option<String>>,
    /// Values in its JSON body, by JSON pointer (RFC 6901).
    pub pointer: BTreeMap<String, Value>,
    /// JSON pointers to values that must be there, whatever they are.
    pub has: Vec<String>,
    /// The answer is an event stream, in which an event with this name must come.
    pub sse: Option<String>,
    /// The answer is an event stream, whose last event must have this name.
    pub ends_with: Option<String>,
}

/// Method, service and path: the line of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// `GET`, `HEAD` or `POST`.
    pub method: String,
    /// The service that is asked; none for every service, or the one that the section is about.
    pub service: Option<String>,
    /// With its query.
    pub path: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{}", self.method, self.service.as_deref().unwrap_or_default(), self.path)
    }
}

impl Line {
    /// Reads `GET service/path`. The error says what would be right.
    pub fn parse(text: &str) -> Result<Self> {
        let (method, rest) = text.split_once(' ').unwrap_or((text, ""));
        let right = "write it as \"GET service/path\"";
        ensure!(!rest.is_empty(), "{text:?} is no request; {right}");
        ensure!(matches!(method, "GET" | "HEAD" | "POST"), "{text:?}: the method must be GET, HEAD or POST");
        let at = rest.find('/').with_context(|| format!("{text:?} has no path; {right}"))?;
        let (service, path) = rest.split_at(at);
        let fits = service.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        ensure!(fits, "{text:?}: {service:?} is not the name of a service; {right}");
        ensure!(!path.contains(char::is_whitespace), "{text:?}: the path must have no spaces; write %20");
        let service = Some(service.to_owned()).filter(|service| !service.is_empty());
        Ok(Self { method: method.to_owned(), service, path: path.to_owned() })
    }
}

impl Call {
    /// Is the answer as expected? The error says what is not. `brief` shows the answer in it.
    pub fn compare<'h>(
        &self,
        status: u16,
        header: impl Fn(&str) -> Option<&'h str>,
        body: &Value,
        brief: &str,
    ) -> Result<()> {
        ensure!(status == self.status, "answered {brief}, expected {}", self.status);
        for (name, wanted) in &self.headers {
            match (header(name), wanted) {
                (None, _) => bail!("answered {brief}, without the header {name}"),
                (Some(found), Some(wanted)) if found != wanted => {
                    bail!("answered {brief}: {name} is {found}, expected {wanted}")
                }
                (Some(_), _) => {}
            }
        }
        for (pointer, wanted) in &self.pointer {
            let found = body.pointer(pointer).unwrap_or(&Value::Null);
            ensure!(found == wanted, "answered {brief}: {pointer} is {found}, expected {wanted}");
        }
        for pointer in &self.has {
            let there = body.pointer(pointer).is_some_and(|found| !found.is_null());
            ensure!(there, "answered {brief}, without {pointer}");
        }
        Ok(())
    }

    /// Is its answer read as a stream of events?
    pub fn is_stream(&self) -> bool {
        self.sse.is_some() || self.ends_with.is_some()
    }
}

/// A text is made of parts in plain and names of variables.
enum Part<'a> {
    Plain(&'a str),
    Name(&'a str),
}

fn parts(text: &str) -> Result<Vec<Part<'_>>> {
    let mut all = text.split("${");
    let mut parts = vec![Part::Plain(all.next().unwrap_or_default())];
    for part in all {
        let (name, rest) = part.split_once('}').with_context(|| format!("{text:?}: ${{ without }}"))?;
        let fits = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        ensure!(fits, "{text:?}: {name:?} is not the name of a variable");
        parts.extend([Part::Name(name), Part::Plain(rest)]);
    }
    Ok(parts)
}

/// The names of the variables in a text.
pub fn names(text: &str) -> Result<Vec<&str>> {
    let name = |part| if let Part::Name(name) = part { Some(name) } else { None };
    Ok(parts(text)?.into_iter().filter_map(name).collect())
}

/// `text` with each `${NAME}` replaced by its value. A name without a value is an error.
pub fn filled(text: &str, values: &[(&str, &str)]) -> Result<String> {
    let value = |name: &str| values.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    let mut all = String::new();
    for part in parts(text)? {
        all += match part {
            Part::Plain(text) => text,
            Part::Name(name) => {
                value(name).with_context(|| format!("{text:?}: nothing is known as {name}"))?
            }
        };
    }
    Ok(all)
}

/// The same for a path: a value in it is escaped, so that it stays one part of the path.
pub fn filled_path(text: &str, values: &[(&str, &str)]) -> Result<String> {
    let escaped = |value: &str| {
        value.bytes().fold(String::new(), |mut all, byte| {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                all.push(byte.into());
            } else {
                write!(all, "%{byte:02X}").ok();
            }
            all
        })
    };
    let all: Vec<(&str, String)> = values.iter().map(|(name, value)| (*name, escaped(value))).collect();
    filled(text, &all.iter().map(|(name, value)| (*name, value.as_str())).collect::<Vec<_>>())
}

/// JSON with the variables in its texts replaced.
pub fn filled_json(value: &Value, values: &[(&str, &str)]) -> Result<Value> {
    Ok(match value {
        Value::String(text) => Value::String(filled(text, values)?),
        Value::Array(all) => all.iter().map(|one| filled_json(one, values)).collect::<Result<_>>()?,
        Value::Object(all) => {
            let one = |(name, value): (&String, &Value)| Ok((name.clone(), filled_json(value, values)?));
            Value::Object(all.iter().map(one).collect::<Result<_>>()?)
        }
        other => other.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plain(request: Line) -> Call {
        Call {
            request,
            json: None,
            public: false,
            status: 200,
            headers: BTreeMap::new(),
            pointer: BTreeMap::new(),
            has: Vec::new(),
            sse: None,
            ends_with: None,
        }
    }

    #[test]
    fn a_request_is_read_and_a_wrong_one_is_told_with_what_would_be_right() {
        let read = Line::parse("POST api/x?a=1").unwrap();
        assert_eq!(
            (read.method.as_str(), read.service.as_deref(), read.path.as_str()),
            ("POST", Some("api"), "/x?a=1")
        );
        assert_eq!(read.to_string(), "POST api/x?a=1");
        assert_eq!(Line::parse("GET /").unwrap().service, None);
        for (wrong, why) in [
            ("/x", "write it as"),
            ("FETCH a/x", "the method must be"),
            ("GET x", "has no path"),
            ("GET a:80/", "is not the name of a service"),
            ("GET /a b", "no spaces"),
        ] {
            let error = Line::parse(wrong).unwrap_err().to_string();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }

    #[test]
    fn an_answer_is_as_expected_or_the_difference_is_told() {
        let body = json!({"status": "disabled", "none": null});
        let compare = |how: &dyn Fn(&mut Call), status| {
            let mut call = plain(Line::parse("GET a/").unwrap());
            how(&mut call);
            let header = |name: &str| (name == "retry-after").then_some("5");
            call.compare(status, header, &body, "the answer").map_err(|e| e.to_string())
        };
        let header =
            |name: &str, value: Option<&str>| BTreeMap::from([(name.to_owned(), value.map(str::to_owned))]);
        let busy = |c: &mut Call| (c.status, c.headers) = (503, header("retry-after", None));
        assert_eq!(compare(&busy, 503), Ok(()));
        assert!(compare(&busy, 200).unwrap_err().contains("expected 503"));
        assert!(
            compare(&|c| c.headers = header("etag", None), 200)
                .unwrap_err()
                .contains("without the header etag")
        );
        let other = compare(&|c| c.headers = header("retry-after", Some("6")), 200).unwrap_err();
        assert!(other.contains("retry-after is 5, expected 6"), "{other}");
        let pointer = |name: &str, value| BTreeMap::from([(name.to_owned(), value)]);
        assert_eq!(compare(&|c| c.pointer = pointer("/status", json!("disabled")), 200), Ok(()));
        let told = compare(&|c| c.pointer = pointer("/status", json!("healthy")), 200).unwrap_err();
        assert!(told.contains("/status is \"disabled\", expected \"healthy\""), "{told}");
        assert!(compare(&|c| c.pointer = pointer("/x", json!(1)), 200).unwrap_err().contains("/x is null"));
        assert_eq!(compare(&|c| c.has = vec!["/status".into()], 200), Ok(()));
        assert!(compare(&|c| c.has = vec!["/none".into()], 200).unwrap_err().contains("without /none"));
    }

    #[test]
    fn variables_are_replaced_and_an_unknown_one_is_an_error() {
        let values = [("REASON", "a \"quoted\" one"), ("A", "1")];
        assert_eq!(filled("x${A}y${A}", &values).unwrap(), "x1y1");
        assert_eq!(filled_path("/x?a=${REASON}&b=/", &values).unwrap(), "/x?a=a%20%22quoted%22%20one&b=/");
        let json = json!({"reason": "${REASON}", "on": true, "all": ["${A}"]});
        let want = json!({"reason": "a \"quoted\" one", "on": true, "all": ["1"]});
        assert_eq!(filled_json(&json, &values).unwrap(), want);
        assert!(filled("${B}", &values).unwrap_err().to_string().contains("nothing is known as B"));
        assert!(filled("${A", &values).unwrap_err().to_string().contains("without }"));
        assert!(filled("${A B}", &values).unwrap_err().to_string().contains("not the name of a variable"));
        assert_eq!(filled("5 $ and {}", &values).unwrap(), "5 $ and {}");
        assert_eq!(names("${A}-${B}").unwrap(), ["A", "B"]);
    }
}

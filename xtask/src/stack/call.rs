//! A request to a service and what its answer must be, as a manifest has it: plain data, and the comparison with an
//! answer. Nothing is sent here: that is in `checks/ask`. Used by `manifest`, `checks` and `deploy`.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// A request, and what its answer must be.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// `GET /path?query`. Variables in it, such as `${REASON}`, are replaced.
    pub request: Line,
    /// The JSON body, with variables.
    pub json: Option<Value>,
    /// Is it sent as the public sends it, without the admin token?
    #[serde(default)]
    pub public: bool,
    /// The status that the answer must have.
    #[serde(default = "ok")]
    pub status: u16,
    /// Headers that it must have. Lowercase.
    #[serde(default)]
    pub headers: Vec<String>,
    /// Values in its JSON body, by JSON pointer (RFC 6901).
    #[serde(default)]
    pub pointer: BTreeMap<String, Value>,
    /// The answer is an event stream, in which an event with this name must come.
    pub event: Option<String>,
}

fn ok() -> u16 {
    200
}

/// Method and path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// `GET`, `HEAD` or `POST`.
    pub method: String,
    /// With its query.
    pub path: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = String::deserialize(input)?;
        let wrong = |why: &str| serde::de::Error::custom(format!("{text:?} is no request: {why}"));
        let (method, path) = text.split_once(' ').ok_or_else(|| wrong("write it as \"GET /path\""))?;
        if !matches!(method, "GET" | "HEAD" | "POST") {
            return Err(wrong("the method must be GET, HEAD or POST"));
        }
        if !path.starts_with('/') || path.contains(char::is_whitespace) {
            return Err(wrong("the path must begin with / and have no spaces"));
        }
        Ok(Self { method: method.to_owned(), path: path.to_owned() })
    }
}

impl Call {
    /// Is the answer as expected? The error says what is not. `brief` shows the answer in it.
    pub fn compare(
        &self,
        status: u16,
        has_header: impl Fn(&str) -> bool,
        body: &Value,
        brief: &str,
    ) -> Result<()> {
        ensure!(status == self.status, "answered {brief}, expected {}", self.status);
        if let Some(name) = self.headers.iter().find(|name| !has_header(name)) {
            bail!("answered {brief}, without the header {name}");
        }
        for (pointer, wanted) in &self.pointer {
            let found = body.pointer(pointer).unwrap_or(&Value::Null);
            ensure!(found == wanted, "answered {brief}: {pointer} is {found}, expected {wanted}");
        }
        Ok(())
    }
}

/// `text` with each `${NAME}` replaced by its value. A name without a value is an error.
pub fn filled(text: &str, values: &[(&str, &str)]) -> Result<String> {
    let mut parts = text.split("${");
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once('}').with_context(|| format!("{text:?}: ${{ without }}"))?;
        let found = values.iter().find(|(known, _)| *known == name);
        let (_, value) = found.with_context(|| format!("{text:?}: nothing is known as {name}"))?;
        all += value;
        all += rest;
    }
    Ok(all)
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

    fn call(text: &str) -> Result<Call, String> {
        #[derive(Deserialize)]
        struct One {
            call: Call,
        }
        toml::from_str::<One>(&format!("call = {text}")).map(|one| one.call).map_err(|e| e.to_string())
    }

    #[test]
    fn a_call_is_read_and_a_wrong_one_is_told_with_its_place() {
        let read =
            call(r#"{ request = "POST /x?a=1", json = { on = true }, headers = ["retry-after"] }"#).unwrap();
        assert_eq!((read.request.method.as_str(), read.request.path.as_str()), ("POST", "/x?a=1"));
        assert_eq!((read.json, read.status), (Some(json!({"on": true})), 200));
        for (wrong, why) in [
            (r#"{ request = "/x" }"#, "write it as"),
            (r#"{ request = "FETCH /x" }"#, "the method must be"),
            (r#"{ request = "GET x" }"#, "must begin with /"),
            (r#"{ request = "GET /a b" }"#, "no spaces"),
        ] {
            let error = call(wrong).unwrap_err();
            assert!(error.contains(why) && error.contains("line 1, column"), "{wrong}: {error}");
        }
    }

    #[test]
    fn an_answer_is_as_expected_or_the_difference_is_told() {
        let expected = |text: &str| call(&format!("{{ request = \"GET /\", {text} }}")).unwrap();
        let body = json!({"status": "disabled"});
        let compare = |text: &str, status| {
            let answer = |name: &str| name == "retry-after";
            expected(text).compare(status, answer, &body, "the answer").map_err(|e| e.to_string())
        };
        assert_eq!(compare("status = 503, headers = [\"retry-after\"]", 503), Ok(()));
        assert!(compare("status = 503", 200).unwrap_err().contains("expected 503"));
        assert!(compare("headers = [\"etag\"]", 200).unwrap_err().contains("without the header etag"));
        assert_eq!(compare("pointer = { \"/status\" = \"disabled\" }", 200), Ok(()));
        let told = compare("pointer = { \"/status\" = \"healthy\" }", 200).unwrap_err();
        assert!(told.contains("/status is \"disabled\", expected \"healthy\""), "{told}");
        assert!(compare("pointer = { \"/none\" = 1 }", 200).unwrap_err().contains("/none is null"));
    }

    #[test]
    fn variables_are_replaced_and_an_unknown_one_is_an_error() {
        let values = [("REASON", "a \"quoted\" one"), ("A", "1")];
        assert_eq!(filled("x${A}y${A}", &values).unwrap(), "x1y1");
        let json = json!({"reason": "${REASON}", "on": true, "all": ["${A}"]});
        let want = json!({"reason": "a \"quoted\" one", "on": true, "all": ["1"]});
        assert_eq!(filled_json(&json, &values).unwrap(), want);
        assert!(filled("${B}", &values).unwrap_err().to_string().contains("nothing is known as B"));
        assert!(filled("${A", &values).unwrap_err().to_string().contains("without }"));
        assert_eq!(filled("5 $ and {}", &values).unwrap(), "5 $ and {}");
    }
}

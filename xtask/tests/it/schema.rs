//! Checks JSON against `docs/events.schema.json`. Only for the words of JSON Schema (2020-12) that the file has; any other
//! word is an error. A crate for all of it takes at least 68 s of a processor to build (boon 0.6, 72 crates; jsonschema
//! 0.60 takes 107 s), more than all the rest of xtask, for a hundred lines. `events.rs` compares it with an implementation
//! of the whole standard. Also used by the unit tests (`src/deploy/schema.rs`), so it imports nothing of this folder.

use serde_json::Value;

/// The schema.
pub struct Schema(pub Value);

impl Schema {
    /// The one that this repository ships.
    pub fn shipped() -> Self {
        Self(serde_json::from_str(include_str!("../../../docs/events.schema.json")).unwrap())
    }

    /// Is this a line of a journal? The error says where it is not.
    pub fn line(&self, value: &Value) -> Result<(), String> {
        self.check(&self.0, value, "")
    }

    /// The same for another part of the file, by its name in `$defs`.
    pub fn part(&self, name: &str, value: &Value) -> Result<(), String> {
        self.check(&self.0["$defs"][name], value, "")
    }

    /// Names of all kinds of lines.
    pub fn kinds(&self) -> Vec<String> {
        let kind = |one: &Value| {
            let name = one["$ref"].as_str().unwrap().rsplit('/').next().unwrap();
            self.0["$defs"][name]["properties"]["event"]["const"].as_str().unwrap().to_owned()
        };
        self.0["oneOf"].as_array().unwrap().iter().map(kind).collect()
    }

    fn check(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        if schema == &Value::Bool(true) {
            return Ok(());
        }
        let rules = schema.as_object().unwrap_or_else(|| panic!("{at}: there is no such schema: {schema}"));
        rules.iter().try_for_each(|(word, rule)| self.rule(word, rule, schema, value, at))
    }

    fn rule(&self, word: &str, rule: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let wrong = |why: String| Err(format!("{at}: {value}: {why}"));
        match word {
            "$schema" | "$defs" | "title" | "description" => Ok(()),
            "$ref" => {
                let pointer = rule.as_str().unwrap().strip_prefix('#').unwrap();
                self.check(self.0.pointer(pointer).unwrap_or_else(|| panic!("no {pointer}")), value, at)
            }
            "type" => match any_of(rule).any(|name| is(value, name.as_str().unwrap())) {
                true => Ok(()),
                false => wrong(format!("it is no {rule}")),
            },
            "const" if rule == value => Ok(()),
            "const" => wrong(format!("it is not {rule}")),
            "enum" if any_of(rule).any(|one| one == value) => Ok(()),
            "enum" => wrong(format!("it is none of {rule}")),
            "minimum" if value.as_f64().is_none_or(|value| value >= rule.as_f64().unwrap()) => Ok(()),
            "minimum" => wrong(format!("it is less than {rule}")),
            "required" => {
                let lacks = |name: &&Value| value.is_object() && value.get(name.as_str().unwrap()).is_none();
                any_of(rule).find(lacks).map_or(Ok(()), |name| wrong(format!("{name} is missing")))
            }
            "additionalProperties" if rule == &Value::Bool(false) => {
                let known = |name: &String| schema["properties"].get(name).is_some();
                let unknown = value.as_object().into_iter().flatten().find(|(name, _)| !known(name));
                unknown.map_or(Ok(()), |(name, _)| wrong(format!("{name:?} is unknown")))
            }
            "properties" => {
                rule.as_object().unwrap().iter().try_for_each(|(name, rule)| match value.get(name) {
                    Some(value) => self.check(rule, value, &format!("{at}/{name}")),
                    None => Ok(()),
                })
            }
            "items" => {
                let mut each = value.as_array().into_iter().flatten().enumerate();
                each.try_for_each(|(n, value)| self.check(rule, value, &format!("{at}/{n}")))
            }
            "oneOf" | "anyOf" => {
                let all: Vec<_> = any_of(rule).map(|rule| self.check(rule, value, at)).collect();
                let fit = all.iter().filter(|result| result.is_ok()).count();
                // The one that fits best fails deepest.
                let best = all
                    .into_iter()
                    .filter_map(Result::err)
                    .max_by_key(|why| why.split(": ").next().unwrap().len());
                match (fit, word) {
                    (0, _) => Err(best.unwrap_or_else(|| format!("{at}: nothing fits"))),
                    (1, _) | (_, "anyOf") => Ok(()),
                    (fit, _) => wrong(format!("{fit} of `oneOf` fit")),
                }
            }
            other => panic!("{at}: this checker does not know {other:?}"),
        }
    }
}

fn any_of(rule: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match rule {
        Value::Array(all) => Box::new(all.iter()),
        one => Box::new(std::iter::once(one)),
    }
}

fn is(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        other => panic!("there is no type {other:?}"),
    }
}

/// The value with one key more, in each of its objects in turn: none of them is what was written.
pub fn spoiled(value: &Value) -> Vec<Value> {
    let mut all = Vec::new();
    match value {
        Value::Object(own) => {
            let mut more = own.clone();
            more.insert("a-new-key".into(), Value::Null);
            all.push(Value::Object(more));
            for (key, inner) in own {
                for inner in spoiled(inner) {
                    let mut own = own.clone();
                    own.insert(key.clone(), inner);
                    all.push(Value::Object(own));
                }
            }
        }
        Value::Array(own) => {
            for (at, inner) in own.iter().enumerate() {
                for inner in spoiled(inner) {
                    let mut own = own.clone();
                    own[at] = inner;
                    all.push(Value::Array(own));
                }
            }
        }
        _ => {}
    }
    all
}

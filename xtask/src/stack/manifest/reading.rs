//! Reads TOML and goes on after a mistake, so that all mistakes of a manifest are told at once. Each has its place
//! and says what would be right. Nothing here knows a key of the manifest. Used by the rest of this folder.

use serde_json::{Map, Number, Value as Json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Largest number of mistakes that are told.
const TOLD: usize = 50;

/// All mistakes of one file, in their order in it.
#[derive(Debug)]
pub struct Mistakes {
    file: String,
    all: Vec<(usize, usize, String)>,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, all } = self;
        let line = |(line, column, what): &(usize, usize, String)| format!("{file}:{line}:{column}: {what}");
        match all.as_slice() {
            [one] => f.write_str(&line(one)),
            _ => {
                write!(f, "{file} has {} mistakes", all.len())?;
                all.iter().take(TOLD).try_for_each(|one| write!(f, "\n  {}", line(one)))
            }
        }
    }
}

impl std::error::Error for Mistakes {}

/// The lines of a text.
struct Lines<'a> {
    text: &'a str,
    /// Where each of them begins.
    begin: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        let begin = [0].into_iter().chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, begin }
    }

    /// Line and column of a byte, both from 1. The column counts characters.
    fn place(&self, at: usize) -> (usize, usize) {
        let at = at.min(self.text.len());
        let line = self.begin.partition_point(|begin| *begin <= at);
        let before = &self.text.as_bytes()[self.begin[line - 1]..at];
        (line, String::from_utf8_lossy(before).chars().count() + 1)
    }
}

/// What a manifest needs that others must have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// A variable of the env file.
    Variable(String),
    /// A service that only Compose knows.
    Service(String),
    /// Stored data, by its own name or that of its volume.
    Data(String),
}

/// What was found on the way: mistakes, and what is needed. Each with the byte that it is at.
#[derive(Default)]
pub struct Notes {
    mistakes: RefCell<Vec<(usize, String)>>,
    needs: RefCell<Vec<(usize, Need)>>,
}

impl Notes {
    /// One mistake. It says what is wrong, and what would be right.
    pub fn add(&self, at: usize, what: impl Into<String>) {
        self.mistakes.borrow_mut().push((at, what.into()));
    }
}

/// What a manifest needs, each with its line and column; without them if it was added, because the file is older.
pub type Needs = Vec<(Need, Option<(usize, usize)>)>;

/// Reads a file. `older` says what is added to it, if it is of an older version. `read` gets its top table, and notes
/// what it does not like; its result counts only if there is no mistake.
pub fn read<T>(
    file: &str,
    text: &str,
    older: &dyn Fn(&Table<'_>) -> Vec<&'static str>,
    read: impl FnOnce(&Table<'_>) -> Option<T>,
) -> Result<(T, Needs), Mistakes> {
    let notes = Notes::default();
    // What is added stands behind the file, so that its bytes have numbers of their own.
    let added: Vec<String>;
    let (mut table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        notes.add(error.span().map_or(0, |span| span.start), error.message().trim().replace('\n', ", "));
    }
    // What follows a mistake in the syntax may not be what was meant.
    let mut found = None;
    if notes.mistakes.borrow().is_empty() {
        let behind = " ".repeat(text.len());
        added =
            older(&Table::of(&table, &notes)).into_iter().map(|more| format!("{behind}\n{more}")).collect();
        for text in &added {
            let (more, _) = DeTable::parse_recoverable(text);
            merge(table.get_mut(), more.into_inner());
        }
        found = read(&Table::of(&table, &notes));
    }
    let (mistakes, lines) = (in_order(notes.mistakes), Lines::of(text));
    match found {
        Some(found) if mistakes.is_empty() => {
            let placed = |(at, need)| (need, (at <= text.len()).then(|| lines.place(at)));
            Ok((found, in_order(notes.needs).into_iter().map(placed).collect()))
        }
        _ => {
            let told = mistakes.into_iter().map(|(at, what)| {
                let (line, column) = lines.place(at);
                (line, column, what)
            });
            Err(Mistakes { file: file.to_owned(), all: told.collect() })
        }
    }
}

fn in_order<T: Ord>(all: RefCell<Vec<(usize, T)>>) -> Vec<(usize, T)> {
    let mut all = all.into_inner();
    all.sort();
    all.dedup();
    all
}

/// Adds what a table does not have.
fn merge<'a>(into: &mut DeTable<'a>, more: DeTable<'a>) {
    for (key, value) in more {
        let own =
            into.iter_mut().find(|(own, _)| own.get_ref() == key.get_ref()).map(|(_, own)| own.get_mut());
        match (own, value.into_inner()) {
            (None, value) => drop(into.insert(key.clone(), Spanned::new(key.span(), value))),
            (Some(DeValue::Table(own)), DeValue::Table(more)) => merge(own, more),
            (Some(_), _) => {}
        }
    }
}

/// One table. Each key is asked for once; `close` notes those that nobody asked for.
pub struct Table<'a> {
    table: &'a DeTable<'a>,
    span: Range<usize>,
    name: String,
    known: RefCell<Vec<&'static str>>,
    notes: &'a Notes,
}

impl<'a> Table<'a> {
    fn of(table: &'a Spanned<DeTable<'a>>, notes: &'a Notes) -> Self {
        let known = RefCell::default();
        Self { table: table.get_ref(), span: table.span(), name: String::new(), known, notes }
    }

    /// Where it is, for a mistake of the whole table.
    pub fn at(&self) -> usize {
        self.span.start
    }

    /// Notes a mistake of the whole table.
    pub fn wrong(&self, what: impl fmt::Display) {
        self.notes.add(self.at(), format!("{}{what}", self.said()));
    }

    /// Notes a mistake of the element of `[[section]]` in which this text stands.
    pub fn wrong_in(&self, section: &'static str, text: &str, what: &str) {
        let is = |value: &DeValue<'_>| matches!(value, DeValue::String(found) if found.as_ref() == text);
        let has = |value: &DeValue<'_>| match value {
            DeValue::Array(all) => all.iter().any(|one| is(one.get_ref())),
            other => is(other),
        };
        let mut found = self.at();
        let section = self.table.iter().find(|(key, _)| key.get_ref().as_ref() == section);
        if let Some(DeValue::Array(elements)) = section.map(|(_, value)| value.get_ref()) {
            for element in elements.iter() {
                if let DeValue::Table(keys) = element.get_ref()
                    && let Some((_, value)) = keys.iter().find(|(_, value)| has(value.get_ref()))
                {
                    found = value.span().start;
                }
            }
        }
        self.notes.add(found, format!("{text:?}: {what}"));
    }

    fn said(&self) -> String {
        if self.name.is_empty() { String::new() } else { format!("{}: ", self.name) }
    }

    /// The value of a key, if it is there.
    pub fn value(&self, key: &'static str) -> Option<Value<'a>> {
        self.known.borrow_mut().push(key);
        let (_, value) = self.table.iter().find(|(name, _)| name.get_ref().as_ref() == key)?;
        let name = if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) };
        Some(Value { value, name, notes: self.notes })
    }

    /// Has it this key?
    pub fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// The value of a key, if it is there and right.
    pub fn get<T>(&self, key: &'static str, read: impl FnOnce(&Value<'a>) -> Option<T>) -> Option<T> {
        self.value(key).and_then(|value| read(&value))
    }

    /// The value of a key that must be there.
    pub fn need<T>(&self, key: &'static str, read: impl FnOnce(&Value<'a>) -> Option<T>) -> Option<T> {
        match self.value(key) {
            Some(value) => read(&value),
            None => {
                self.wrong(format!("`{key}` is missing"));
                None
            }
        }
    }

    /// The value of a key, or this one if it is not there. A wrong one has been noted.
    pub fn or<T>(&self, key: &'static str, other: T, read: impl FnOnce(&Value<'a>) -> Option<T>) -> T {
        self.get(key, read).unwrap_or(other)
    }

    /// The values of a key that may have several (`[[key]]`); none if it is not there.
    pub fn each<T>(&self, key: &'static str, mut read: impl FnMut(&Value<'a>) -> Option<T>) -> Vec<T> {
        self.get(key, |value| value.list(&mut read)).unwrap_or_default()
    }

    /// Every key is known now.
    pub fn close(&self) {
        let mut known = self.known.borrow().clone();
        known.sort_unstable();
        known.dedup();
        for (key, _) in self.table {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let close = |known: &&&str| strsim::damerau_levenshtein(known, name);
            let near = known.iter().min_by_key(close).filter(|known| close(known) <= 3 && name.len() > 2);
            let right = match near {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: {}", known.join(", ")),
            };
            self.notes.add(key.span().start, format!("{}unknown key `{name}`; {right}", self.said()));
        }
    }

    /// Every key with its value, for tables whose keys are free.
    pub fn pairs(&self) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        let notes = self.notes;
        self.table.iter().map(move |(key, value)| {
            let name: &'a str = key.get_ref().as_ref();
            (name, Value { value, name: name.to_owned(), notes })
        })
    }
}

/// One value, with its name for messages.
pub struct Value<'a> {
    value: &'a Spanned<DeValue<'a>>,
    name: String,
    notes: &'a Notes,
}

impl<'a> Value<'a> {
    /// Where it is.
    pub fn at(&self) -> usize {
        self.value.span().start
    }

    /// Notes a mistake. It says what is wrong, and what would be right.
    pub fn note(&self, what: impl fmt::Display) {
        self.notes.add(self.at(), format!("{}: {what}", self.name));
    }

    /// Notes a mistake; there is no value.
    pub fn wrong<T>(&self, what: impl fmt::Display) -> Option<T> {
        self.note(what);
        None
    }

    fn expected<T>(&self, what: &str) -> Option<T> {
        let is = match self.value.get_ref() {
            DeValue::String(_) => "a text",
            DeValue::Integer(_) => "a number",
            DeValue::Float(_) => "a number with a point",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.wrong(format!("it is {is}; it must be {what}"))
    }

    /// A text that is not empty.
    pub fn text(&self) -> Option<String> {
        match self.value.get_ref() {
            DeValue::String(text) if text.trim().is_empty() => self.wrong("it is empty; it must be a text"),
            DeValue::String(text) => Some(text.as_ref().to_owned()),
            _ => self.expected("a text, such as \"…\""),
        }
    }

    /// `true` or `false`.
    pub fn flag(&self) -> Option<bool> {
        match self.value.get_ref() {
            DeValue::Boolean(is) => Some(*is),
            _ => self.expected("true or false"),
        }
    }

    /// A whole number in this range.
    pub fn number(&self, range: Range<u64>) -> Option<u64> {
        let DeValue::Integer(number) = self.value.get_ref() else { return self.expected("a whole number") };
        let read = u64::from_str_radix(number.as_str(), number.radix()).ok();
        let right = read.filter(|read| range.contains(read));
        right.or_else(|| self.wrong(format!("it is {number}; from {} to {}", range.start, range.end - 1)))
    }

    /// A time, such as `500ms`.
    pub fn duration(&self) -> Option<Duration> {
        let text = self.text()?;
        let told =
            |error| format!("{text:?} is no time ({error}); right would be \"500ms\", \"5s\" or \"2m\"");
        humantime::parse_duration(&text).map_err(told).or_else(|what| self.wrong(what).ok_or(())).ok()
    }

    /// A list, each read by `read`. Wrong ones have been noted.
    pub fn list<T>(&self, read: &mut impl FnMut(&Value<'a>) -> Option<T>) -> Option<Vec<T>> {
        let DeValue::Array(all) = self.value.get_ref() else {
            return self.expected("a list, such as [\"…\"]");
        };
        let value = |value| Value { value, name: self.name.clone(), notes: self.notes };
        Some(all.iter().map(value).filter_map(|value| read(&value)).collect())
    }

    /// A list of texts.
    pub fn texts(&self) -> Option<Vec<String>> {
        self.list(&mut Value::text)
    }

    /// Notes what it needs.
    pub fn needs(&self, need: Need) {
        self.notes.needs.borrow_mut().push((self.at(), need));
    }

    /// The number, if it is one; no mistake is noted.
    pub fn is_number(&self) -> Option<u64> {
        let DeValue::Integer(number) = self.value.get_ref() else { return None };
        u64::from_str_radix(number.as_str(), number.radix()).ok()
    }

    /// Is it a table?
    pub fn is_table(&self) -> bool {
        matches!(self.value.get_ref(), DeValue::Table(_))
    }

    /// Is it a list?
    pub fn is_list(&self) -> bool {
        matches!(self.value.get_ref(), DeValue::Array(_))
    }

    /// A table. It is to be closed by its reader.
    pub fn table(&self) -> Option<Table<'a>> {
        let DeValue::Table(table) = self.value.get_ref() else { return self.expected("a table") };
        let known = RefCell::default();
        let span = self.value.span();
        Some(Table { table, span, name: self.name.clone(), known, notes: self.notes })
    }

    /// Any value, as JSON.
    pub fn json(&self) -> Option<Json> {
        Some(match self.value.get_ref() {
            DeValue::String(text) => Json::String(text.as_ref().to_owned()),
            DeValue::Boolean(is) => Json::Bool(*is),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Json::Number(number.into()),
                Err(error) => return self.wrong(format!("{number}: {error}")),
            },
            DeValue::Float(number) => match number.as_str().parse().ok().and_then(Number::from_f64) {
                Some(number) => Json::Number(number),
                None => return self.wrong(format!("{} is no number of JSON", number.as_str())),
            },
            DeValue::Datetime(date) => Json::String(date.to_string()),
            DeValue::Array(_) => Json::Array(self.list(&mut Value::json)?),
            DeValue::Table(_) => {
                let pairs = self.table()?;
                let all: Option<Map<String, Json>> =
                    pairs.pairs().map(|(key, value)| Some((key.to_owned(), value.json()?))).collect();
                Json::Object(all?)
            }
        })
    }

    /// A table whose keys are free, each value read by `read`.
    pub fn map<T>(&self, mut read: impl FnMut(&str, &Value<'a>) -> Option<T>) -> Option<BTreeMap<String, T>> {
        let table = self.table()?;
        Some(table.pairs().filter_map(|(key, value)| Some((key.to_owned(), read(key, &value)?))).collect())
    }
}

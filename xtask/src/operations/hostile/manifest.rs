//! Tests: a manifest that may be anything. What is added in a comment changes nothing; every mistake has its place.
//! Called by `hostile`.

use crate::stack::manifest::Manifest;

/// The name of the file in errors.
const NAME: &str = "pilot.toml";

pub(super) fn body(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let read = Manifest::parse(NAME, text);
    let behind = Manifest::parse(NAME, &format!("{text}\n# the end\n"));
    let lines = text.split('\n').count();
    assert_eq!(read.is_ok(), behind.is_ok(), "a comment at the end matters: {read:?}, {behind:?}");
    match (&read, &behind) {
        (Ok(read), Ok(behind)) => {
            let (one, other) = (format!("{read:?}"), format!("{behind:?}"));
            assert_eq!(one, other, "a comment at the end changes what it says");
            holds(read);
        }
        (Err(error), _) | (_, Err(error)) => has_places(&format!("{error:#}"), lines),
    }
    // A byte order mark may only be the very first.
    if !text.starts_with('\u{feff}') {
        let before = Manifest::parse(NAME, &format!("# the beginning\n{text}"));
        assert_eq!(read.is_ok(), before.is_ok(), "a comment at the beginning matters");
    }
}

/// What is asked of a manifest that was read.
fn holds(manifest: &Manifest) {
    let needs = manifest.check_needs(|_| false, None);
    if let Err(error) = needs {
        assert!(format!("{error:#}").contains("is missing in the env file"), "{error:#}");
    }
    assert!(manifest.check_needs(|_| true, None).is_ok());
    assert!(
        manifest.scripts().all(|path| !path.starts_with('/') && !path.split('/').any(|part| part == ".."))
    );
    drop(manifest.secret_rules());
    drop(manifest.drill.pairs());
}

/// Every mistake has a line that the file has, and something is said of it.
fn has_places(error: &str, lines: usize) {
    let told: Vec<&str> = error.split('\n').filter_map(|line| line.trim().strip_prefix(NAME)).collect();
    assert!(!told.is_empty(), "an error without a place: {error}");
    for place in told.iter().filter_map(|rest| rest.strip_prefix(':')) {
        let mut parts = place.splitn(3, ':');
        let line: Option<usize> = parts.next().and_then(|line| line.parse().ok());
        let column: Option<usize> = parts.next().and_then(|column| column.parse().ok());
        let is_in_it = line.is_some_and(|line| (1..=lines).contains(&line)) && column >= Some(1);
        assert!(is_in_it, "it has {lines} lines, and the error is at {place}");
        assert!(parts.next().is_some_and(|says| says.len() > 3), "nothing is said at {place}");
    }
    assert!(told.iter().any(|rest| rest.starts_with(':')), "no mistake has a place: {error}");
}

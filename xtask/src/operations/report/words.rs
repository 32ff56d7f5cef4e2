//! Words that the reports share: times, and the escaping of text. Called by `html`, `markdown` and `junit`.

/// Said of a time that was not measured.
pub const UNMEASURED: &str = "not measured";

/// A time in seconds, or that it was not measured.
pub fn seconds(ms: Option<u64>) -> String {
    ms.map_or(UNMEASURED.into(), |ms| format!("{:.2} s", ms as f64 / 1e3))
}

/// A time as it is read best: milliseconds, seconds, or minutes.
pub fn lasted(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{:.2} s", ms as f64 / 1e3),
        _ => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1_000),
    }
}

/// Escapes text for HTML and XML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

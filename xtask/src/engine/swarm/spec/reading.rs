//! Reads single values that Compose prints: words, times, sizes, modes. Pure, and without any rule of Swarm. Called
//! by the other files of `spec`.

use serde_json::Value;

/// A text.
pub fn text(value: &Value) -> Option<&str> {
    value.as_str()
}

/// The members of a list; none if it is something else.
pub fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The texts in a list.
pub fn words(value: &Value) -> Vec<String> {
    list(value).filter_map(text).map(str::to_owned).collect()
}

/// The pairs of a map; none if it is something else.
pub fn map(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// Does it say nothing: missing, false, zero, or an empty text, list or map?
pub fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        Value::Bool(true) => false,
    }
}

/// A whole number, also as a text.
pub fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| text(value)?.parse().ok())
}

/// Thousand million parts of a processor, from a number of processors. Newer versions of Compose print a text.
pub fn nano_cpus(value: &Value) -> Option<i64> {
    let cpus = value.as_f64().or_else(|| text(value)?.parse().ok())?;
    rounded(cpus * 1e9)
}

/// Bytes, from a number or from a text such as `64m`.
pub fn bytes(value: &Value) -> Option<i64> {
    if let Some(bytes) = integer(value) {
        return Some(bytes);
    }
    let text = text(value)?.trim().to_ascii_lowercase();
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|at| *at > 0)?;
    let (number, unit) = text.split_at(unit);
    let shift = match unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(unit) {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    rounded(number.parse::<f64>().ok()? * f64::from(shift).exp2())
}

/// Nanoseconds, from a text as Go prints it: `1m30s`, `1.5s`, `200ms`.
pub fn nanoseconds(value: &Value) -> Option<i64> {
    let mut rest = text(value)?;
    if rest == "0" {
        return Some(0);
    }
    let mut sum = 0.0;
    while !rest.is_empty() {
        let at = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|at| *at > 0)?;
        let (number, after) = rest.split_at(at);
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let length = match unit {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            "d" => 86_400e9,
            _ => return None,
        };
        sum += number.parse::<f64>().ok()? * length;
        rest = after;
    }
    rounded(sum).filter(|_| text(value) != Some(""))
}

/// The rights of a file: a number, or a text with octal digits, which newer versions of Compose print.
pub fn mode(value: &Value) -> Option<u32> {
    match value {
        Value::String(digits) => u32::from_str_radix(digits.trim_start_matches("0o"), 8).ok(),
        other => other.as_u64().and_then(|mode| u32::try_from(mode).ok()),
    }
    .filter(|mode| *mode <= 0o7777)
}

/// The nearest whole number. None: it is negative, or too large to be meant.
fn rounded(number: f64) -> Option<i64> {
    // Up to here, every whole number has a floating-point number of its own, so the text of one is exact.
    const MOST: f64 = 9_007_199_254_740_992.0;
    let fits = (0.0..=MOST).contains(&number);
    format!("{:.0}", number.round()).parse().ok().filter(|_| fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_sizes_and_modes_are_read_in_every_form() {
        for (text, wanted) in [
            ("1m30s", Some(90_000_000_000)),
            ("1.5s", Some(1_500_000_000)),
            ("200ms", Some(200_000_000)),
            ("1h0m0.25s", Some(3_600_250_000_000)),
            ("5µs", Some(5_000)),
            ("0s", Some(0)),
            ("0", Some(0)),
            ("", None),
            ("5", None),
            ("s", None),
            ("5 s", None),
            ("-1s", None),
            ("1fortnight", None),
        ] {
            assert_eq!(nanoseconds(&json!(text)), wanted, "{text}");
        }
        for (value, wanted) in [
            (json!("268435456"), Some(268_435_456)),
            (json!(5), Some(5)),
            (json!("64m"), Some(67_108_864)),
            (json!("1.5gb"), Some(1_610_612_736)),
            (json!("2KiB"), Some(2048)),
            (json!("7b"), Some(7)),
            (json!("m"), None),
            (json!("5 apples"), None),
        ] {
            assert_eq!(bytes(&value), wanted, "{value}");
        }
        assert_eq!(nano_cpus(&json!(0.1)), Some(100_000_000));
        assert_eq!(nano_cpus(&json!("0.50")), Some(500_000_000));
        assert_eq!(nano_cpus(&json!(-1)), None);
        assert_eq!([mode(&json!(288)), mode(&json!("0440")), mode(&json!("0o440"))], [Some(0o440); 3]);
        assert_eq!([mode(&json!(1 << 20)), mode(&json!("9")), mode(&json!(null))], [None; 3]);
    }
}

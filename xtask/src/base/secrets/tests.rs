//! Searches for a secret that survives: awkward values, prefixes of one another, every encoding, nested.

use super::*;
use serde_json::json;

/// A little generator (xorshift), so that a failure can be run again.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    fn secret(&mut self) -> String {
        let letters: Vec<char> = r#""\'/%&<>$`#=+;: ,{}[]()|~é€😀nurtxabc0123456789XYZ"#.chars().chain(['\n', '\t', '\u{1}', '\u{301}']).collect();
        let length = 6 + self.below(30);
        (0..length).map(|_| letters[self.below(letters.len())]).collect()
    }
}

fn percent(text: &str, all: bool) -> String {
    let kept = |b: u8| !all && (b.is_ascii_alphanumeric() || b"-_.~".contains(&b));
    text.bytes().map(|b| if kept(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn json_of(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

fn ascii(text: &str) -> String {
    let units =
        |c: char| c.encode_utf16(&mut [0; 2]).iter().map(|u| format!("\\u{u:04x}")).collect::<String>();
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_string() } else { units(c) }).collect()
}

fn html(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

fn base64_of(bytes: &[u8]) -> String {
    let letters: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['+', '/']).collect();
    let group = |three: &[u8]| {
        let bits =
            three.iter().chain([0; 2].iter()).take(3).fold(0usize, |sum, b| sum << 8 | usize::from(*b));
        let text: String = (0..=three.len()).map(|n| letters[bits >> (18 - 6 * n) & 63]).collect();
        format!("{text:=<4}")
    };
    bytes.chunks(3).map(group).collect()
}

/// Everything that is written somewhere, of a text.
fn encodings(text: &str) -> Vec<(&'static str, String)> {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
    vec![
        ("as it is", text.to_owned()),
        ("JSON", json_of(text)),
        ("JSON in JSON", json_of(&json_of(text))),
        ("JSON in JSON in JSON", json_of(&json_of(&json_of(text)))),
        ("Debug", format!("{text:?}")),
        ("Debug of Some", format!("{:?}", Some(text))),
        ("Debug of JSON", format!("{:?}", json_of(text))),
        ("escape_default", text.escape_default().to_string()),
        ("ASCII JSON", ascii(text)),
        ("ASCII JSON in JSON", json_of(&ascii(text))),
        ("Go's JSON", json_of(text).replace('<', "\\u003c").replace('>', "\\u003E").replace('&', "\\u0026")),
        ("JSON for scripts", json_of(text).replace('/', "\\/")),
        ("percent", percent(text, false)),
        ("percent of all", percent(text, true)),
        ("percent, lowercase", lower_hex(text)),
        ("percent twice", percent(&percent(text, false), false)),
        ("percent of JSON", percent(&json_of(text), false)),
        ("form", percent(text, false).replace("%20", "+")),
        ("HTML", html(text)),
        ("HTML twice", html(&html(text))),
        ("HTML of JSON", html(&json_of(text))),
        ("shell", quoted(text)),
        ("shell in JSON", json_of(&quoted(text))),
        ("YAML", text.replace('\'', "''")),
        ("Compose", text.replace('$', "$$")),
    ]
}

fn lower_hex(text: &str) -> String {
    let kept = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    text.bytes().map(|b| if kept(b) { char::from(b).to_string() } else { format!("%{b:02x}") }).collect()
}

fn secrets(all: &[String]) -> Secrets {
    let mut secrets = Secrets::new(Rules { variables: vec!["S".into()], public: Vec::new() });
    all.iter().for_each(|value| secrets.learn_one("S", value));
    secrets
}

#[test]
fn no_secret_survives_in_any_encoding() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..100 {
        let short = random.secret();
        // Each begins with the one before.
        let longer = format!("{short}{}", random.secret());
        let longest = format!("{longer}{}", random.secret());
        let all = [short, longer, longest];
        let mut order = all.clone();
        order.rotate_left(round % 3);
        let known = secrets(&order);
        for secret in &all {
            for ((name, text), (_, around)) in encodings(secret).into_iter().zip(encodings("")) {
                let masked = known.mask(&format!("before {text} behind"));
                let left = masked.replace(MASK, "");
                let left =
                    left.strip_prefix("before ").and_then(|left| left.strip_suffix(" behind")).unwrap();
                // Nothing but the quotes around it, which may have been taken for a part of it.
                let quotes = left.len() <= around.len() && left.chars().all(|c| around.contains(c));
                assert!(quotes, "{name} of {secret:?}: {text} became {masked}");
            }
        }
    }
}

/// Every text in a value, and in the JSON that is in it.
fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => {
            found.push(text.clone());
            if let Ok(inner) = serde_json::from_str::<Value>(text) {
                texts(&inner, found);
            }
        }
        Value::Array(all) => all.iter().for_each(|value| texts(value, found)),
        Value::Object(all) => all.iter().for_each(|(name, value)| {
            found.push(name.clone());
            texts(value, found);
        }),
        other => found.push(other.to_string()),
    }
}

#[test]
fn no_document_is_broken_and_no_secret_is_left_in_it() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for _ in 0..300 {
        let (short, other) = (random.secret(), random.secret());
        let longer = format!("{short}{}", random.secret());
        let known = secrets(&[short.clone(), longer.clone(), other.clone()]);
        let inner = json!({"a": longer, "b": [other, 1]});
        let mut value = json!({"log": format!("{}{longer}\n{other}{}", random.secret(), random.secret()), "Env": [format!("X={short}")], "n": 7, "raw": inner, "text": inner.to_string()});
        value[&short] = json!("named");
        for text in [value.to_string(), format!("{value:#}"), format!("{value}\n{inner}\n")] {
            let masked = known.mask_document(&text);
            let mut left = Vec::new();
            for value in serde_json::Deserializer::from_str(&masked).into_iter::<Value>() {
                texts(&value.unwrap_or_else(|e| panic!("{e}: {text} became {masked}")), &mut left);
            }
            assert!(left.contains(&"7".to_owned()), "{masked}");
            for text in left {
                let shown =
                    [&short, &longer, &other].into_iter().find(|secret| text.contains(secret.as_str()));
                assert_eq!(shown, None, "{text}");
            }
        }
    }
}

#[test]
fn no_piece_of_an_overlap_and_no_base64_survives() {
    let known = secrets(&["abcdef-ghi".into(), "ghi-jklmno".into(), "s3cret/of+the>pilot".into()]);
    assert_eq!(known.mask("x abcdef-ghi-jklmno y"), "x ******** y");
    for before in ["", "a", "ab", "user:", "admin:"] {
        for behind in ["", "?", "!!", "\n", ":x"] {
            let text = base64_of(format!("{before}s3cret/of+the>pilot{behind}").as_bytes());
            let (masked, in_urls) =
                (known.mask(&text), known.mask(&text.replace('+', "-").replace('/', "_")));
            for masked in [masked, in_urls] {
                assert!(
                    masked.contains(MASK) && masked.replace(MASK, "").len() <= 12,
                    "{text} became {masked}"
                );
            }
        }
    }
}

#[test]
fn names_and_values_that_look_secret_are_hidden_and_others_are_not() {
    let rules = Rules { variables: vec!["LISTED".into()], public: vec!["PUBLIC_KEY".into()] };
    let hidden = [
        ("LISTED", "x"),
        ("ADMIN_TOKEN", "abc123"),
        ("API_KEY", "12345678abc"),
        ("apiKey", "k3y-of-it"),
        ("API_KEY_2", "k3y-of-it"),
        ("DB_PASSWORD", "postgres"),
        ("DB_PASSWORD", "1234"),
        ("SMTP_PASS", "abc"),
        ("PGPASSWORD", "hunter2"),
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI"),
        ("PRIVATE_THING", "something"),
        ("BASIC_AUTH", "user:pw1234"),
        ("GOOGLE_CREDENTIALS", "{}x{}"),
        ("DATABASE_URL", "postgres://u:p@h/"),
        ("REDIS", "redis://:p@h"),
        ("SENTRY", "https://0123456789abcdef0123@sentry.example/1"),
        ("JDBC", "jdbc:postgresql://h/db?user=u&password=p4ss"),
        ("ADO", "Server=h;User Id=u;Password=p4ss;"),
        ("CERTIFICATE", "-----BEGIN PRIVATE KEY-----\\nMIIE"),
        ("WHO", "eyJhbGciOiJI.eyJzdWIi.c2lnbmF0"),
        ("GIT", "ghp_0123456789abcdef0123"),
    ];
    for (name, value) in hidden {
        assert!(rules.hides(name, value), "{name}={value}");
    }
    let shown = [
        ("PUBLIC_KEY", "anything"),
        ("MAX_TOKENS_PER_RUN", "4000"),
        ("TOKEN_TTL", "30s"),
        ("TOKEN_EXPIRES_MS", "1893456000000"),
        ("QUOTA_PER_RUN", "24"),
        ("ADMIN_AUTH", "off"),
        ("AUTH_KIND", "basic"),
        ("ENABLE_SECRET_HYGIENE_BLOCKING", "false"),
        ("KEYBOARD", "colemak-dh"),
        ("AUTHOR", "somebody"),
        ("BYPASS_CACHE", "anything"),
        ("PWD", "/srv/pilot"),
        ("LOG_LEVEL", "info"),
        ("CORS_ORIGINS", "http://localhost:5173,http://127.0.0.1:5173"),
        ("SCENARIO_ENGINE_URL", "http://engine:3002"),
        ("MAIL", "postgres://user@host/db"),
        ("API_KEY", ""),
    ];
    for (name, value) in shown {
        assert!(!rules.hides(name, value), "{name}={value}");
    }
}

#[test]
fn what_is_assigned_in_text_is_masked_without_knowing_it() {
    let known = Secrets::new(Rules::default());
    for (text, masked) in [
        ("invalid line: API_KEY=abc-def-ghi.", "invalid line: API_KEY=********"),
        ("- API_KEY=abc-def-ghi\n- LOG=info", "- API_KEY=********\n- LOG=info"),
        ("  DB_PASSWORD: 'it is long'\n", "  DB_PASSWORD: '********'\n"),
        (r#"{"DB_PASSWORD": "it is \"long\""}"#, r#"{"DB_PASSWORD": "********"long\""}"#),
        ("dial postgres://u:p%20w@h/db failed", "dial postgres://u:********@h/db failed"),
        ("dial amqp://u:p/w@h/db failed", "dial amqp://u:********@h/db failed"),
        ("o: addr=nas,username=u,password=pw12,vers=3", "o: addr=nas,username=u,password=********,vers=3"),
        ("expected KEY=VALUE, found no =", "expected KEY=VALUE, found no ="),
        ("http://127.0.0.1:3001/healthz: 503", "http://127.0.0.1:3001/healthz: 503"),
        ("tokens: 24, MAX_TOKENS_PER_RUN=4000", "tokens: 24, MAX_TOKENS_PER_RUN=4000"),
        ("RESTORED: release r1 serves again", "RESTORED: release r1 serves again"),
    ] {
        assert_eq!(known.mask(text), masked);
    }
}

#[test]
fn documents_stay_what_they_are() {
    // Each of these breaks JSON when it is replaced in the text: it takes a quote or half an escape with it.
    let all = ["nabcdef", "abcdef\\", "a\",\"b", "00e9abc", "12345678", "key-of-it"].map(str::to_owned);
    let known = secrets(&all);
    let value = json!({
        "a": "\nabcdef and abcdef\"", "b": ["a", "b"], "c": "é\u{e9}abc \u{1}00e9abc", "d": 12345678, "key-of-it": 1,
        "Env": ["DB_PASSWORD=a b c", "A=1"], "nested": "{\"x\":\"abcdef\\\\\"}",
    });
    for text in [value.to_string(), format!("{value:#}"), format!("{value}\n{value}\n")] {
        let masked = known.mask_document(&text);
        let parsed: Vec<Value> =
            serde_json::Deserializer::from_str(&masked).into_iter().map(Result::unwrap).collect();
        assert_eq!(parsed[0]["d"], json!(MASK), "{masked}");
        assert_eq!(parsed[0]["Env"], json!(["DB_PASSWORD=********", "A=1"]));
        assert_eq!(parsed[0][MASK], json!(1));
        assert!(!masked.contains("abcdef\\\\"), "{masked}");
    }
    assert_eq!(known.mask_document("{\"a\":1}"), "{\"a\":1}");
}

#[test]
fn parts_of_a_secret_are_secrets() {
    let mut known = Secrets::new(Rules::default());
    let settings = [
        ("DATABASE_URL", "postgres://notes:p%40ss-word@db/notes"),
        ("API_KEYS", "first-key,second-key"),
        ("TLS_PRIVATE_KEY", "-----BEGIN KEY-----\nMIIEfirstline\nMIIEsecondline\n-----END KEY-----"),
        ("GOOGLE_CREDENTIALS", r#"{"type":"service_account","private_key":"json-key-of-it"}"#),
    ];
    known.learn(&settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    for text in ["p%40ss-word", "p@ss-word", "second-key", "MIIEsecondline", "json-key-of-it"] {
        assert_eq!(known.mask(&format!("said {text}")), format!("said {MASK}"));
    }
    assert_eq!(known.mask("a service_account of notes"), "a service_account of notes");
}

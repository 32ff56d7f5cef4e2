//! A real browser for tests of pages: headless Chromium, driven by the DevTools protocol through two pipes, so that it
//! needs no port. It tells what a page asked for, what it complained about, and how it looks.

use crate::pilot::{Folder, workspace};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long the browser may take for one answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The programs that are Chromium.
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// What a test of pages needs: Chromium, and the script of axe-core. The error says what is missing.
pub fn available() -> Result<(PathBuf, String), String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let there = |name: &str| path.split(':').map(|dir| Path::new(dir).join(name)).find(|path| path.exists());
    let program = NAMES.iter().find_map(|name| there(name)).ok_or("there is no chromium")?;
    let axe = workspace().join("target/ci/axe/axe_playwright_python/axe.min.js");
    let script = std::fs::read_to_string(&axe).map_err(|error| format!("{}: {error}", axe.display()))?;
    Ok((program, script))
}

/// A browser with one page.
pub struct Browser {
    child: Child,
    to: File,
    from: Receiver<Value>,
    session: String,
    next: u64,
    events: Vec<Value>,
    _home: Folder,
}

impl Browser {
    pub fn start(program: &Path) -> Self {
        let home = Folder::new("browser");
        let pipe = |name: &str| {
            let path = home.0.join(name);
            assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
            path
        };
        let (to, from) = (pipe("to"), pipe("from"));
        let child = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<\"$TO\" 4>\"$FROM\""])
            .arg(program)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"])
            .arg("--disable-dev-shm-usage")
            .arg(format!("--user-data-dir={}", home.0.join("profile").display()))
            .envs([("TO", &to), ("FROM", &from)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let to = File::options().write(true).open(&to).unwrap();
        let (tell, told) = channel();
        let mut reader = BufReader::new(File::open(&from).unwrap());
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while reader.read_until(0, &mut message).is_ok_and(|read| read > 0) {
                message.pop();
                tell.send(serde_json::from_slice(&message).unwrap()).ok();
                message.clear();
            }
        });
        let (session, events) = (String::new(), Vec::new());
        let mut browser = Self { child, to, from: told, session, next: 0, events, _home: home };
        let target = browser.ask("Target.createTarget", &json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        browser.session = browser.ask("Target.attachToTarget", &attach)["sessionId"].as_str().unwrap().into();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.ask(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    /// Sends a command and waits for its result.
    #[track_caller]
    pub fn ask(&mut self, method: &str, params: &Value) -> Value {
        self.next += 1;
        let mut message = json!({"id": self.next, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        let begun = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(begun.elapsed());
            let told = self.from.recv_timeout(left);
            let told = told.unwrap_or_else(|error| panic!("{method}: no answer of the browser: {error}"));
            if told["id"] == self.next {
                assert!(told["error"].is_null(), "{method}: {told}");
                return told["result"].clone();
            }
            self.events.push(told);
        }
    }

    /// Opens a file at this width, light or dark, and waits until it is there.
    pub fn open(&mut self, page: &Path, width: u32, scheme: &str) {
        let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600});
        self.ask("Emulation.setDeviceMetricsOverride", &size);
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.ask("Emulation.setEmulatedMedia", &features);
        self.events.clear();
        self.ask("Page.navigate", &json!({"url": format!("file://{}", page.display())}));
        let begun = Instant::now();
        while self.value("document.readyState + location.protocol") != "completefile:" {
            assert!(begun.elapsed() < PATIENCE, "{} does not open", page.display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The value of an expression of JavaScript; a promise is waited for.
    #[track_caller]
    pub fn value(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let told = self.ask("Runtime.evaluate", &params);
        assert!(told["exceptionDetails"].is_null(), "{told}");
        told["result"]["value"].clone()
    }

    /// What the page asked for, besides itself.
    pub fn requests(&self) -> Vec<String> {
        let sent = self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        let urls =
            sent.map(|event| event["params"]["request"]["url"].as_str().unwrap_or_default().to_owned());
        // The first one is the page; an empty icon is in it.
        urls.skip(1).filter(|url| !url.starts_with("data:")).collect()
    }

    /// What the browser or the page complained about.
    pub fn complaints(&self) -> Vec<Value> {
        let kinds = ["Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"];
        let told = self.events.iter().filter(|event| kinds.iter().any(|kind| event["method"] == *kind));
        told.map(|event| event["params"].clone()).collect()
    }

    /// A picture of the whole page, as PNG.
    pub fn picture(&mut self) -> Vec<u8> {
        let size = self.ask("Page.getLayoutMetrics", &json!({}))["cssContentSize"].clone();
        let clip = json!({"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1});
        let params = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
        bytes(&self.ask("Page.captureScreenshot", &params)["data"])
    }

    /// The page as it is printed, as PDF.
    pub fn printed(&mut self) -> Vec<u8> {
        bytes(&self.ask("Page.printToPDF", &json!({"printBackground": true}))["data"])
    }
}

impl Drop for Browser {
    /// Asked first: a browser that is killed leaves processes which still write to its folder.
    fn drop(&mut self) {
        self.to.write_all(b"{\"id\":0,\"method\":\"Browser.close\"}\0").ok();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(10) && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Decodes base64.
fn bytes(text: &Value) -> Vec<u8> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => u32::from(c - b'A'),
        b'a'..=b'z' => u32::from(c - b'a') + 26,
        b'0'..=b'9' => u32::from(c - b'0') + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut all = Vec::new();
    for four in text.as_str().unwrap().trim_end_matches('=').as_bytes().chunks(4) {
        let joined = four.iter().fold(0, |joined, c| joined << 6 | value(*c)) << (6 * (4 - four.len()));
        all.extend_from_slice(&joined.to_be_bytes()[1..four.len()]);
    }
    all
}

//! Letters to receivers outside, delivered beside the work. A helper, which is a process of this program, gets them
//! through a pipe and delivers them one after another, each within its limit, also when this process has ended. So a
//! receiver that hangs keeps nobody waiting. A webhook is reached through curl, because this program has no TLS; the URL is
//! a secret, so it stands on no command line. Nothing here knows what a letter says. Called by `operations/notify`, and
//! by `main`, which is the helper.

use crate::base::deadline::Deadline;
use crate::base::machine;
use crate::base::pipe::Pipe;
use crate::base::proc::cmd;
use crate::base::secrets;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long the helper may take to read a letter.
const HAND_OVER: Duration = Duration::from_millis(200);

/// How long the end waits for the answer of a receiver that has answered so far.
const GRACE: Duration = Duration::from_millis(150);

/// How much longer a program may take than a letter's limit before its group is killed: curl keeps the limit by itself.
const SLACK: Duration = Duration::from_millis(300);

/// How much less of a busy processor the helper and its programs get: about a tenth.
const NICE: i32 = 10;

/// Bytes of a line between the two processes.
const LINE: u64 = 1 << 20;

/// Where a letter goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum To {
    /// A URL, to which it is posted as JSON.
    Webhook(String),
    /// A program with its arguments, which reads it from its standard input.
    Command(Vec<String>),
}

/// What is delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter {
    /// To whom.
    pub to: To,
    /// JSON on one line.
    pub body: String,
    /// How long its delivery may take, in milliseconds.
    pub limit_ms: u64,
}

/// What the helper is told, a line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    /// Deliver this now.
    Now(Letter),
    /// Deliver this if the other process ends without another word.
    Will(Letter),
    /// Nothing more comes, and the will is void.
    Over,
}

/// Takes letters. It starts the helper with the first one.
#[derive(Default)]
pub struct Courier(Mutex<Option<Helper>>);

struct Helper {
    // It goes on by itself when this process ends.
    _child: Child,
    into: ChildStdin,
    answers: Receiver<Option<String>>,
    sent: usize,
    answered: usize,
    failed: Vec<String>,
    /// Was there a receiver that had not answered when the next letter came?
    slow: bool,
}

impl Courier {
    /// Takes letters for different receivers. They are delivered later; errors are those of the helper.
    pub fn send(&self, letters: &[Letter]) -> Result<()> {
        self.with(|helper| {
            helper.listen(Duration::ZERO);
            helper.slow |= helper.answered < helper.sent;
            for letter in letters {
                helper.tell(&Order::Now(letter.clone()))?;
                helper.sent += 1;
            }
            Ok(())
        })
    }

    /// Takes what is delivered if this process ends without `over`: it is killed, or the user interrupts it.
    pub fn will(&self, letters: &[Letter]) -> Result<()> {
        self.with(|helper| letters.iter().try_for_each(|letter| helper.tell(&Order::Will(letter.clone()))))
    }

    fn with(&self, what: impl FnOnce(&mut Helper) -> Result<()>) -> Result<()> {
        let mut helper = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *helper {
            Some(helper) => what(helper),
            none => what(none.insert(Helper::start()?)),
        }
    }

    /// Nothing more is sent. Says what went wrong, as far as it is known by now. What was not delivered yet, the helper
    /// goes on with.
    pub fn over(&self) -> Vec<String> {
        let Some(mut helper) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Vec::new();
        };
        if let Err(error) = helper.tell(&Order::Over) {
            helper.failed.push(format!("{error:#}"));
        }
        helper.listen(if helper.slow { Duration::ZERO } else { GRACE });
        // The last ones are on their way, which is no news; but a receiver that was silent all along may hang.
        if helper.slow && helper.answered < helper.sent {
            let open = helper.sent - helper.answered;
            helper.failed.push(format!(
                "{open} of {} messages have no answer yet; they are tried further in the background",
                helper.sent
            ));
        }
        helper.failed.dedup();
        helper.failed
    }
}

impl Helper {
    fn start() -> Result<Self> {
        let child = Command::new(machine::this_program()?)
            .arg("deliver")
            // No signal of the terminal ends it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut child = child.context("cannot start the helper that delivers messages")?;
        let into = child.stdin.take().context("the helper has no input")?;
        let out = child.stdout.take().context("the helper has no output")?;
        let (tell, answers) = channel();
        // Its end closes the pipe, so this thread ends with it, or with this process.
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let answer: Option<String> = serde_json::from_str(&line).unwrap_or(Some(line));
                if tell.send(answer).is_err() {
                    return;
                }
            }
        });
        Ok(Self { _child: child, into, answers, sent: 0, answered: 0, failed: Vec::new(), slow: false })
    }

    fn tell(&mut self, order: &Order) -> Result<()> {
        let line = serde_json::to_string(order)? + "\n";
        let mut pipe = Pipe::new(&self.into, Deadline::after(HAND_OVER))?;
        pipe.write_all(line.as_bytes()).context("cannot reach the helper that delivers messages")
    }

    /// Hears the answers, for so long.
    fn listen(&mut self, longest: Duration) {
        let limit = Deadline::after(longest);
        while self.answered < self.sent {
            let Ok(answer) = self.answers.recv_timeout(limit.left()) else { return };
            self.answered += 1;
            self.failed.extend(answer);
        }
    }
}

/// `xtask deliver`: the helper. Hidden from `--help`. Its standard input has the orders, and its standard output an
/// answer for each letter: null, or what went wrong.
pub fn help() -> Result<()> {
    // The work goes first where both want the processor.
    rustix::process::nice(NICE).ok();
    let (tell, told) = channel();
    // Read at once, so that whoever sends a letter need not wait for the one before.
    std::thread::spawn(move || {
        let mut from = BufReader::new(std::io::stdin());
        let mut line = String::new();
        while from.by_ref().take(LINE).read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            let Ok(order) = serde_json::from_str::<Order>(&line) else { return };
            if tell.send(order).is_err() {
                return;
            }
            line.clear();
        }
    });
    let mut will: Vec<Letter> = Vec::new();
    for order in told {
        match order {
            Order::Now(letter) => {
                let answer = deliver(&letter).err().map(|error| format!("{error:#}"));
                // Nobody listens any more if the other process has ended.
                writeln!(std::io::stdout(), "{}", serde_json::to_string(&answer)?).ok();
            }
            Order::Will(letter) => {
                will.retain(|old| old.to != letter.to);
                will.push(letter);
            }
            Order::Over => will.clear(),
        }
    }
    will.iter().try_for_each(deliver)
}

fn deliver(letter: &Letter) -> Result<()> {
    let limit = Duration::from_millis(letter.limit_ms);
    match &letter.to {
        To::Webhook(url) => {
            secrets::learn(&[("WEBHOOK".to_owned(), url.clone())].into());
            let call = cmd("curl", &["--disable", "--config", "-"]);
            let config = config(url, &letter.body, limit);
            let answer =
                call.write_by(Deadline::after(limit + SLACK), |into| Ok(into.write_all(config.as_bytes())?));
            answer.map(drop).context("the webhook was not told")
        }
        To::Command(words) => {
            let Some(program) = words.first() else { bail!("no program is named") };
            // What it prints is for nobody.
            let call = cmd("sh", &["-c", "exec \"$0\" \"$@\" >/dev/null"]).args(words);
            let told =
                call.write_by(Deadline::after(limit), |into| match into.write_all(letter.body.as_bytes()) {
                    // It need not read it.
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
                    other => Ok(other?),
                });
            told.map(drop).with_context(|| format!("{program} was not told"))
        }
    }
}

/// What curl reads from its standard input: <https://curl.se/docs/manpage.html#-K>.
fn config(url: &str, body: &str, limit: Duration) -> String {
    let quoted = |text: &str| {
        let escaped =
            text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\r', "\\r");
        format!("\"{escaped}\"")
    };
    format!(
        "url = {}\ndata-raw = {}\nheader = \"content-type: application/json\"\nmax-time = {:.3}\nproto = \"=http,https\"\n\
         output = \"/dev/null\"\ngloboff\nsilent\nshow-error\nfail\n",
        quoted(url),
        quoted(body),
        limit.as_secs_f64()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curl_gets_the_text_as_it_is() {
        let text = config("https://h/a\"b", "{\"text\":\"a\\nb\"}", Duration::from_millis(1500));
        assert!(text.contains("url = \"https://h/a\\\"b\"\n"), "{text}");
        assert!(text.contains("data-raw = \"{\\\"text\\\":\\\"a\\\\nb\\\"}\"\n"), "{text}");
        assert!(text.contains("max-time = 1.500\n"), "{text}");
    }
}

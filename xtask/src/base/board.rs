//! What there is to show while a command works, as a value, and the lines that show it. Pure. Drawn by `screen`.

use std::time::{Duration, Instant};

/// What takes less than this is not drawn: it would only flicker.
const SOON: Duration = Duration::from_millis(300);

/// A sign that turns.
const TURNS: [char; 4] = ['◐', '◓', '◑', '◒'];

/// Something that is done now.
#[derive(Clone, Debug)]
pub struct Doing {
    /// Which one.
    pub id: u64,
    /// What is done.
    pub what: String,
    /// Since when.
    pub since: Instant,
    /// How long it may take.
    pub limit: Option<Duration>,
    /// What it waits for, or how far it is.
    pub detail: Option<String>,
}

/// What there is to show.
#[derive(Clone, Debug, Default)]
pub struct Board {
    /// What is done now, the newest last.
    pub doing: Vec<Doing>,
    /// The steps that come next.
    pub next: Vec<String>,
    /// When the budget ends.
    pub until: Option<Instant>,
    /// Where the gate is.
    pub gate: Option<&'static str>,
}

/// One line below the output.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// What it says.
    pub text: String,
    /// Is it less important than what is done now?
    pub faint: bool,
}

impl Board {
    /// The lines, at most so many: what is done, what it waits for, what comes next, and the state of the run.
    pub fn lines(&self, now: Instant, idle: Instant, turns: usize, most: usize) -> Vec<Line> {
        let turn = TURNS[turns % TURNS.len()];
        let old = |doing: &&Doing| now.duration_since(doing.since) >= SOON;
        let bright = |text: String| Line { text, faint: false };
        let mut lines: Vec<Line> = Vec::new();
        for doing in self.doing.iter().filter(old) {
            lines.push(bright(format!("{turn} {}", doing.said(now))));
            lines.extend(doing.detail.iter().map(|detail| bright(format!("    {}", one_line(detail)))));
        }
        if self.doing.is_empty() && now.duration_since(idle) >= SOON {
            lines.push(bright(format!("{turn} {}", self.said(now, idle))));
        }
        let state: Vec<String> = self
            .until
            .map(|until| format!("{} left", clock(until.saturating_duration_since(now))))
            .into_iter()
            .chain(self.gate.map(|gate| format!("gate {gate}")))
            .collect();
        let room = most.saturating_sub(lines.len() + 1);
        let faint = |text: String| Line { text, faint: true };
        let (all, shown) = (self.next.len(), self.next.len().min(room));
        let more = if all > shown { format!(" (and {} more)", all - shown) } else { String::new() };
        for (n, next) in self.next.iter().take(shown).enumerate() {
            let more = if n + 1 == shown { more.as_str() } else { "" };
            lines.push(faint(format!("○ {}{more}", one_line(next))));
        }
        if !state.is_empty() {
            lines.push(faint(format!("  {}", state.join(" · "))));
        }
        lines.truncate(most);
        lines
    }

    /// What is done, in one line. `idle`: since when there is nothing to name.
    pub fn said(&self, now: Instant, idle: Instant) -> String {
        match self.doing.last() {
            Some(doing) => {
                let detail = doing.detail.as_ref().map(|detail| format!("; {}", one_line(detail)));
                doing.said(now) + &detail.unwrap_or_default()
            }
            None => format!("working, {}", clock(now.duration_since(idle))),
        }
    }
}

impl Doing {
    fn said(&self, now: Instant) -> String {
        let limit = self.limit.map(|limit| format!(" of {}", clock(limit))).unwrap_or_default();
        format!("{}, {}{limit}", one_line(&self.what), clock(now.duration_since(self.since)))
    }
}

/// A time as people say it: seconds, or minutes and seconds.
fn clock(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds < 60 => format!("{seconds} s"),
        seconds => format!("{}:{:02} min", seconds / 60, seconds % 60),
    }
}

/// Without what would move the cursor.
fn one_line(text: &str) -> String {
    text.split(|c: char| c.is_control() || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn shown(board: &Board, now: Instant, begun: Instant, most: usize) -> Vec<String> {
        board.lines(now, begun, 1, most).into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn the_step_its_wait_what_comes_next_and_the_time_that_is_left_are_shown() {
        let begun = Instant::now();
        let now = begun + seconds(70);
        let doing = |id, what: &str, since: u64, limit: Option<u64>| Doing {
            id,
            what: what.into(),
            since: begun + seconds(since),
            limit: limit.map(seconds),
            detail: None,
        };
        let mut board = Board::default();
        // Nothing is silent, but what is over at once is not shown.
        assert_eq!(shown(&board, now, begun, 12), ["◓ working, 1:10 min"]);
        assert!(shown(&board, begun, begun, 12).is_empty());
        board.doing = vec![doing(1, "restart engine", 5, Some(120)), doing(2, "too new", 70, None)];
        board.doing[0].detail = Some("waits for engine:\x1b[2J\n  no answer".into());
        board.next = ["verify", "open", "retag"].map(str::to_owned).to_vec();
        board.until = Some(begun + seconds(300));
        board.gate = Some("closed");
        let all = shown(&board, now, begun, 12);
        assert_eq!(
            all,
            [
                "◓ restart engine, 1:05 min of 2:00 min",
                "    waits for engine: [2J no answer",
                "○ verify",
                "○ open",
                "○ retag",
                "  3:50 min left · gate closed",
            ]
        );
        // Where there is no room, what comes later is counted.
        assert_eq!(
            shown(&board, now, begun, 4)[2..],
            ["○ verify (and 2 more)", "  3:50 min left · gate closed"]
        );
        assert_eq!(shown(&board, now, begun, 1).len(), 1);
        assert_eq!(board.said(now, begun), "too new, 0 s");
    }
}

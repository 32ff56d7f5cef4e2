//! The timeline of the page: the gate (open, closed), each step as a bar, and the first public request, on one scale.
//! What is drawn is also said in words. Called by `html`.

use crate::deploy::event::Progress;
use crate::deploy::lockout::Public;
use crate::deploy::step::Step;
use crate::operations::report::story::{Stepped, Story};
use crate::operations::report::words::{escape, lasted, seconds};
use std::fmt::{Result, Write};

/// How many times are written below the timeline, about.
const TICKS: u64 = 5;

/// What happens before the first step is left out if it takes longer than this, in milliseconds.
const BUILD: u64 = 2_000;

/// Which part of the time is drawn, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scale {
    from: u64,
    to: u64,
}

impl Scale {
    /// A deployment may begin with a build, which is left out: nothing happens to the stack meanwhile.
    fn of(story: &Story) -> Self {
        let first = story.steps.first().map_or(0, |step| step.from_ms);
        let first = story.finished.gate_closed_ms.map_or(first, |closed| first.min(closed));
        let from = if first > BUILD && first * 4 > story.length_ms { first } else { 0 };
        Self { from, to: story.length_ms.max(from + 1) }
    }

    /// Where a moment is, in per cent of the width.
    fn at(self, ms: u64) -> f64 {
        let ms = ms.clamp(self.from, self.to);
        (ms - self.from) as f64 * 100.0 / (self.to - self.from) as f64
    }

    /// How long a time is, in per cent of the width.
    fn width(self, from: u64, to: u64) -> f64 {
        self.at(to) - self.at(from)
    }

    /// Round moments, a few of them: 1, 2 or 5 times a power of ten.
    fn ticks(self) -> Vec<u64> {
        let wanted = (self.to - self.from) / TICKS;
        let powers = (0..12).map(|n| 10_u64.pow(n));
        let steps = powers.flat_map(|power| [power, 2 * power, 5 * power]);
        let step = steps.into_iter().find(|step| *step >= wanted).unwrap_or(u64::MAX);
        let first = self.from.div_ceil(step);
        (first..).map(|n| n * step).take_while(|ms| *ms <= self.to).collect()
    }
}

/// The position of the gate for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    class: &'static str,
    from: u64,
    to: u64,
}

/// What the gate was, in order.
fn gate(story: &Story, scale: Scale) -> Vec<Span> {
    let span = |class, from, to| Span { class, from, to };
    let finished = &story.finished;
    let Some(closed) = finished.gate_closed_ms else {
        let class = match &finished.public {
            Some(Public::ShutOut(_) | Public::Partly(_)) => "closed",
            Some(Public::Served) => "open",
            None if finished.restored_ms.is_some() => "open",
            Some(Public::Unknown(_)) | None => "unknown",
        };
        return vec![span(class, scale.from, scale.to)];
    };
    let after = match (finished.restored_ms, &finished.public) {
        (Some(opened), None | Some(Public::Served)) => Some((opened, "open")),
        (_, Some(Public::Unknown(_))) => Some((scale.to, "unknown")),
        _ => None,
    };
    let end = after.map_or(scale.to, |(at, _)| at);
    let mut all = vec![span(before(&story.steps), scale.from, closed), span("closed", closed, end)];
    all.extend(after.map(|(at, class)| span(class, at, scale.to)));
    all.retain(|span| span.from < span.to);
    all
}

/// What the gate was before the run closed it: the step that closed it has seen that.
fn before(steps: &[Stepped]) -> &'static str {
    let closing = |step: &&Stepped| matches!(step.action, Some(Step::CloseGate | Step::StopGate { .. }));
    match steps.iter().find(closing).map(|step| step.progress) {
        Some(Progress::Done | Progress::Warned) => "open",
        Some(Progress::Skipped) => "closed",
        _ => "unknown",
    }
}

/// The same in words.
fn gate_in_words(story: &Story) -> String {
    let finished = &story.finished;
    match (finished.gate_closed_ms, finished.restored_ms) {
        (None, _) => "this run did not close it".into(),
        (Some(closed), Some(opened)) if finished.public.is_none() => {
            format!("closed from {} to {}", seconds(Some(closed)), seconds(Some(opened)))
        }
        (Some(closed), _) => format!("closed from {} on", seconds(Some(closed))),
    }
}

/// Writes the timeline, if there were steps.
pub fn write(page: &mut String, story: &Story) -> Result {
    if story.steps.is_empty() {
        return Ok(());
    }
    let scale = Scale::of(story);
    let end = story.finished.restored_ms.unwrap_or(scale.to);
    let mut style = String::new();
    if let Some(closed) = story.finished.gate_closed_ms {
        let (at, width) = (scale.at(closed), scale.width(closed, end));
        write!(style, "--closed-at:{at:.2}%;--closed-for:{width:.2}%;")?;
    }
    if let Some(first) = story.finished.restored_ms {
        write!(style, "--first:{:.2}%", scale.at(first).min(99.5))?;
    }
    writeln!(page, "<section aria-labelledby=timeline><h2 id=timeline>Timeline</h2>")?;
    writeln!(page, "<p class=hint>Times count from the start of the command.</p>")?;
    writeln!(page, "<div class=line style=\"{style}\">")?;
    write!(page, "<div class=\"row gate\"><div class=name><b>Gate</b> <span class=words>")?;
    write!(page, "{}</span></div><div></div><div class=track aria-hidden=true>", gate_in_words(story))?;
    let spans = gate(story, scale);
    for Span { class, from, to } in spans.iter().copied() {
        let (at, width) = (scale.at(from), scale.width(from, to));
        write!(page, "<i class={class} style=\"left:{at:.2}%;width:{width:.2}%\"></i>")?;
    }
    writeln!(page, "</div></div>\n<ol>")?;
    story.steps.iter().try_for_each(|step| row(page, step, scale))?;
    write!(page, "</ol>\n<div class=row aria-hidden=true><div></div><div></div><div class=ticks>")?;
    for ms in scale.ticks() {
        let at = scale.at(ms);
        let class = if at > 93.0 { " class=end" } else { "" };
        write!(page, "<span{class} style=\"left:{at:.2}%\">{}</span>", tick(ms))?;
    }
    writeln!(page, "</div></div></div>")?;
    write!(page, "<p class=key aria-hidden=true>")?;
    for class in ["open", "closed", "unknown"] {
        if spans.iter().any(|span| span.class == class) {
            write!(page, "<span><i class={class}></i>gate {class}</span>")?;
        }
    }
    if story.finished.restored_ms.is_some() {
        write!(page, "<span><i class=first></i>first public request served</span>")?;
    }
    writeln!(page, "</p></section>")
}

fn tick(ms: u64) -> String {
    match ms {
        0 => "0".into(),
        ms if ms % 1000 == 0 => format!("{} s", ms / 1000),
        ms => format!("{} s", ms as f64 / 1e3),
    }
}

fn row(page: &mut String, step: &Stepped, scale: Scale) -> Result {
    // That a step was done is the rule, so only the mark is shown; a screen reader says the word.
    let (class, colour, mark, word) = match step.progress {
        Progress::Done => ("done", "ok", "✓", "<span class=vh>done</span>"),
        Progress::Skipped => ("skipped", "so", "–", "skipped"),
        Progress::Warned => ("warned", "so", "!", "warning"),
        Progress::Failed => ("failed", "no", "✗", "failed"),
        Progress::Started => ("failed", "no", "✗", "cut off"),
    };
    let to = step.took_ms.map_or(scale.to, |took| step.from_ms + took);
    let took = step.took_ms.map_or_else(|| "did not end".to_owned(), lasted);
    let (at, width) = (scale.at(step.from_ms), scale.width(step.from_ms, to));
    write!(page, "<li class=\"row {class}\"><div class=name>")?;
    write!(page, "<span class=\"mark {colour}\" aria-hidden=true>{mark}</span>{}", escape(&step.step))?;
    write!(page, " <span class=\"state {colour}\">{word}</span>")?;
    if let Some(detail) = &step.detail {
        let detail = detail.strip_prefix("skipped: ").unwrap_or(detail);
        write!(page, "<p class=detail>{}</p>", escape(detail))?;
    }
    write!(page, "</div><div class=time><b>{took}</b> at {}</div>", seconds(Some(step.from_ms)))?;
    write!(page, "<div class=track aria-hidden=true><i style=\"left:{:.2}%", at.min(99.0))?;
    writeln!(page, ";width:{width:.2}%\"></i></div></li>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_gate_was_before_is_what_a_step_has_seen() {
        let step = |action: Step, progress| Stepped {
            step: action.to_string(),
            action: Some(action),
            progress,
            from_ms: 0,
            took_ms: Some(1),
            detail: None,
            folder: None,
        };
        assert_eq!(before(&[step(Step::CloseGate, Progress::Done)]), "open");
        assert_eq!(before(&[step(Step::CloseGate, Progress::Skipped)]), "closed");
        assert_eq!(before(&[step(Step::CloseGate, Progress::Failed)]), "unknown");
        assert_eq!(before(&[step(Step::CloseGateOnDisk, Progress::Done)]), "unknown");
    }

    #[test]
    fn the_scale_has_a_few_round_moments() {
        assert_eq!(Scale { from: 0, to: 1360 }.ticks(), [0, 500, 1000]);
        assert_eq!(Scale { from: 0, to: 960 }.ticks(), [0, 200, 400, 600, 800]);
        assert_eq!(Scale { from: 61_200, to: 64_900 }.ticks(), [62_000, 63_000, 64_000]);
        assert_eq!(Scale { from: 0, to: 1 }.ticks(), [0, 1]);
        let scale = Scale { from: 1000, to: 3000 };
        assert_eq!(
            (scale.at(0), scale.at(2000), scale.at(9000), scale.width(2000, 2500)),
            (0.0, 50.0, 100.0, 25.0)
        );
        assert_eq!((tick(0), tick(1500), tick(2000)), ("0".into(), "1.5 s".into(), "2 s".into()));
    }
}

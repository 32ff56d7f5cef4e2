//! The table of the benchmark: what was measured, what it is compared with, and the goal. Nothing is measured
//! here.

use crate::base::output::Output;
use crate::deploy::event::Event;
use serde_json::json;

/// One line of the table.
pub struct Row {
    /// What was measured.
    pub what: &'static str,
    /// The median.
    pub ours: f64,
    /// The unit of the figures.
    pub unit: &'static str,
    /// What it is compared with, and the figure of that.
    pub against: Option<(&'static str, f64)>,
    /// The goal: the largest ratio, or the largest figure if there is nothing to compare with.
    pub reach: Option<f64>,
}

impl Row {
    /// A figure with a limit, compared with nothing.
    pub fn plain(what: &'static str, ours: f64, unit: &'static str, reach: f64) -> Self {
        Self { what, ours, unit, against: None, reach: Some(reach) }
    }
}

/// Prints the table; true if every goal is reached.
pub fn show(out: &Output, rows: &[Row]) -> bool {
    let mut all = true;
    out.say(format!("\n{:<29} {:>9}   {:<38} {:>6}  {:>7}", "what", "median", "against", "ratio", "reach"));
    for row in rows {
        let ratio = row.against.map(|(_, figure)| row.ours / figure);
        let good = row.reach.map(|reach| ratio.unwrap_or(row.ours) <= reach);
        all &= good != Some(false);
        let against =
            row.against.map_or(String::new(), |(name, figure)| format!("{name} {figure:.0} {}", row.unit));
        let ratio_text = ratio.map_or(String::new(), |r| format!("{r:.2}"));
        let reach = row.reach.map_or(String::new(), |r| match ratio {
            Some(_) => format!("≤ {r}"),
            None => format!("≤ {r:.0}"),
        });
        let mark = good.map_or(" ", |good| out.mark(Some(good)));
        let ours = format!("{:.1} {}", row.ours, row.unit);
        out.say(format!("{:<29} {ours:>9}   {against:<38} {ratio_text:>6}  {reach:>7} {mark}", row.what));
        out.event(&Event::Result {
            value: &json!({"what": row.what, "median": row.ours, "unit": row.unit, "against": row.against,
                "ratio": ratio, "reach": row.reach, "reached": good}),
        });
    }
    all
}

//! The table of the benchmark: what was measured, what it is compared with, and the goal. The median of each counts, and
//! every measurement is told: one that waited for something else is seen. Nothing is measured here.

use crate::base::output::Output;
use crate::deploy::event::Event;
use serde_json::json;

/// How many measurements are shown one by one; of more the least and the most.
const EACH: usize = 10;

/// The measurements of one kind, in the order in which they were made.
#[derive(Clone, Default)]
pub struct Figures(Vec<f64>);

impl Figures {
    /// One more.
    pub fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// The median, of an even number the larger one; not a number if nothing was measured, which reaches no goal.
    pub fn median(&self) -> f64 {
        let all = self.sorted();
        all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn sorted(&self) -> Vec<f64> {
        let mut all = self.0.clone();
        all.sort_by(f64::total_cmp);
        all
    }

    /// All of them, for people; nothing if there is one alone.
    fn spread(&self) -> Option<String> {
        match self.sorted().as_slice() {
            [] | [_] => None,
            all @ [first, .., last] if all.len() > EACH => Some(format!("{first:.0} to {last:.0}")),
            all => Some(all.iter().map(|figure| format!("{figure:.0}")).collect::<Vec<_>>().join(", ")),
        }
    }
}

impl From<f64> for Figures {
    fn from(one: f64) -> Self {
        Self(vec![one])
    }
}

impl FromIterator<f64> for Figures {
    fn from_iter<I: IntoIterator<Item = f64>>(all: I) -> Self {
        Self(all.into_iter().collect())
    }
}

/// One line of the table.
pub struct Row {
    /// What was measured.
    pub what: &'static str,
    /// The measurements.
    pub ours: Figures,
    /// The unit of the figures.
    pub unit: &'static str,
    /// What it is compared with, and the measurements of that.
    pub against: Option<(&'static str, Figures)>,
    /// The goal: the largest ratio, or the largest figure if there is nothing to compare with.
    pub reach: Option<f64>,
}

impl Row {
    /// Figures with a limit, compared with nothing.
    pub fn plain(what: &'static str, ours: impl Into<Figures>, unit: &'static str, reach: f64) -> Self {
        Self { what, ours: ours.into(), unit, against: None, reach: Some(reach) }
    }
}

/// Prints the table; true if every goal is reached.
pub fn show(out: &Output, rows: &[Row]) -> bool {
    let mut all = true;
    out.say(format!("\n{:<29} {:>9}   {:<38} {:>6}  {:>7}", "what", "median", "against", "ratio", "reach"));
    for row in rows {
        let median = row.ours.median();
        let against = row.against.as_ref().map(|(name, figures)| (*name, figures.median()));
        let ratio = against.map(|(_, figure)| median / figure);
        let good = row.reach.map(|reach| ratio.unwrap_or(median) <= reach);
        all &= good != Some(false);
        let compared =
            against.map_or(String::new(), |(name, figure)| format!("{name} {figure:.0} {}", row.unit));
        let ratio_text = ratio.map_or(String::new(), |r| format!("{r:.2}"));
        let reach = row.reach.map_or(String::new(), |r| match ratio {
            Some(_) => format!("≤ {r}"),
            None => format!("≤ {r:.0}"),
        });
        let mark = good.map_or(" ", |good| out.mark(Some(good)));
        let ours = format!("{median:.1} {}", row.unit);
        out.say(format!("{:<29} {ours:>9}   {compared:<38} {ratio_text:>6}  {reach:>7} {mark}", row.what));
        let theirs = row.against.as_ref().map(|(_, figures)| figures);
        let spreads = [Some(&row.ours), theirs].into_iter().flatten().filter_map(Figures::spread);
        let spreads: Vec<String> = spreads.collect();
        if !spreads.is_empty() {
            out.say(format!("    each: {}", spreads.join(" against ")));
        }
        out.event(&Event::Result {
            value: &json!({"what": row.what, "median": median, "each": row.ours.0, "unit": row.unit,
                "against": against, "against-each": theirs.map(|figures| &figures.0),
                "ratio": ratio, "reach": row.reach, "reached": good}),
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_counts_and_each_measurement_is_told() {
        let all: Figures = [9070.4, 5690.0, 5711.0].into_iter().collect();
        assert_eq!((all.median(), all.spread().unwrap().as_str()), (5711.0, "5690, 5711, 9070"));
        assert_eq!(Figures::from(3.0).spread(), None);
        let many: Figures = (1..=30).map(f64::from).collect();
        assert_eq!(many.spread().unwrap(), "1 to 30");
        assert!(Figures::default().median().is_nan(), "what was not measured reaches no goal");
    }
}

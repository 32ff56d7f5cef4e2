//! Tests: a list of looks, and what the last one of them means.

use super::*;
use Verdict::{Bad, NotYet, Unseen, Well};

const RULE: WatchRule = WatchRule {
    time: Duration::from_secs(10),
    every: Duration::from_secs(1),
    checks: Vec::new(),
    restarts: 1,
    failures: 3,
};

/// One look: when, and what is said of `web`, by a sign. `.` it is well, `!` not, `x` it is gone, `?` nobody answers, `b`
/// one that was put in its place is well, `B` not; a number: it was restarted so often in all and is not well; `c` the
/// watched check fails.
fn look(at: usize, sign: char) -> Look {
    let ill = |why: &str, is_gone| Some(Ill { why: format!("web: {why}"), is_gone });
    let one = |handle: &str, restarts, ill| Seen { handles: vec![handle.to_owned()], restarts, ill };
    let seen = match sign {
        '.' | 'c' => one("a", 0, None),
        '!' => one("a", 0, ill("503", false)),
        'x' => Seen { ill: ill("gone", true), ..Seen::default() },
        'b' => one("b", 0, None),
        'B' => one("b", 0, ill("503", false)),
        number => one("a", u64::from(number.to_digit(10).unwrap_or(0)), ill("503", false)),
    };
    let failed = (sign == 'c').then(|| "slow".to_owned());
    let services = match sign {
        '?' => Observed::Unknown("no answer".into()),
        _ => Observed::Known(BTreeMap::from([("web".to_owned(), seen)])),
    };
    Look {
        at: Duration::from_secs(at as u64),
        services,
        checks: BTreeMap::from([("notes".to_owned(), failed)]),
    }
}

/// What each look means, one a second; a service may take four to start.
fn watched(signs: &str, verified: bool) -> Vec<Verdict> {
    let mut watch = Watch::new(RULE, Duration::from_secs(4), verified);
    signs.chars().enumerate().map(|(at, sign)| watch.see(&look(at, sign))).collect()
}

/// What the last of them means.
fn last(signs: &str) -> Verdict {
    watched(signs, true).pop().unwrap()
}

#[test]
fn only_so_many_bad_looks_in_a_row_are_bad() {
    assert_eq!(last("...."), Well);
    assert_eq!(last("..!!"), NotYet("web: 503".into()));
    assert_eq!(last("..!!."), Well);
    assert_eq!(last("!!.!!.!!"), NotYet("web: 503".into()));
    assert_eq!(last("..!!!"), Bad("web: 503, 3 looks in a row".into()));
    // What was verified is not on its way: the first look counts too.
    assert_eq!(last("!!!"), Bad("web: 503, 3 looks in a row".into()));
    assert_eq!(last("..xx"), NotYet("web: gone".into()));
    assert_eq!(last("..xxx"), Bad("web: gone, 3 looks in a row".into()));
    assert_eq!(last("..!x!"), Bad("web: 503, 3 looks in a row".into()));
}

#[test]
fn what_is_only_slow_to_start_is_not_bad_until_its_time_is_up() {
    let starts = "web: 503; it may still be starting";
    // A watch that begins while it starts.
    let mut slow = watched("!!!!!.", false);
    assert_eq!(slow.pop(), Some(Well));
    assert!(slow.iter().all(|verdict| *verdict == NotYet(starts.into())), "{slow:?}");
    let late = watched("!!!!!!", false).pop();
    assert_eq!(late, Some(Bad("web: 503; it was not well within 4s after its start".into())));
    // One that was put in its place, and one that was restarted no more than it may be.
    assert_eq!(last("..BBBB"), NotYet(starts.into()));
    assert_eq!(last("..xxBBbb"), Well);
    assert_eq!(last("..1111"), NotYet(starts.into()));
    assert_eq!(last("..bBBB"), Bad("web: 503, 3 looks in a row".into()));
}

#[test]
fn restarts_are_counted_within_the_time_of_the_watch() {
    assert_eq!(last("..12"), Bad("web was restarted 2 times within 10s".into()));
    // A crash loop that takes one down in between.
    assert_eq!(last("..1x2"), Bad("web was restarted 2 times within 10s".into()));
    // Long ago, and in one that is no longer there.
    let mut watch = Watch::new(RULE, Duration::from_secs(4), true);
    let mut see = |at, sign| watch.see(&look(at, sign));
    assert_eq!(see(0, '.'), Well);
    assert!(matches!(see(1, '1'), NotYet(_)));
    assert!(matches!(see(2, '1'), NotYet(_)));
    assert!(matches!(see(12, '1'), Bad(_)), "it did not become well");
    assert!(!matches!(see(13, '2'), Bad(ref why) if why.contains("restarted")));
    assert_eq!(last("9b"), Well);
}

#[test]
fn a_watched_check_counts_as_health_does_but_only_while_all_are_well() {
    assert_eq!(last("..cc"), NotYet("notes: slow".into()));
    assert_eq!(last("..cc.cc"), NotYet("notes: slow".into()));
    assert_eq!(last("..ccc"), Bad("notes: slow, 3 looks in a row".into()));
    // What it needs may be on its way.
    assert_eq!(last("..cc!"), NotYet("web: 503".into()));
}

#[test]
fn cannot_tell_is_neither_well_nor_bad() {
    assert_eq!(last("..???"), Unseen("no answer".into()));
    assert_eq!(last("..!!?!"), Bad("web: 503, 3 looks in a row".into()));
    assert_eq!(last("..!!?."), Well);
}

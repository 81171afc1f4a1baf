//! Parts of a group (the lines of its tables), each with a limit of its own: one that hangs or fails loses itself alone. The
//! group's process says which part it begins; whoever started it ends it at the part's limit, and starts another one for the rest.

use crate::bench::{Bench, NO_TIME};
use crate::row::Line;

/// What a group needs beside its parts, of its time.
const BESIDE: f64 = 0.05;
/// With less time a part is not begun.
const LEAST: f64 = 1.0;

/// What is still to be measured, with the seconds that are kept for each.
pub(crate) struct Parts<'a> {
    bench: &'a Bench,
    shares: Vec<(String, f64)>,
}

impl<'a> Parts<'a> {
    /// All parts of a group in their order, with their weights. What an earlier process of the group has ended needs no time.
    pub(crate) fn new(bench: &'a Bench, parts: impl IntoIterator<Item = (String, f64)>) -> Self {
        let parts = parts.into_iter().filter(|(name, _)| !bench.ended.contains(name)).collect();
        Self { bench, shares: shares(bench.seconds_left() * (1.0 - BESIDE), parts) }
    }

    /// Measures one, which is told how many seconds it may take; an error if there are none.
    pub(crate) fn run(
        &self,
        name: &str,
        work: impl FnOnce(f64) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if self.bench.ended.contains(name) {
            return Ok(());
        }
        let seconds = limit(&self.shares, name, self.bench.seconds_left());
        anyhow::ensure!(seconds >= LEAST, NO_TIME);
        self.bench.line(&Line::Part { name: name.to_owned(), seconds });
        let done = work(seconds);
        self.bench.line(&Line::End { name: name.to_owned() });
        done
    }
}

/// Seconds for each part, by weight.
fn shares(seconds: f64, parts: Vec<(String, f64)>) -> Vec<(String, f64)> {
    let all: f64 = parts.iter().map(|(_, weight)| weight).sum();
    parts.into_iter().map(|(name, weight)| (name, seconds * weight / all)).collect()
}

/// Of the seconds that are left, those for one part: all but the shares of the later ones. So what the earlier ones did not use
/// is there for the later ones, and all limits together are never more than there was.
fn limit(shares: &[(String, f64)], name: &str, left: f64) -> f64 {
    let later = shares.iter().skip_while(|(other, _)| other != name).skip(1);
    (left - later.map(|(_, share)| share).sum::<f64>()).max(0.0)
}

/// Seconds for one of several programs that are run `at_once` at a time, of those that are left: the later ones keep what they are
/// expected to take.
pub(crate) fn allowance(left: f64, later: usize, at_once: usize, expected: f64) -> f64 {
    let fair = left / (later as f64 / at_once as f64 + 1.0);
    (left - later as f64 / at_once as f64 * expected).max(fair).max(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_four() -> Vec<(String, f64)> {
        let parts = [("a", 1.0), ("b", 1.0), ("c", 2.0), ("d", 4.0)];
        shares(80.0, parts.map(|(name, weight)| (name.to_owned(), weight)).to_vec())
    }

    #[test]
    fn parts_that_take_all_they_may_leave_the_others_theirs() {
        let (shares, mut left) = (of_four(), 80.0);
        for (name, expected) in [("a", 10.0), ("b", 10.0), ("c", 20.0), ("d", 40.0)] {
            assert!((limit(&shares, name, left) - expected).abs() < 1e-9, "{name}");
            left -= expected;
        }
        assert!(left.abs() < 1e-9);
    }

    #[test]
    fn a_program_leaves_the_later_ones_what_they_need_or_their_part() {
        assert_eq!(allowance(100.0, 6, 3, 10.0), 80.0);
        assert_eq!(allowance(100.0, 0, 3, 10.0), 100.0);
        // There is too little for all.
        assert_eq!(allowance(10.0, 3, 1, 10.0), 2.5);
    }

    #[test]
    fn what_is_not_used_is_there_for_the_next() {
        let shares = of_four();
        // The first took one second of its ten.
        assert!((limit(&shares, "b", 79.0) - 19.0).abs() < 1e-9);
        // All before the last took longer than they should have.
        assert_eq!(limit(&shares, "c", 30.0), 0.0);
        assert!((limit(&shares, "d", 30.0) - 30.0).abs() < 1e-9);
    }
}

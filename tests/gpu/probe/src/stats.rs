//! What is kept of repeated measurements: the median, the middle half, the ends. Pure.

use serde::{Deserialize, Serialize};

/// Median and spread of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    /// Median.
    pub(crate) median: f64,
    /// First quartile.
    pub(crate) q1: f64,
    /// Third quartile.
    pub(crate) q3: f64,
    /// Smallest.
    pub(crate) min: f64,
    /// Largest.
    pub(crate) max: f64,
    /// Measurements.
    pub(crate) n: u32,
}

impl Spread {
    /// None for an empty sample or one with a number that is not finite.
    pub(crate) fn of(sample: &[f64]) -> Option<Self> {
        if sample.is_empty() || sample.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let mut sorted = sample.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            median: quantile(&sorted, 0.5),
            q1: quantile(&sorted, 0.25),
            q3: quantile(&sorted, 0.75),
            min: sorted[0],
            max: sorted[sorted.len() - 1],
            n: sorted.len() as u32,
        })
    }

    /// The same sample with every value mapped by a monotonic function, rising or falling.
    pub(crate) fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        let (a, b) = (f(self.q1), f(self.q3));
        let (c, d) = (f(self.min), f(self.max));
        let median = f(self.median);
        Self { median, q1: a.min(b), q3: a.max(b), min: c.min(d), max: c.max(d), n: self.n }
    }
}

/// Quantile of a sorted sample that is not empty, between neighbours linearly (R's type 7).
pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = (sorted.len() - 1) as f64 * q;
    let below = place.floor() as usize;
    let above = place.ceil() as usize;
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_odd_sample_has_its_middle() {
        let spread = Spread::of(&[5.0, 1.0, 3.0]).unwrap();
        assert_eq!((spread.median, spread.q1, spread.q3), (3.0, 2.0, 4.0));
        assert_eq!((spread.min, spread.max, spread.n), (1.0, 5.0, 3));
    }

    #[test]
    fn an_even_sample_lies_between() {
        let spread = Spread::of(&[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!((spread.median, spread.q1, spread.q3), (2.5, 1.75, 3.25));
    }

    #[test]
    fn one_value_is_its_own_spread() {
        let spread = Spread::of(&[7.0]).unwrap();
        assert_eq!(
            (spread.median, spread.q1, spread.q3, spread.min, spread.max),
            (7.0, 7.0, 7.0, 7.0, 7.0)
        );
    }

    #[test]
    fn nothing_and_nonsense_have_no_spread() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[1.0, f64::NAN]), None);
        assert_eq!(Spread::of(&[f64::INFINITY]), None);
    }

    #[test]
    fn a_falling_map_turns_the_ends_round() {
        let seconds = Spread::of(&[1.0, 2.0, 4.0]).unwrap();
        let rate = seconds.map(|s| 8.0 / s);
        assert_eq!((rate.min, rate.median, rate.max), (2.0, 4.0, 8.0));
        assert!(rate.q1 <= rate.median && rate.median <= rate.q3);
    }

    #[test]
    fn an_outlier_does_not_move_the_median() {
        let spread = Spread::of(&[1.0, 1.0, 1.0, 1.0, 1000.0]).unwrap();
        assert_eq!((spread.median, spread.q1, spread.q3), (1.0, 1.0, 1.0));
    }
}

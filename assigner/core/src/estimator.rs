//! Estimates of a client's next phase, from its latest ones: how long it takes (ACB's `--exe-est-*`), and how much memory
//! it needs (ACB's `--mem-est-*`).
//!
//! Does not own: what is done with an estimate; it may be wrong by any factor.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::{EstimatorConfig, PeakConfig, Select};

/// The phases of one client.
#[derive(Clone, Debug, Default)]
pub(crate) struct Estimator {
    latest: Vec<Brief>,
    /// Which of them is the oldest, once there are as many as are kept.
    oldest: u32,
    seen: u64,
    estimate: Option<Brief>,
}

/// A span to seven digits: so many are kept that their size matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Brief(u32);

impl From<Duration> for Brief {
    fn from(span: Duration) -> Brief {
        // The bits of numbers that are not negative are in the order of the numbers.
        Brief((span.as_nanos() as f32).to_bits())
    }
}

impl From<Brief> for Duration {
    fn from(Brief(bits): Brief) -> Duration {
        Duration::from_nanos(f32::from_bits(bits) as u64)
    }
}

impl Estimator {
    /// A phase took so long.
    pub(crate) fn observe(&mut self, phase: Duration, config: &EstimatorConfig) {
        if self.latest.len() < config.latest_count as usize {
            self.latest.push(phase.into());
        } else {
            self.latest[self.oldest as usize] = phase.into();
            self.oldest = (self.oldest + 1) % config.latest_count;
        }
        self.seen += 1;
        let (start, interval) = (u64::from(config.start_count), u64::from(config.interval));
        if self.seen >= start && (self.seen - start).is_multiple_of(interval) {
            self.estimate = percentile(self.latest.iter().copied(), config.percentile);
        }
    }

    /// How long the next phase may take; `None` when nobody knows.
    pub(crate) fn estimate(&self, config: &EstimatorConfig) -> Option<Duration> {
        let estimate = self.estimate.map_or(config.default, Duration::from);
        (!estimate.is_zero()).then_some(estimate)
    }
}

/// What one client had on a GPU at the end of its phases.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peaks {
    latest: VecDeque<u64>,
    seen: u64,
    estimate: Option<u64>,
}

impl Peaks {
    /// A phase had so many bytes.
    pub(crate) fn observe(&mut self, bytes: u64, config: &PeakConfig) {
        while self.latest.len() >= config.latest_count as usize {
            self.latest.pop_front();
        }
        self.latest.push_back(bytes);
        self.seen += 1;
        let (start, interval) = (u64::from(config.start_count), u64::from(config.interval));
        if self.seen >= start && (self.seen - start).is_multiple_of(interval) {
            let usual = percentile(self.latest.iter().copied(), config.percentile);
            let usual = usual.map(|bytes| (bytes as f64 * config.ratio) as u64);
            let largest = self.latest.iter().max().copied();
            self.estimate = match config.select {
                Select::Min => usual.min(largest),
                Select::Max => usual.max(largest),
            };
        }
    }

    /// What the next phase may need; `None` when nobody knows.
    pub(crate) fn estimate(&self) -> Option<u64> {
        self.estimate
    }
}

/// The smallest value that at least the share `rank` of them does not exceed; `None` of none.
fn percentile<T: Copy + Ord>(values: impl Iterator<Item = T>, rank: f64) -> Option<T> {
    let mut sorted: Vec<T> = values.collect();
    sorted.sort_unstable();
    // The configuration keeps `rank` within 0 and 1, hence the position within the list.
    let position = (rank * sorted.len() as f64).ceil() as usize;
    sorted.get(position.clamp(1, sorted.len().max(1)) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    #[test]
    fn nothing_is_known_before_the_start_count() {
        let config = EstimatorConfig { start_count: 3, interval: 2, ..EstimatorConfig::default() };
        let mut estimator = Estimator::default();
        estimator.observe(ms(1), &config);
        estimator.observe(ms(2), &config);
        assert_eq!(estimator.estimate(&config), None);
        estimator.observe(ms(3), &config);
        assert_eq!(estimator.estimate(&config), Some(ms(3)));
    }

    #[test]
    fn the_estimate_is_renewed_at_every_interval() {
        let config = EstimatorConfig { start_count: 1, interval: 2, ..EstimatorConfig::default() };
        let mut estimator = Estimator::default();
        estimator.observe(ms(1), &config);
        estimator.observe(ms(9), &config);
        assert_eq!(estimator.estimate(&config), Some(ms(1)));
        estimator.observe(ms(9), &config);
        assert_eq!(estimator.estimate(&config), Some(ms(9)));
    }

    #[test]
    fn old_phases_are_forgotten() {
        let config = EstimatorConfig {
            start_count: 1,
            interval: 1,
            latest_count: 2,
            percentile: 1.0,
            ..EstimatorConfig::default()
        };
        let mut estimator = Estimator::default();
        for phase in [100, 1, 2] {
            estimator.observe(ms(phase), &config);
        }
        assert_eq!(estimator.estimate(&config), Some(ms(2)));
    }

    #[test]
    fn the_default_counts_until_there_is_an_estimate() {
        let config = EstimatorConfig { default: ms(7), ..EstimatorConfig::default() };
        assert_eq!(Estimator::default().estimate(&config), Some(ms(7)));
    }

    #[test]
    fn percentiles_are_taken_from_above() {
        let phases = (1..=10).map(ms);
        assert_eq!(percentile(phases.clone(), 0.9), Some(ms(9)));
        assert_eq!(percentile(phases.clone(), 0.0), Some(ms(1)));
        assert_eq!(percentile(phases.clone(), 1.0), Some(ms(10)));
        assert_eq!(percentile(std::iter::empty::<u64>(), 0.5), None);
    }

    #[test]
    fn peaks_are_the_usual_with_some_more_or_the_largest() {
        for (select, expected) in [(Select::Min, 110), (Select::Max, 500)] {
            let config =
                PeakConfig { start_count: 3, percentile: 0.5, select, ..PeakConfig::default() };
            let mut peaks = Peaks::default();
            for bytes in [100, 500] {
                peaks.observe(bytes, &config);
                assert_eq!(peaks.estimate(), None);
            }
            peaks.observe(90, &config);
            assert_eq!(peaks.estimate(), Some(expected));
        }
    }
}

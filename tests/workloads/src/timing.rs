//! How long the phases of a workload are.
//!
//! Owns: the distributions of phase times and their fixed seeds, so that a run can be repeated.
//! Does not own: waiting for that long.

use std::time::Duration;

use crate::reference::splitmix64;

/// Spread of the phase times: standard deviation over mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spread {
    /// 0: every phase takes the mean.
    #[default]
    None,
    /// 0.5: the sum of four exponential times, of a quarter of the mean each.
    Half,
    /// 1: exponential.
    One,
}

impl std::str::FromStr for Spread {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "0" => Ok(Self::None),
            "0.5" => Ok(Self::Half),
            "1" => Ok(Self::One),
            _ => Err("the spread is 0, 0.5 or 1".into()),
        }
    }
}

/// A stream of phase times; the same seed gives the same times.
#[derive(Clone, Debug)]
pub struct Times {
    state: u64,
    spread: Spread,
}

impl Times {
    /// The stream of one seed.
    pub fn new(seed: u64, spread: Spread) -> Self {
        Self { state: splitmix64(seed), spread }
    }

    /// The next time around `mean`.
    pub fn draw(&mut self, mean: Duration) -> Duration {
        let parts = match self.spread {
            Spread::None => return mean,
            Spread::Half => 4,
            Spread::One => 1,
        };
        let total: f64 = (0..parts).map(|_| self.exponential()).sum();
        mean.mul_f64(total / f64::from(parts))
    }

    /// An exponential time of mean 1.
    fn exponential(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        // 53 bits, never 1, so that the logarithm is finite.
        let uniform = (splitmix64(self.state) >> 11) as f64 / (1u64 << 53) as f64;
        -(1.0 - uniform).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_have_their_mean_and_deviation() {
        for (spread, wanted) in [(Spread::None, 0.0), (Spread::Half, 0.5), (Spread::One, 1.0)] {
            let mut times = Times::new(1, spread);
            let drawn: Vec<f64> =
                (0..50_000).map(|_| times.draw(Duration::from_secs(1)).as_secs_f64()).collect();
            let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
            let variance =
                drawn.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / drawn.len() as f64;
            assert!((mean - 1.0).abs() < 0.02, "{spread:?}: mean {mean}");
            assert!((variance.sqrt() - wanted).abs() < 0.02, "{spread:?}: {}", variance.sqrt());
        }
    }

    #[test]
    fn same_seed_same_times() {
        let draw = |seed| Times::new(seed, Spread::One).draw(Duration::from_secs(1));
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
    }
}

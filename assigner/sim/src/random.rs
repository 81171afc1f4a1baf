//! Numbers that look random and are the same for the same seed, and the lengths of phases drawn from them.
//!
//! Owns: the generator and the distributions. Does not own: what is drawn for whom.

use std::time::Duration;

/// A stream of numbers (splitmix64: enough for phase times and faults, and no dependency).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream number `stream` of a seed: streams do not disturb each other.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Random {
        let mut random = Random(seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95));
        random.bits(); // streams of neighbouring seeds part only now
        random
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// Between 0 and 1, never either.
    pub fn share(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// A whole number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.bits() % (high - low + 1)
    }

    /// True in this share of all cases.
    pub fn chance(&mut self, share: f64) -> bool {
        self.share() < share
    }

    /// One of a list that is not empty.
    pub fn one_of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.bits() as usize % list.len()]
    }

    fn exponential(&mut self) -> f64 {
        -self.share().ln()
    }

    fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.share()).cos()
    }

    /// Mean 1 and this coefficient of variation, above 0 (Marsaglia and Tsang's method).
    fn gamma(&mut self, spread: f64) -> f64 {
        let shape = 1.0 / (spread * spread);
        // Below 1 a larger shape is drawn and bent back.
        let boost = if shape < 1.0 { self.share().powf(1.0 / shape) } else { 1.0 };
        let d = if shape < 1.0 { shape + 1.0 } else { shape } - 1.0 / 3.0;
        loop {
            let x = self.normal();
            let v = (1.0 + x / (9.0 * d).sqrt()).powi(3);
            if v > 0.0 && self.share().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v * boost / shape;
            }
        }
    }
}

/// Which lengths with a given mean and spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Family {
    /// Gamma: constant where the spread is 0, exponential where it is 1.
    #[default]
    Gamma,
    /// Log-normal: now and then a very long one.
    LogNormal,
}

impl Family {
    /// Both.
    pub const ALL: [Family; 2] = [Family::Gamma, Family::LogNormal];

    /// As a scenario names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Family::Gamma => "gamma",
            Family::LogNormal => "lognormal",
        }
    }
}

/// Lengths of phases, or of the time between requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lengths {
    /// Their mean.
    pub mean: Duration,
    /// Their coefficient of variation: standard deviation over mean.
    pub spread: f64,
    /// The distribution.
    pub family: Family,
}

impl Lengths {
    /// All alike.
    #[must_use]
    pub fn constant(mean: Duration) -> Lengths {
        Lengths { mean, spread: 0.0, family: Family::Gamma }
    }

    /// Exponentially distributed.
    #[must_use]
    pub fn exponential(mean: Duration) -> Lengths {
        Lengths { spread: 1.0, ..Lengths::constant(mean) }
    }

    /// The next one.
    #[must_use]
    pub fn draw(&self, random: &mut Random) -> Duration {
        if self.spread == 0.0 || self.mean.is_zero() {
            return self.mean;
        }
        let factor = match self.family {
            Family::Gamma if self.spread == 1.0 => random.exponential(),
            Family::Gamma => random.gamma(self.spread),
            Family::LogNormal => {
                let variance = (self.spread * self.spread).ln_1p();
                (variance.sqrt() * random.normal() - variance / 2.0).exp()
            }
        };
        // Far beyond what any scenario lasts, and safe to multiply.
        self.mean.mul_f64(factor.clamp(0.0, 1e6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_their_mean_and_spread() {
        for family in Family::ALL {
            for spread in [0.0, 0.5, 1.0, 2.0] {
                let lengths = Lengths { mean: Duration::from_secs(4), spread, family };
                let mut random = Random::new(7, 1);
                let drawn: Vec<f64> =
                    (0..200_000).map(|_| lengths.draw(&mut random).as_secs_f64()).collect();
                let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
                let square = drawn.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>();
                let found = (square / drawn.len() as f64).sqrt() / mean;
                assert!((mean - 4.0).abs() < 0.06, "{family:?} {spread}: mean {mean}");
                assert!((found - spread).abs() < 0.1 * spread.max(0.1), "{family:?}: {found}");
            }
        }
    }

    #[test]
    fn streams_and_seeds_differ_and_repeat() {
        let first = |seed, stream| Random::new(seed, stream).bits();
        assert_eq!(first(1, 2), first(1, 2));
        assert_ne!(first(1, 2), first(2, 2));
        assert_ne!(first(1, 2), first(1, 3));
        assert_ne!(first(1, 2), first(2, 1));
    }
}

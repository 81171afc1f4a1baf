//! How much memory a line of a table may move if it is to end within its time, by what the machine can move. Pure.

/// The part of a limit that a line is planned for: what it really takes is known only afterwards.
const PLANNED: f64 = 0.5;
/// How many times as large as the largest so far a line may be: a small one says little of a large one.
const GROWTH: u64 = 8;
/// How much longer than by the rates the first line is expected to take.
const CAREFUL: f64 = 2.0;

/// What a line does with its memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Seconds whatever the size: programs start, contexts are made.
    pub(crate) fixed: f64,
    /// How often a byte goes over the link.
    pub(crate) crossings: f64,
    /// How often the host fills, compares or pins a byte.
    pub(crate) handled: f64,
}

/// What the machine can move: at first as measured with a little memory, then as the lines before have shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// GB/s of each direction while both are busy.
    link: f64,
    /// GB/s of fresh memory of the host.
    host: f64,
    /// How many times as long as by these rates the last line took.
    slowness: f64,
    /// Bytes of the largest line so far.
    largest: Option<u64>,
    /// Whether a line is tried that would only end in time if it were quicker than those before.
    tries: bool,
}

impl Pace {
    pub(crate) fn new(link: f64, host: f64) -> Self {
        // Whatever was measured, no size becomes infinite.
        let sane = |rate: f64| if rate.is_finite() { rate.clamp(0.05, 1000.0) } else { 1.0 };
        Self { link: sane(link), host: sane(host), slowness: CAREFUL, largest: None, tries: true }
    }

    /// Of a GPU whose lines are not worth one that does not end: a software GPU, which is as slow as the host is busy.
    pub(crate) fn without_trying(self) -> Self {
        Self { tries: false, ..self }
    }

    /// Seconds that a byte takes beyond what is fixed.
    fn per_byte(&self, load: Load) -> f64 {
        (load.crossings / self.link + load.handled / self.host) * self.slowness / 1e9
    }

    /// Seconds in which so much goes over the link.
    pub(crate) fn crossing(&self, bytes: u64) -> f64 {
        bytes as f64 * self.slowness / self.link / 1e9
    }

    /// Bytes with which a line is expected to end well within its limit.
    pub(crate) fn fitting(&self, limit: f64, load: Load) -> u64 {
        let fits = ((limit * PLANNED - load.fixed).max(0.0) / self.per_byte(load)) as u64;
        fits.min(self.largest.map_or(u64::MAX, |largest| largest.saturating_mul(GROWTH)))
    }

    /// The same within bounds; an error that says why if there is no hope for the lower one. Where there is some it is tried, for
    /// a line that does not end costs no more than its limit.
    pub(crate) fn within(
        &self,
        limit: f64,
        load: Load,
        least: u64,
        most: u64,
    ) -> anyhow::Result<u64> {
        let expected = load.fixed + least as f64 * self.per_byte(load);
        let hoped = match self.tries || self.largest.is_none() {
            true => least as f64 * self.per_byte(load) / self.slowness.max(1.0),
            false => expected,
        };
        anyhow::ensure!(
            hoped <= limit,
            "would take {hoped:.0} s of {limit:.0}: this machine moves {:.2} GB/s",
            self.link / self.slowness.max(1.0)
        );
        Ok(self.fitting(limit, load).clamp(least, most.max(least)))
    }

    /// Takes in what a line really took.
    pub(crate) fn learn(&mut self, bytes: u64, load: Load, seconds: f64) {
        let by_rates = bytes as f64 * self.per_byte(load) / self.slowness;
        if by_rates > 0.0 {
            self.slowness = ((seconds - load.fixed) / by_rates).clamp(0.5, 100.0);
            self.largest = self.largest.max(Some(bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{GIB, MIB};

    /// As that of a line of the group `swap`.
    const SWAP: Load = Load { fixed: 4.0, crossings: 11.0, handled: 4.0 };

    /// What a line is expected to take.
    fn seconds(pace: &Pace, bytes: u64) -> f64 {
        SWAP.fixed + bytes as f64 * pace.per_byte(SWAP)
    }

    /// What lines before the large one have shown, of so many bytes.
    fn after_a_line(link: f64, host: f64, bytes: u64) -> Pace {
        let mut pace = Pace::new(link, host);
        let by_rates = bytes as f64 * (11.0 / link + 4.0 / host) / 1e9;
        pace.learn(bytes, SWAP, 4.0 + by_rates);
        pace
    }

    #[test]
    fn a_fast_link_has_tens_of_gibibytes_and_a_slow_one_little() {
        for (link, host, before, limit, least, most) in [
            // PCIe 5 and 4, each way while both are busy, in what is left for the largest line.
            (40.0, 4.0, 4 * GIB, 70.0, 20 * GIB, 60 * GIB),
            (20.0, 3.0, 4 * GIB, 70.0, 14 * GIB, 40 * GIB),
            // Two cores that copy.
            (2.0, 0.7, GIB, 40.0, GIB, 4 * GIB),
            (0.3, 0.2, 128 * MIB, 10.0, 8 * MIB, 256 * MIB),
        ] {
            let fits = after_a_line(link, host, before).fitting(limit, SWAP);
            assert!((least..most).contains(&fits), "{link} GB/s: {} MiB", fits / MIB);
        }
    }

    #[test]
    fn what_fits_ends_within_the_limit() {
        for link in [0.1, 1.0, 25.0, 55.0] {
            for limit in [5.0, 10.0, 60.0] {
                let pace = Pace::new(link, 2.0);
                let fits = pace.fitting(limit, SWAP);
                assert!(fits == 0 || seconds(&pace, fits) <= limit, "{link} {limit}");
            }
        }
    }

    #[test]
    fn sizes_follow_what_lines_have_taken() {
        let mut pace = Pace::new(20.0, 4.0);
        let first = pace.fitting(20.0, SWAP);
        // It took four times as long as it should have.
        pace.learn(first, SWAP, 4.0 + 4.0 * (seconds(&pace, first) - 4.0));
        let second = pace.fitting(20.0, SWAP);
        assert!((first / 5..first / 3).contains(&second), "{first} {second}");
        assert!(seconds(&pace, second) < 20.0);
        // In no time at all: no size becomes infinite.
        pace.learn(second, SWAP, 0.0);
        assert!(pace.fitting(20.0, SWAP) <= first * GROWTH);
    }

    #[test]
    fn a_size_without_hope_is_said() {
        let pace = Pace::new(1.0, 1.0);
        assert_eq!(pace.within(60.0, SWAP, 64 * MIB, 128 * MIB).unwrap(), 128 * MIB);
        // It may be quicker than it was thought to be.
        assert_eq!(pace.within(10.0, SWAP, 512 * MIB, 8 * GIB).unwrap(), 512 * MIB);
        let why = pace.within(10.0, SWAP, 4 * GIB, 8 * GIB).unwrap_err().to_string();
        assert!(why.contains("of 10") && why.contains("GB/s"), "{why}");
        // Lines have taken four times as long as by the rates: so will this one, and on the software GPU that is not tried.
        let mut slow = pace;
        slow.learn(64 * MIB, SWAP, 4.0 + 4.0 * 15.0 * (64 * MIB) as f64 / 1e9);
        assert_eq!(slow.within(20.0, SWAP, GIB, 8 * GIB).unwrap(), GIB);
        assert!(slow.without_trying().within(20.0, SWAP, GIB, 8 * GIB).is_err());
        assert_eq!(slow.without_trying().within(90.0, SWAP, GIB, GIB).unwrap(), GIB);
        // The first line shows how slow it is.
        assert!(pace.without_trying().within(20.0, SWAP, GIB, 8 * GIB).is_ok());
    }
}

//! Figures and the statistics behind them.
//!
//! Owns: name, value and unit of a figure, medians and percentiles. Does not own: measuring.

use serde::Serialize;

/// One measured figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Its name; the unit is part of it.
    pub name: &'static str,
    /// What was measured, in that unit; shares are plain numbers.
    pub value: f64,
    /// The unit.
    pub unit: &'static str,
    /// How it was measured and how much it scattered; for people.
    #[serde(skip)]
    pub how: String,
}

/// A sample, sorted.
#[derive(Clone, Debug)]
pub struct Sample(Vec<f64>);

impl Sample {
    /// The values; there must be one.
    pub fn new(mut values: Vec<f64>) -> Option<Self> {
        values.retain(|value| value.is_finite());
        values.sort_by(f64::total_cmp);
        (!values.is_empty()).then_some(Self(values))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The smallest value that `share` of the sample do not exceed.
    pub fn percentile(&self, share: f64) -> f64 {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0[rank.clamp(1, self.0.len()) - 1]
    }

    /// The middle.
    pub fn median(&self) -> f64 {
        self.percentile(0.5)
    }

    /// The quartiles and the extremes, for people.
    pub fn spread(&self) -> String {
        let digits = if self.median().abs() < 10.0 { 2 } else { 1 };
        format!(
            "quartiles {:.digits$} to {:.digits$}, all {:.digits$} to {:.digits$}, n = {}",
            self.percentile(0.25),
            self.percentile(0.75),
            self.percentile(0.0),
            self.percentile(1.0),
            self.count(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_of_the_sample() {
        let sample = Sample::new((1..=200).rev().map(f64::from).collect()).unwrap();
        assert_eq!(sample.median(), 100.0);
        assert_eq!(sample.percentile(0.99), 198.0);
        assert_eq!(sample.percentile(0.0), 1.0);
        assert_eq!(sample.percentile(1.0), 200.0);
        assert!(Sample::new(vec![f64::NAN]).is_none());
    }
}

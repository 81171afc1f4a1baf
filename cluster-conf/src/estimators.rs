//! The parameters of ACB's two estimators: of phase times (`--exe-est-*`) and of peak memory (`--mem-est-*`).
//!
//! Owns their keys, defaults and bounds. Does not own what they do: that is the scheduler's.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use toml::Spanned;
use toml::de::DeValue;

use crate::diagnostics::Problem;
use crate::fields::{Fault, Fields, choice, integer, number};

/// A number from 0 to 1000, to six decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Decimal(u32);

impl Decimal {
    /// `None` for a number that is not from 0 to 1000.
    pub fn new(number: f64) -> Option<Self> {
        (0.0..=1000.0).contains(&number).then(|| Decimal((number * 1e6).round() as u32))
    }

    /// The number.
    pub fn value(self) -> f64 {
        f64::from(self.0) / 1e6
    }
}

impl TryFrom<f64> for Decimal {
    type Error = &'static str;

    fn try_from(number: f64) -> Result<Self, Self::Error> {
        Decimal::new(number).ok_or("not a number from 0 to 1000")
    }
}

impl From<Decimal> for f64 {
    fn from(number: Decimal) -> f64 {
        number.value()
    }
}

/// How long phases take: a percentile of a client's latest ones. It decides what may be backfilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseEstimator {
    /// Phases of a client before its times are estimated.
    pub start_count: NonZeroU32,
    /// Latest phases that the estimate looks at.
    pub latest_count: NonZeroU32,
    /// Phases between two estimates.
    pub interval: NonZeroU32,
    /// Percentile of those phases that is the estimate, 0 to 1.
    pub percentile: Decimal,
    /// The estimate before there is one, milliseconds; 0: unknown, which is never backfilled.
    pub default_ms: u32,
}

/// What memory clients without a limit will have. It decides which of them `gpu-sharing` puts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeakEstimator {
    /// Phases of a client before its memory is estimated; until then what it has counts.
    pub start_count: NonZeroU32,
    /// Latest phases that the estimate looks at.
    pub latest_count: NonZeroU32,
    /// Phases between two estimates.
    pub interval: NonZeroU32,
    /// Percentile of those phases that is usual, 0 to 1…
    pub percentile: Decimal,
    /// …and is taken so many times, above 0.
    pub ratio: Decimal,
    /// That, or the largest of those phases: which of the two.
    pub select: Select,
}

/// Of two amounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Select {
    /// The smaller one.
    Min,
    /// The larger one.
    Max,
}

impl Select {
    /// Both.
    pub const ALL: [Select; 2] = [Select::Min, Select::Max];

    /// The name, as it is written everywhere.
    pub fn name(self) -> &'static str {
        match self {
            Select::Min => "min",
            Select::Max => "max",
        }
    }
}

const fn count(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).expect("not zero")
}

/// ACB's defaults.
impl Default for PhaseEstimator {
    fn default() -> Self {
        PhaseEstimator {
            start_count: count(10),
            latest_count: count(100),
            interval: count(10),
            percentile: Decimal(900_000),
            default_ms: 0,
        }
    }
}

/// ACB's defaults.
impl Default for PeakEstimator {
    fn default() -> Self {
        PeakEstimator {
            start_count: count(10),
            latest_count: count(100),
            interval: count(10),
            percentile: Decimal(990_000),
            ratio: Decimal(1_100_000),
            select: Select::Min,
        }
    }
}

impl PhaseEstimator {
    /// Takes the keys of a section; those that are missing have their defaults.
    pub fn read(fields: &mut Fields<'_, '_>, problems: &mut Vec<Problem>) -> Self {
        let defaults = PhaseEstimator::default();
        let default_ms =
            |v: &DeValue<'_>| integer::<u32>(v, 0, i64::from(u32::MAX), "milliseconds");
        PhaseEstimator {
            start_count: or(fields.read("start_count", problems, phases), defaults.start_count),
            latest_count: or(fields.read("latest_count", problems, phases), defaults.latest_count),
            interval: or(fields.read("interval", problems, phases), defaults.interval),
            percentile: or(fields.read("percentile", problems, percentile), defaults.percentile),
            default_ms: or(fields.read("default_ms", problems, default_ms), defaults.default_ms),
        }
    }
}

impl PeakEstimator {
    /// Takes the keys of a section; those that are missing have their defaults.
    pub fn read(fields: &mut Fields<'_, '_>, problems: &mut Vec<Problem>) -> Self {
        let defaults = PeakEstimator::default();
        let ratio = |v: &DeValue<'_>| decimal(v, 0.001, 1000.0);
        let select = |v: &DeValue<'_>| choice(v, &Select::ALL, Select::name);
        PeakEstimator {
            start_count: or(fields.read("start_count", problems, phases), defaults.start_count),
            latest_count: or(fields.read("latest_count", problems, phases), defaults.latest_count),
            interval: or(fields.read("interval", problems, phases), defaults.interval),
            percentile: or(fields.read("percentile", problems, percentile), defaults.percentile),
            ratio: or(fields.read("ratio", problems, ratio), defaults.ratio),
            select: or(fields.read("select", problems, select), defaults.select),
        }
    }
}

fn or<T>(value: Option<Spanned<T>>, default: T) -> T {
    value.map_or(default, Spanned::into_inner)
}

fn phases(value: &DeValue<'_>) -> Result<NonZeroU32, Fault> {
    integer::<u32>(value, 1, 1_000_000, "phases").map(count)
}

fn percentile(value: &DeValue<'_>) -> Result<Decimal, Fault> {
    decimal(value, 0.0, 1.0)
}

fn decimal(value: &DeValue<'_>, low: f64, high: f64) -> Result<Decimal, Fault> {
    let number = number(value, low, high, "")?;
    Ok(Decimal::new(number).expect("the bounds are narrower than the type's"))
}

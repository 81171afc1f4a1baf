//! The result file: its schema, and the lines by which a group hands its rows over. Pure.
//!
//! Version 1. Keys are stable; new ones may come. A row has a `value` in the unit that `unit` says,
//! or a `why` that says why it has none; never both, never neither.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::stats::Spread;

/// Version of the schema that this program writes.
pub(crate) const SCHEMA: u32 = 1;

/// The whole file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    /// `SCHEMA` of the program that wrote it.
    pub(crate) schema: u32,
    /// True: the software GPU. None of its numbers says anything about a GPU.
    pub(crate) simulated: bool,
    /// True: small sizes and few repeats.
    pub(crate) quick: bool,
    /// When the measurement began, UTC.
    pub(crate) date: String,
    /// Command line.
    pub(crate) command: String,
    /// Version of the probe.
    pub(crate) probe: String,
    /// Where: GPU, driver, host. Free text by key.
    pub(crate) machine: BTreeMap<String, String>,
    /// How each group ended.
    pub(crate) groups: Vec<GroupRun>,
    /// The measurements.
    pub(crate) rows: Vec<Row>,
    /// What does not fit a row, by group: symbol lists, programs' outputs.
    pub(crate) details: BTreeMap<String, serde_json::Value>,
}

/// How a group ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct GroupRun {
    pub(crate) name: String,
    pub(crate) ended: Ended,
    pub(crate) seconds: f64,
    /// Of a group that did not end well: what it said last.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) why: String,
}

/// How a group's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ended {
    /// By itself, with success.
    Well,
    /// By itself, with an error or a signal.
    Failed,
    /// It was ended at its time limit.
    Overran,
    /// Not started: the time for all was over.
    Skipped,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) group: String,
    /// Unique within the group; says the unit where there is one.
    pub(crate) name: String,
    /// `us`, `GiB/s`, `ratio`, `count`, …; `text` for rows whose value is `text`.
    pub(crate) unit: String,
    /// The median, or the one value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) value: Option<f64>,
    /// Of repeated measurements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) spread: Option<Spread>,
    /// Of rows that are no number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<String>,
    /// True: a modelled number of the software GPU.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) simulated: bool,
    /// Whether the result was checked: the bytes copied, the hash, the product. None: nothing to check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) verified: Option<bool>,
    /// What to know about this value.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) note: String,
    /// Why there is no value.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) why: String,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Row {
    fn empty(group: &str, name: &str, unit: &str) -> Self {
        Self {
            group: group.into(),
            name: name.into(),
            unit: unit.into(),
            value: None,
            spread: None,
            text: None,
            simulated: false,
            verified: None,
            note: String::new(),
            why: String::new(),
        }
    }

    /// One number.
    pub(crate) fn value(group: &str, name: &str, unit: &str, value: f64) -> Self {
        let row = Self::empty(group, name, unit);
        if value.is_finite() {
            Self { value: Some(value), ..row }
        } else {
            Self { why: format!("the measurement gave {value}"), ..row }
        }
    }

    /// Repeated measurements.
    pub(crate) fn sample(group: &str, name: &str, unit: &str, sample: &[f64]) -> Self {
        Self::spread(group, name, unit, Spread::of(sample))
    }

    /// A sample that was reduced already.
    pub(crate) fn spread(group: &str, name: &str, unit: &str, spread: Option<Spread>) -> Self {
        let row = Self::empty(group, name, unit);
        match spread {
            Some(spread) => Self { value: Some(spread.median), spread: Some(spread), ..row },
            None => Self { why: "no measurement".into(), ..row },
        }
    }

    /// A word instead of a number.
    pub(crate) fn text(group: &str, name: &str, text: impl Into<String>) -> Self {
        Self { text: Some(text.into()), ..Self::empty(group, name, "text") }
    }

    /// A row that could not be measured.
    pub(crate) fn missing(group: &str, name: &str, unit: &str, why: impl Into<String>) -> Self {
        Self { why: why.into(), ..Self::empty(group, name, unit) }
    }

    /// Adds what to know about the value.
    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// Says whether the result was right.
    pub(crate) fn verified(mut self, right: bool) -> Self {
        self.verified = Some(right);
        self
    }

    /// Whether there is a value or a text.
    pub(crate) fn is_measured(&self) -> bool {
        self.value.is_some() || self.text.is_some()
    }

    /// The value as people read it.
    pub(crate) fn shown(&self) -> String {
        match (&self.text, self.value) {
            (Some(text), _) => text.clone(),
            (None, Some(value)) => shown(value),
            (None, None) => "–".into(),
        }
    }

    /// The middle half, as people read it.
    pub(crate) fn shown_spread(&self) -> String {
        match &self.spread {
            Some(s) if s.n > 1 => format!("{} … {} (n={})", shown(s.q1), shown(s.q3), s.n),
            _ => String::new(),
        }
    }
}

/// Three significant digits, or all digits before the point.
pub(crate) fn shown(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if size == 0.0 => "0".into(),
        _ if size >= 100.0 => format!("{value:.0}"),
        _ if size >= 10.0 => format!("{value:.1}"),
        _ if size >= 1.0 => format!("{value:.2}"),
        _ if size >= 0.001 => format!("{value:.3}"),
        _ => format!("{value:.2e}"),
    }
}

/// What a group's process prints, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Line {
    Row(Row),
    Machine {
        key: String,
        value: String,
    },
    Detail {
        value: serde_json::Value,
    },
    /// A part of the group begins, which may take so many seconds.
    Part {
        name: String,
        seconds: f64,
    },
    /// It has ended.
    End {
        name: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_survives_its_line() {
        for row in [
            Row::sample("memory", "map_us_2mib", "us", &[1.0, 2.0, 3.0]).note("n").verified(true),
            Row::text("driver", "name", "GPU"),
            Row::missing("hash", "hash_gbs", "GB/s", "no such kernel"),
        ] {
            let line = serde_json::to_string(&Line::Row(row.clone())).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Line>(&line).unwrap(), Line::Row(row));
        }
    }

    #[test]
    fn a_row_has_a_value_or_a_reason() {
        let rows = [
            Row::value("g", "n", "us", 1.0),
            Row::value("g", "n", "us", f64::NAN),
            Row::sample("g", "n", "us", &[]),
            Row::sample("g", "n", "us", &[2.0]),
            Row::missing("g", "n", "us", "because"),
            Row::text("g", "n", "t"),
        ];
        for row in rows {
            assert_ne!(row.is_measured(), !row.why.is_empty(), "{row:?}");
        }
    }

    #[test]
    fn numbers_are_shown_with_three_digits() {
        let cases = [
            (0.0, "0"),
            (0.01234, "0.012"),
            (0.000_012_3, "1.23e-5"),
            (1.2345, "1.23"),
            (12.345, "12.3"),
            (1234.5, "1234"),
            (-2.5, "-2.50"),
        ];
        for (value, text) in cases {
            assert_eq!(shown(value), text);
        }
    }
}

//! Tenants and queues, as the cluster file and the job spec name them.
//!
//! Owns: names, shares and priorities that cannot be wrong. Does not own: what the scheduler makes of them.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::policy::Policy;

/// The name of a tenant or a queue: letters, digits and `_ - . @`, 1 to 64 of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// The text is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a name has 1 to 64 letters, digits and _ - . @")]
pub struct NameProblem;

impl Name {
    /// A name, if the text is one.
    pub fn new(text: impl Into<String>) -> Result<Name, NameProblem> {
        let text = text.into();
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '@');
        let right = (1..=64).contains(&text.len()) && text.chars().all(fits);
        if right { Ok(Name(text)) } else { Err(NameProblem) }
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = NameProblem;

    fn try_from(text: String) -> Result<Name, NameProblem> {
        Name::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What goes first: the higher. From -100 to 100, 0 is usual.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(try_from = "i32", into = "i32")]
pub struct Priority(i8);

/// The number or word is no priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a priority is a number from -100 to 100, or latency, interactive, normal or batch")]
pub struct PriorityProblem;

/// Priorities that have names.
const NAMED: [(&str, i8); 4] =
    [("latency", 100), ("interactive", 50), ("normal", 0), ("batch", -50)];

impl Priority {
    /// Its number.
    pub fn number(self) -> i32 {
        self.0.into()
    }
}

impl TryFrom<i32> for Priority {
    type Error = PriorityProblem;

    fn try_from(number: i32) -> Result<Priority, PriorityProblem> {
        let number = i8::try_from(number).map_err(|_| PriorityProblem)?;
        if (-100..=100).contains(&number) { Ok(Priority(number)) } else { Err(PriorityProblem) }
    }
}

impl From<Priority> for i32 {
    fn from(priority: Priority) -> i32 {
        priority.number()
    }
}

impl FromStr for Priority {
    type Err = PriorityProblem;

    fn from_str(text: &str) -> Result<Priority, PriorityProblem> {
        if let Some((_, number)) = NAMED.iter().find(|(name, _)| *name == text) {
            return Ok(Priority(*number));
        }
        let digits = text.strip_prefix('-').unwrap_or(text);
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let number: i32 = plain.then(|| text.parse().ok()).flatten().ok_or(PriorityProblem)?;
        Priority::try_from(number)
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A part of the GPUs that an assigner has: 0 to 1, in millionths.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(try_from = "u32", into = "u32")]
pub struct Share(u32);

impl Share {
    /// The part; `None` when it is not from 0 to 1.
    pub fn new(part: f64) -> Option<Share> {
        // Rounded to millionths, hence within the bounds again.
        (0.0..=1.0).contains(&part).then(|| Share((part * 1e6).round() as u32))
    }

    /// In millionths.
    pub fn millionths(self) -> u32 {
        self.0
    }

    /// Whole GPUs out of so many. A little is forgiven, so that a third of three is one.
    pub fn of(self, gpus: u32) -> u32 {
        let parts = u64::from(self.0) * u64::from(gpus) + 10_000;
        u32::try_from(parts / 1_000_000).unwrap_or(gpus).min(gpus)
    }
}

impl TryFrom<u32> for Share {
    type Error = &'static str;

    fn try_from(millionths: u32) -> Result<Share, &'static str> {
        if millionths <= 1_000_000 {
            Ok(Share(millionths))
        } else {
            Err("more than a million millionths")
        }
    }
}

impl From<Share> for u32 {
    fn from(share: Share) -> u32 {
        share.0
    }
}

/// `[[queue]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueRule {
    /// What it is called.
    pub name: Name,
    /// Queues of higher priority go first.
    pub priority: Priority,
    /// Its policy; without it, the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// GPUs that its clients hold at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_gpus: Option<NonZeroU32>,
    /// Clients in it at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_clients: Option<NonZeroU32>,
}

/// `[[tenant]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantRule {
    /// What it is called: a Slurm account, a user, or any name.
    pub name: Name,
    /// Its part of an assigner's GPUs, which it gets whenever it wants them.
    pub share: Share,
    /// GPUs that it holds at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_gpus: Option<NonZeroU32>,
    /// Its part of what nobody is guaranteed.
    pub weight: NonZeroU32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_whole_gpus() {
        for (part, gpus, whole) in
            [(0.25, 8, 2), (0.25, 1, 0), (0.333, 3, 1), (0.5, 3, 1), (1.0, 7, 7), (0.0, 9, 0)]
        {
            assert_eq!(Share::new(part).unwrap().of(gpus), whole, "{part} of {gpus}");
        }
        assert_eq!((Share::new(1.01), Share::new(-0.1), Share::new(f64::NAN)), (None, None, None));
    }

    #[test]
    fn priorities_have_bounds_and_names() {
        for (text, number) in
            [("0", 0), ("-100", -100), ("100", 100), ("latency", 100), ("batch", -50)]
        {
            assert_eq!(text.parse::<Priority>().map(Priority::number), Ok(number), "{text}");
        }
        for text in ["", "-", "101", "-101", "+1", "1.5", "high", "99999999999"] {
            assert!(text.parse::<Priority>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_stay_on_one_line() {
        assert!(Name::new("physics-1.a_b@x").is_ok());
        for text in ["", "a b", "a\n", "ä", "a,b", "a#b", &"x".repeat(65)] {
            assert!(Name::new(text).is_err(), "{text}");
        }
    }
}

//! `gang=`: which programs hold their GPUs at the same time.
//!
//! Owns how that is written, and which gang it makes of a program of a step.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::tenancy::Name;

/// What the user asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum GangRequest {
    /// All tasks of a step are one gang.
    Step,
    /// Programs that say the same name are, over all steps and nodes of the job.
    Named {
        /// The name.
        name: Name,
        /// How many programs.
        size: NonZeroU32,
    },
}

/// The text names no gang.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a gang is `step`, or NAME:SIZE with a name of letters, digits and _ - . @ and the number of its programs"
)]
pub struct GangProblem;

impl GangRequest {
    /// Name and size of the gang that a program of a step belongs to; `None` if the step's number of
    /// tasks is needed and not known.
    pub fn of(&self, step: &str, tasks: Option<u32>) -> Option<(String, u32)> {
        match self {
            // `/` cannot be in a name that somebody says.
            GangRequest::Step => Some((format!("step/{step}"), tasks?)),
            GangRequest::Named { name, size } => Some((name.to_string(), size.get())),
        }
    }
}

impl FromStr for GangRequest {
    type Err = GangProblem;

    fn from_str(text: &str) -> Result<GangRequest, GangProblem> {
        if text == "step" {
            return Ok(GangRequest::Step);
        }
        let (name, size) = text.split_once(':').ok_or(GangProblem)?;
        let name = Name::new(name).map_err(|_| GangProblem)?;
        let digits = size.bytes().all(|byte| byte.is_ascii_digit());
        let size = size.parse().ok().filter(|_| digits).ok_or(GangProblem)?;
        Ok(GangRequest::Named { name, size })
    }
}

impl fmt::Display for GangRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GangRequest::Step => f.write_str("step"),
            GangRequest::Named { name, size } => write!(f, "{name}:{size}"),
        }
    }
}

impl TryFrom<String> for GangRequest {
    type Error = GangProblem;

    fn try_from(text: String) -> Result<GangRequest, GangProblem> {
        text.parse()
    }
}

impl From<GangRequest> for String {
    fn from(gang: GangRequest) -> String {
        gang.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gangs_are_read_and_written_alike() {
        for text in ["step", "train:8", "a.b-c@d:1"] {
            assert_eq!(text.parse::<GangRequest>().unwrap().to_string(), text);
        }
        for text in ["", "steps", "train", "train:", "train:0", "train:+2", ":2", "a/b:2", "a:2:3"]
        {
            assert_eq!(text.parse::<GangRequest>(), Err(GangProblem), "{text}");
        }
    }

    #[test]
    fn a_step_is_a_gang_of_its_tasks() {
        let step = GangRequest::Step;
        assert_eq!(step.of("3", Some(4)), Some(("step/3".to_owned(), 4)));
        assert_eq!(step.of("3", None), None);
        let named: GangRequest = "train:8".parse().unwrap();
        assert_eq!(named.of("3", None), Some(("train".to_owned(), 8)));
    }
}

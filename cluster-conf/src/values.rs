//! Values that are right once they exist: absolute paths, environment tables, host names.
//!
//! Owns their rules. Does not own where they are written.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A path from the root, without `..`, `.` at its end, or NUL.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AbsolutePath(String);

/// Why a text is no [`AbsolutePath`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathProblem {
    /// It does not begin with a slash.
    #[error("the path is not absolute")]
    Relative,
    /// It goes upwards.
    #[error("the path contains `..`")]
    Upwards,
    /// A path cannot hold NUL, and a line of a log no line break.
    #[error("the path contains a control character")]
    Control,
}

impl AbsolutePath {
    /// Checks a text.
    pub fn new(text: impl Into<String>) -> Result<Self, PathProblem> {
        let text = text.into();
        if !text.starts_with('/') {
            Err(PathProblem::Relative)
        } else if text.chars().any(char::is_control) {
            Err(PathProblem::Control)
        } else if text.split('/').any(|part| part == "..") {
            Err(PathProblem::Upwards)
        } else {
            Ok(AbsolutePath(text))
        }
    }

    /// The text of the path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for AbsolutePath {
    type Target = Path;

    fn deref(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl AsRef<Path> for AbsolutePath {
    fn as_ref(&self) -> &Path {
        self
    }
}

impl TryFrom<String> for AbsolutePath {
    type Error = PathProblem;

    fn try_from(text: String) -> Result<Self, PathProblem> {
        AbsolutePath::new(text)
    }
}

impl From<AbsolutePath> for String {
    fn from(path: AbsolutePath) -> String {
        path.0
    }
}

impl From<AbsolutePath> for PathBuf {
    fn from(path: AbsolutePath) -> PathBuf {
        PathBuf::from(path.0)
    }
}

/// A part of something, from a thousandth to all of it; as exact as a millionth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Part(u32);

impl Part {
    /// A share; `None` for a number that is not from 0.001 to 1.
    pub fn new(part: f64) -> Option<Self> {
        (0.001..=1.0).contains(&part).then(|| Part((part * 1e6).round() as u32))
    }

    /// The part as a number.
    pub fn value(self) -> f64 {
        f64::from(self.0) / 1e6
    }
}

impl TryFrom<f64> for Part {
    type Error = &'static str;

    fn try_from(part: f64) -> Result<Self, Self::Error> {
        Part::new(part).ok_or("a share is a number from 0.001 to 1")
    }
}

impl From<Part> for f64 {
    fn from(share: Part) -> f64 {
        share.value()
    }
}

/// Environment variables that a site adds. None of them is one that the plugin or Slurm sets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Environment(BTreeMap<String, String>);

/// Why a variable cannot be set by a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VariableProblem {
    /// Letters, digits and `_`, no digit first.
    #[error("not a name of an environment variable: letters, digits and `_`, no digit first")]
    Name,
    /// One that the plugin sets.
    #[error("slurm-acb sets this variable itself")]
    OwnedByAcb,
    /// One that decides what the loader maps into a program.
    #[error(
        "variables of the dynamic loader are not for the cluster file: slurm-acb sets LD_PRELOAD and LD_LIBRARY_PATH itself"
    )]
    OwnedByLoader,
    /// One of Slurm's.
    #[error("Slurm sets this variable itself")]
    OwnedBySlurm,
    /// Environment strings end at NUL.
    #[error("the value contains NUL")]
    Nul,
}

/// What the plugin, agarun or the cluster file's own keys set.
const OWN: [&str; 14] = [
    "ACB_CONF",
    "ACB_DRIVER",
    "ACB_ELIGIBLE",
    "ACB_GPUS",
    "ACB_GRACE_MS",
    "ACB_LIB_DIR",
    "ACB_MEMORY",
    "ACB_NVML",
    "ACB_ON_FAILURE",
    "ACB_RANK",
    "ACB_SOCKET",
    "ACB_STEP",
    "ACB_UUIDS",
    "CUDA_VISIBLE_DEVICES",
];

impl Environment {
    /// Whether a variable can be set.
    pub fn check(name: &str, value: &str) -> Result<(), VariableProblem> {
        let mut letters = name.chars();
        let first = letters.next().is_some_and(|c| c == '_' || c.is_ascii_alphabetic());
        if !first || !letters.all(|c| c == '_' || c.is_ascii_alphanumeric()) {
            Err(VariableProblem::Name)
        } else if name.starts_with("LD_") {
            Err(VariableProblem::OwnedByLoader)
        } else if name.starts_with("SLURM_") || name.starts_with("SLURMD_") {
            Err(VariableProblem::OwnedBySlurm)
        } else if OWN.contains(&name) {
            Err(VariableProblem::OwnedByAcb)
        } else if value.contains('\0') {
            Err(VariableProblem::Nul)
        } else {
            Ok(())
        }
    }

    /// Sets a variable, if it can be set.
    pub fn insert(&mut self, name: &str, value: &str) -> Result<(), VariableProblem> {
        Environment::check(name, value)?;
        self.0.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    /// The variables, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<BTreeMap<String, String>> for Environment {
    type Error = String;

    fn try_from(table: BTreeMap<String, String>) -> Result<Self, String> {
        for (name, value) in &table {
            Environment::check(name, value).map_err(|problem| {
                format!("environment variable `{}`: {problem}", name.escape_debug())
            })?;
        }
        Ok(Environment(table))
    }
}

impl From<Environment> for BTreeMap<String, String> {
    fn from(environment: Environment) -> Self {
        environment.0
    }
}

/// Whether a text can name a host: what DNS and Slurm both take.
pub(crate) fn is_host_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && !text.starts_with(['-', '.'])
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

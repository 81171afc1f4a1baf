//! The words behind the plugin in plugstack.conf: `conf=PATH`.
//!
//! Owns: them, and the cluster file that they name. Slurm hands them to every callback, but not to
//! the option's.

use crate::slurm;
use acb_cluster_conf::{LoadError, SiteConfig, Trust};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// What plugstack.conf says.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Arguments {
    conf: Option<PathBuf>,
    /// Words that mean nothing.
    unknown: Vec<String>,
}

static ARGUMENTS: Mutex<Option<Arguments>> = Mutex::new(None);

/// Takes the words of a callback; they are the same each time.
pub(crate) fn remember(words: &[String]) {
    let mut arguments = ARGUMENTS.lock().unwrap_or_else(PoisonError::into_inner);
    if arguments.is_none() {
        let parsed = parse(words);
        for word in &parsed.unknown {
            slurm::error(&format!("plugstack.conf: unknown word `{word}`; known is conf=PATH"));
        }
        *arguments = Some(parsed);
    }
}

fn parse(words: &[String]) -> Arguments {
    let mut arguments = Arguments::default();
    for word in words {
        match word.strip_prefix("conf=") {
            Some(path) if !path.is_empty() => arguments.conf = Some(path.into()),
            _ => arguments.unknown.push(word.clone()),
        }
    }
    arguments
}

/// Reads the cluster file. The environment is never asked where it is: the check in srun is to
/// find what the nodes will find.
pub(crate) fn site() -> Result<SiteConfig, LoadError> {
    SiteConfig::load(conf().as_deref(), Trust::Privileged)
}

/// The cluster file that plugstack.conf names; `None`: the default.
pub(crate) fn conf() -> Option<PathBuf> {
    let arguments = ARGUMENTS.lock().unwrap_or_else(PoisonError::into_inner);
    arguments.as_ref().and_then(|arguments| arguments.conf.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read() {
        let words = ["conf=/etc/a.toml", "conf=", "debug"].map(str::to_owned);
        let arguments = parse(&words);
        assert_eq!(arguments.conf, Some("/etc/a.toml".into()));
        assert_eq!(arguments.unknown, ["conf=", "debug"]);
    }
}

//! Reading files: the only IO of this crate.
//!
//! Owns which file is the cluster file and whether it can be trusted. Does not own what stands in it.

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::diagnostics::ConfigError;
use crate::multinode::Multinode;
use crate::site::SiteConfig;
use crate::spec::{JobSpec, SpecError};

/// Where the cluster file lies when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/acb/cluster.toml";

/// Variable that names another cluster file.
pub const VARIABLE: &str = "ACB_CONF";

/// Larger files are no configuration.
const MAX_BYTES: u64 = 1 << 20;

/// On whose behalf a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// For the user who runs this program: `ACB_CONF` counts.
    User,
    /// By a daemon with rights of its own: the environment may be anybody's and is not asked, and the file must
    /// belong to root or to the daemon's user and be writable by nobody else.
    Privileged,
}

impl Trust {
    fn remedy(self) -> &'static str {
        match self {
            Trust::User => "with ACB_CONF=PATH",
            Trust::Privileged => "with conf=PATH in plugstack.conf",
        }
    }
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The default cluster file does not exist.
    #[error("there is no cluster file {}: the administrator can install one (an empty file means all defaults), or name another {}",
        path.display(), trust.remedy())]
    NoDefault {
        /// The default place.
        path: PathBuf,
        /// Who wanted it.
        trust: Trust,
    },
    /// The file cannot be read.
    #[error("{} cannot be read: {source} ({origin})", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Who named it.
        origin: Origin,
        /// Why.
        source: io::Error,
    },
    /// The file is not a text.
    #[error("{}:{line}:{column}: not UTF-8 text", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Line of the first wrong byte, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// The file is too large.
    #[error("{} is larger than 1 MiB and no configuration", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Others than root could have written the file.
    #[error("{} is not trusted, because {why}: chown root and chmod go-w it", path.display())]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// What stands in it is wrong.
    #[error(transparent)]
    Invalid(#[from] ConfigError),
    /// What stands in the job spec is wrong.
    #[error("{}:{source}", path.display())]
    InvalidSpec {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: SpecError,
    },
}

/// Who named a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The caller: an option, or `conf=` in plugstack.conf.
    Explicit,
    /// The variable `ACB_CONF`.
    Variable,
    /// Nobody: it is the default.
    Default,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Origin::Explicit => "named by an option or by conf= in plugstack.conf",
            Origin::Variable => "named by ACB_CONF",
            Origin::Default => "the default place",
        })
    }
}

/// Which file is the cluster file: `explicit`, else `ACB_CONF` if the environment may be asked, else the default.
pub fn locate(explicit: Option<&Path>, trust: Trust) -> (PathBuf, Origin) {
    let variable = match trust {
        Trust::User => std::env::var_os(VARIABLE).filter(|value| !value.is_empty()),
        Trust::Privileged => None,
    };
    choose(explicit, variable)
}

fn choose(explicit: Option<&Path>, variable: Option<OsString>) -> (PathBuf, Origin) {
    match (explicit, variable) {
        (Some(path), _) => (path.to_owned(), Origin::Explicit),
        (None, Some(path)) => (PathBuf::from(path), Origin::Variable),
        (None, None) => (PathBuf::from(DEFAULT_PATH), Origin::Default),
    }
}

impl SiteConfig {
    /// Reads the cluster file; [`locate`] says which.
    pub fn load(explicit: Option<&Path>, trust: Trust) -> Result<Self, LoadError> {
        let (path, origin) = locate(explicit, trust);
        let text = read_text(&path, origin, trust)?;
        Ok(SiteConfig::parse(&path.to_string_lossy(), &text)?)
    }
}

impl Multinode {
    /// Reads a `multinode.toml`.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let text = read_text(path, Origin::Explicit, Trust::User)?;
        Ok(Multinode::parse(&path.to_string_lossy(), &text)?)
    }
}

impl JobSpec {
    /// Reads a job spec.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let text = read_text(path, Origin::Explicit, Trust::User)?;
        JobSpec::parse(&text)
            .map_err(|source| LoadError::InvalidSpec { path: path.to_owned(), source })
    }
}

fn read_text(path: &Path, origin: Origin, trust: Trust) -> Result<String, LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: path.to_owned(), origin, source };
    let regular = |metadata: fs::Metadata| match metadata.is_file() {
        true => Ok(metadata),
        false => Err(unreadable(io::Error::other("it is not a regular file"))),
    };
    // Before the file is opened, because opening a pipe would wait for its other end…
    let before = fs::metadata(path).map_err(|source| match (source.kind(), origin) {
        (io::ErrorKind::NotFound, Origin::Default) => {
            LoadError::NoDefault { path: path.to_owned(), trust }
        }
        _ => unreadable(source),
    })?;
    regular(before)?;
    let mut file = File::open(path).map_err(unreadable)?;
    // …and again of the opened file, so that what is checked is what is read.
    let metadata = regular(file.metadata().map_err(unreadable)?)?;
    if trust == Trust::Privileged {
        let own = fs::metadata("/proc/self").map_err(unreadable)?.uid();
        check_owner(&metadata, own)
            .map_err(|why| LoadError::Untrusted { path: path.to_owned(), why })?;
    }
    let mut bytes = Vec::new();
    file.by_ref().take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(LoadError::TooLarge { path: path.to_owned() });
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]);
        let (line, column) = crate::diagnostics::line_and_column(&good, good.len());
        LoadError::NotText { path: path.to_owned(), line, column }
    })
}

fn check_owner(metadata: &fs::Metadata, own_uid: u32) -> Result<(), &'static str> {
    if metadata.uid() != 0 && metadata.uid() != own_uid {
        Err("it belongs to another user")
    } else if metadata.mode() & 0o002 != 0 {
        Err("everybody can write it")
    } else if metadata.mode() & 0o020 != 0 && metadata.gid() != 0 {
        Err("its group can write it")
    } else {
        Ok(())
    }
}

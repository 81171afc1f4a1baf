//! Where slurm-acb is installed: the layout that `scripts/install` makes (docs/architecture.md).

use anyhow::{Context, Result, bail};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// An installed slurm-acb, with tests.
#[derive(Debug, Clone)]
pub struct Prefix(PathBuf);

impl Prefix {
    /// The folder that holds bin, lib, libexec.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// The folder that `ACB_PREFIX` names.
    ///
    /// # Errors
    /// The variable is not set.
    pub fn from_env() -> Result<Self> {
        std::env::var_os("ACB_PREFIX").map(Self::new).context(
            "ACB_PREFIX is not set: install with `scripts/install --prefix DIR --with-tests` \
             and set ACB_PREFIX=DIR",
        )
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// The SPANK plugin.
    pub fn plugin(&self) -> PathBuf {
        self.0.join("lib/slurm/acb_spank.so")
    }

    /// A program of bin, for instance "gpu_assigner".
    pub fn program(&self, name: &str) -> PathBuf {
        self.0.join("bin").join(name)
    }

    /// The folder of the interposer.
    pub fn library(&self) -> PathBuf {
        self.0.join("lib/acb")
    }

    /// A program of the tests, for instance "phases".
    pub fn test_program(&self, name: &str) -> PathBuf {
        self.0.join("libexec/acb-tests").join(name)
    }

    /// Jobs of other users run from here: everybody must be able to read it.
    pub(super) fn check(&self) -> Result<()> {
        let root = self.0.canonicalize().with_context(|| format!("{}", self.0.display()))?;
        for folder in root.ancestors() {
            if folder.metadata()?.permissions().mode() & 0o001 == 0 {
                bail!(
                    "{} cannot be entered by everybody, so jobs of other users cannot run from {}: \
                     install elsewhere, for instance in /opt/acb",
                    folder.display(),
                    root.display()
                );
            }
        }
        Ok(())
    }
}

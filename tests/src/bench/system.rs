//! The driver of this machine, and which of its GPUs may be used, as the caller's environment says.
//!
//! Owns: the few variables that programs on real GPUs have from the caller. Does not own: the programs ([`super::outside`]).

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the driver's libraries are, if not in the usual places; and, should that be the software GPU, what it is like.
const KEPT: [&str; 3] = ["ACB_DRIVER", "ACB_NVML", "SIMCUDA_CONFIG"];
const SEARCH: &str = "LD_LIBRARY_PATH";
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// What the environment says of the machine's GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct System {
    kept: Vec<(&'static str, OsString)>,
    search: Option<OsString>,
    visible: Option<String>,
}

/// Why this machine's GPUs cannot be used as the environment says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SystemError {
    /// Fewer may be used than are wanted.
    #[error("CUDA_VISIBLE_DEVICES={visible} are {} GPUs, but the scenario has {wanted}: --set node.gpus=N", visible.split(',').count())]
    TooFew {
        /// What the variable says.
        visible: String,
        /// How many GPUs are wanted.
        wanted: usize,
    },
    /// A library is named that is not there.
    #[error("{variable}={} is not there", path.display())]
    Missing {
        /// Which one.
        variable: &'static str,
        /// Where it should be.
        path: PathBuf,
    },
    /// Programs look for the driver by its name.
    #[error("ACB_DRIVER={} has another name than libcuda.so.1, by which programs look for it", .0.display())]
    Name(PathBuf),
}

impl System {
    /// Of this process.
    pub fn of_environment() -> Self {
        Self::new(|name| std::env::var_os(name))
    }

    /// Of any environment.
    pub fn new(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        Self {
            kept: KEPT.iter().filter_map(|name| Some((*name, set(name)?))).collect(),
            search: set(SEARCH),
            visible: set(VISIBLE).and_then(|list| list.into_string().ok()),
        }
    }

    /// The value of the assigner's `--gpu-list` for so many GPUs: the first that may be used.
    ///
    /// # Errors
    /// There are fewer.
    pub fn gpu_list(&self, wanted: usize) -> Result<String, SystemError> {
        let Some(visible) = &self.visible else {
            return Ok((0..wanted).map(|index| index.to_string()).collect::<Vec<_>>().join(","));
        };
        let names: Vec<&str> = visible.split(',').map(str::trim).collect();
        match names.get(..wanted) {
            Some(names) => Ok(names.join(",")),
            None => Err(SystemError::TooFew { visible: visible.clone(), wanted }),
        }
    }

    /// Whether the libraries that are named are there.
    ///
    /// # Errors
    /// One is not.
    pub fn check(&self) -> Result<(), SystemError> {
        for (variable, path) in &self.kept {
            let path = PathBuf::from(path);
            if !path.is_file() {
                return Err(SystemError::Missing { variable, path });
            }
            if *variable == "ACB_DRIVER" && path.file_name() != Some(OsStr::new("libcuda.so.1")) {
                return Err(SystemError::Name(path));
            }
        }
        Ok(())
    }

    /// NVML, as it can be opened.
    pub(super) fn nvml(&self) -> &Path {
        let named = self.kept.iter().find(|(name, _)| *name == "ACB_NVML");
        named.map_or(Path::new("libnvidia-ml.so.1"), |(_, path)| Path::new(path))
    }

    /// The folder of the driver, where the environment names it.
    pub(super) fn folder(&self) -> Option<&Path> {
        let (_, driver) = self.kept.iter().find(|(name, _)| *name == "ACB_DRIVER")?;
        Path::new(driver).parent()
    }

    /// Puts into a command's environment what it needs to find the driver; libraries are looked for in `first`, then where the
    /// caller's are.
    pub(super) fn hand_to<'a>(
        &self,
        command: &'a mut Command,
        first: Option<&Path>,
    ) -> &'a mut Command {
        let folders: Vec<&OsStr> =
            first.map(Path::as_os_str).into_iter().chain(self.search.as_deref()).collect();
        match folders.is_empty() {
            true => command.env_remove(SEARCH),
            false => command.env(SEARCH, folders.join(OsStr::new(":"))),
        };
        command.envs(self.kept.iter().map(|(name, value)| (name, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(variables: &[(&str, &str)]) -> System {
        let of = |name: &str| variables.iter().find(|(known, _)| *known == name);
        System::new(|name| of(name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_first_gpus_that_may_be_used_are() {
        assert_eq!(system(&[]).gpu_list(2).unwrap(), "0,1");
        let some = system(&[(VISIBLE, "3, GPU-5,7")]);
        assert_eq!(some.gpu_list(2).unwrap(), "3,GPU-5");
        let error = some.gpu_list(4).unwrap_err().to_string();
        assert!(error.contains("are 3 GPUs, but the scenario has 4"), "{error}");
    }

    #[test]
    fn programs_find_the_driver_that_the_caller_names() {
        let named =
            system(&[("ACB_DRIVER", "/opt/d/libcuda.so.1"), (SEARCH, "/a:/b"), ("HOME", "/h")]);
        let mut command = Command::new("true");
        named.hand_to(&mut command, named.folder());
        let set: Vec<_> = command.get_envs().collect();
        let expected = [("ACB_DRIVER", "/opt/d/libcuda.so.1"), (SEARCH, "/opt/d:/a:/b")];
        assert_eq!(set, expected.map(|(name, value)| (OsStr::new(name), Some(OsStr::new(value)))));
    }
}

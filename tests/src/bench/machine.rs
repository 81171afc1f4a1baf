//! The GPUs of this machine, as far as the quickstart must know them.
//!
//! Owns: whether there are NVIDIA GPUs here, and what they are called. Does not own: using them.

use std::fs;
use std::path::{Path, PathBuf};

/// NVIDIA GPUs that this machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealGpus {
    /// Their device files, in order.
    pub files: Vec<PathBuf>,
    /// What the first is called.
    pub name: String,
}

/// The machine's GPUs; `None` where the driver is not loaded.
pub fn real_gpus() -> Option<RealGpus> {
    gpus_in(Path::new("/dev"), Path::new("/proc/driver/nvidia"))
}

fn gpus_in(dev: &Path, driver: &Path) -> Option<RealGpus> {
    if !driver.join("version").exists() {
        return None;
    }
    let mut numbered: Vec<(u32, PathBuf)> = fs::read_dir(dev)
        .ok()?
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name();
            let number = name.to_str()?.strip_prefix("nvidia")?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    numbered.sort();
    if numbered.is_empty() {
        return None;
    }
    let name = fs::read_dir(driver.join("gpus"))
        .ok()
        .and_then(|mut gpus| gpus.find_map(|gpu| model(&gpu.ok()?.path().join("information"))))
        .unwrap_or_else(|| "NVIDIA GPU".into());
    Some(RealGpus { files: numbered.into_iter().map(|(_, file)| file).collect(), name })
}

/// The line `Model: …` of the driver's file.
fn model(information: &Path) -> Option<String> {
    let text = fs::read_to_string(information).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Model:"))?;
    Some(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_numbered_files_of_a_loaded_driver() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let (dev, driver) = (folder.path().join("dev"), folder.path().join("driver"));
        fs::create_dir_all(&dev)?;
        for name in ["nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm", "null"] {
            fs::write(dev.join(name), "")?;
        }
        assert_eq!(gpus_in(&dev, &driver), None);
        fs::create_dir_all(driver.join("gpus/0000:01:00.0"))?;
        fs::write(driver.join("version"), "")?;
        fs::write(
            driver.join("gpus/0000:01:00.0/information"),
            "Model: \t\t NVIDIA H200\nIRQ:   \t\t 1\n",
        )?;
        let found = gpus_in(&dev, &driver).expect("there are two");
        assert_eq!(found.files, [dev.join("nvidia2"), dev.join("nvidia10")]);
        assert_eq!(found.name, "NVIDIA H200");
        Ok(())
    }
}

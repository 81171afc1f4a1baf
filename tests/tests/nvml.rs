//! NVML inside a client tells the same of the client's GPUs as cuMemGetInfo, and of others what it tells everybody.
//!
//! Needs an installation with tests, named by ACB_PREFIX.

use std::path::Path;
use std::process::{Command, Stdio};

use acb_tests::bench::outside::Outside;
use acb_tests::lab::Prefix;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;

const GIB: u64 = 1 << 30;
const GPU: &str = "[[gpu]]\nname = \"A\"\nmemory = \"16GiB\"\n\n";
const OTHER: &str = "[[gpu]]\nname = \"B\"\nmemory = \"8GiB\"\n";

#[derive(Debug, Deserialize)]
struct Answer {
    /// The first CUDA device.
    own: String,
    /// Free and total bytes of it.
    cuda: [u64; 2],
    /// Before cuInit.
    #[serde(default)]
    before: Vec<Gpu>,
    after: Vec<Gpu>,
}

#[derive(Debug, Deserialize)]
struct Gpu {
    uuid: String,
    /// Free, total and used bytes.
    v1: [u64; 3],
    v2: Option<[u64; 3]>,
}

fn ask(mut command: Command) -> Result<Answer> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    serde_json::from_slice(&output.stdout).with_context(|| said.into_owned())
}

fn start(gpus: &str) -> Result<(Prefix, Outside)> {
    let prefix = Prefix::from_env()?;
    let outside = Outside::start(&prefix, gpus, &[])?;
    Ok((prefix, outside))
}

/// A program under agarun that finds the software GPU's NVML as its real one.
fn client(prefix: &Prefix, outside: &Outside, program: &Path) -> Command {
    let mut command = outside.agarun(&[], program);
    command.env("ACB_NVML", prefix.test_program("sim/libnvidia-ml.so.1"));
    command
}

fn expect_own(answer: &Answer) -> Result<()> {
    let [free, total] = answer.cuda;
    let own = answer.after.iter().find(|gpu| gpu.uuid == answer.own).context("its own GPU")?;
    let right = [free, total, total - free];
    ensure!(own.v1 == right && own.v2.is_none_or(|v2| v2 == right), "{answer:?}");
    ensure!(total - free >= GIB, "{answer:?}");
    Ok(())
}

#[test]
fn through_ctypes_only_the_clients_own_gpu_is_as_cuda_has_it() -> Result<()> {
    let (prefix, outside) = start(&format!("{GPU}{OTHER}"))?;
    let mut command = client(&prefix, &outside, Path::new("python3"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/nvml_ctypes.py"));
    let answer = ask(command)?;
    expect_own(&answer)?;
    // Whoever is no client yet, and whichever GPU is none of its own: the driver's answer.
    let physical = [16 * GIB, 8 * GIB];
    for (before, total) in answer.before.iter().zip(physical) {
        ensure!(before.v1 == [total, total, 0], "{answer:?}");
    }
    let others: Vec<_> = answer.after.iter().filter(|gpu| gpu.uuid != answer.own).collect();
    ensure!(others.len() == 1 && physical.contains(&others[0].v1[1]), "{answer:?}");
    ensure!(others[0].v1[2] == 0, "{answer:?}");
    Ok(())
}

#[test]
fn through_the_link_too() -> Result<()> {
    let (prefix, outside) = start(GPU)?;
    expect_own(&ask(client(&prefix, &outside, &prefix.test_program("nvml_linked")))?)
}

/// Under the interposer's folder but without an assigner.
#[test]
fn without_an_assigner_the_driver_answers() -> Result<()> {
    let (prefix, outside) = start(GPU)?;
    let mut command = outside.plain(prefix.test_program("nvml_linked"));
    let folders = [prefix.library(), prefix.test_program("sim")];
    command.env("LD_LIBRARY_PATH", std::env::join_paths(folders)?);
    let answer = ask(command)?;
    let [free, total, used] = answer.after[0].v1;
    ensure!(total == 16 * GIB && free + used == total && used >= GIB, "{answer:?}");
    Ok(())
}

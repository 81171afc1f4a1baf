//! NVML inside a client tells the same of the client's GPUs as cuMemGetInfo, and of others what it tells everybody.
//!
//! Needs an installation with tests, named by ACB_PREFIX.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use acb_tests::bench::outside::{Answer as Asked, OnRequest, Outside};
use acb_tests::lab::{Prefix, wait_until};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;

const PATIENCE: Duration = Duration::from_secs(60);
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

/// What a program reads in `CUDA_VISIBLE_DEVICES` is a number, and NVML's number of its GPU; also of a part of what it is given.
#[test]
fn ordinals_are_cudas_and_nvmls() -> Result<()> {
    let prefix = Prefix::from_env()?;
    let third = "[[gpu]]\nname = \"C\"\nmemory = \"8GiB\"\n";
    let outside = Outside::start(&prefix, &format!("{GPU}{OTHER}{third}"), &[])?;
    // The first GPU is taken: the next client's is the second.
    let _neighbour = outside.on_request()?;
    let seen = |gpus: &str, choice: &str| -> Result<Seen> {
        let mut command = outside.agarun(&["--gpus", gpus], "python3");
        command.env("ACB_NVML", prefix.test_program("sim/libnvidia-ml.so.1"));
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/visible.py")).arg(choice);
        let output = command.stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {}\n{said}", output.status);
        serde_json::from_slice(&output.stdout).with_context(|| said.into_owned())
    };
    let all = seen("3", "")?;
    ensure!(all.given == [0, 1, 2] && all.after == [0, 1, 2] && all.cuda.len() == 3, "{all:?}");
    let uuids = &all.cuda;
    let one = seen("1", "")?;
    ensure!(one.given == [0] && one.after == [0] && one.child == "0", "{one:?}");
    ensure!(one.cuda.len() == 1 && one.cuda[0] != uuids[0], "{one:?} {all:?}");
    for (choice, at) in [("1", &[1][..]), ("2,0", &[2, 0]), (&uuids[1], &[1]), ("", &[0, 1, 2])] {
        let seen = seen("3", choice)?;
        ensure!(seen.given == [0, 1, 2] && seen.nvml.len() == 3, "{seen:?}");
        ensure!(seen.cuda.iter().eq(at.iter().map(|at| &uuids[*at])), "{choice}: {seen:?}");
        ensure!(choice.is_empty() || seen.child == choice, "{choice}: {seen:?}");
    }
    for seen in [&one, &all, &seen("2", "1")?] {
        // NVML's number of each of the program's devices is the entry that stands for it.
        let by_entry = seen.after.iter().map(|entry| &seen.nvml[*entry]);
        ensure!(by_entry.eq(&seen.cuda) && seen.indices == [0, 1, 2], "{seen:?}");
    }
    Ok(())
}

/// What `visible.py` sees.
#[derive(Debug, Deserialize)]
struct Seen {
    /// The entries of the list as the program was started, and after cuInit.
    given: Vec<usize>,
    #[serde(default)]
    after: Vec<usize>,
    /// UUIDs of the devices, and of what NVML numbers.
    cuda: Vec<String>,
    nvml: Vec<String>,
    /// What NVML says is the number of each of these.
    indices: Vec<usize>,
    /// The list in a program that it starts.
    child: String,
}

#[test]
fn through_the_link_too() -> Result<()> {
    let (prefix, outside) = start(GPU)?;
    expect_own(&ask(client(&prefix, &outside, &prefix.test_program("nvml_linked")))?)
}

/// A GPU of 64 MiB, of which two programs want the most.
const SMALL: &str = "memory = 67108864\ncontext_bytes = 1048576\n[[gpu]]\nname = \"A\"\n";
const OPTIONS: [&str; 4] = ["--context-mib", "2", "--chunk-mib", "2"];

struct Small {
    prefix: Prefix,
    outside: Outside,
}

impl Small {
    fn start() -> Result<Self> {
        let prefix = Prefix::from_env()?;
        let outside = Outside::start(&prefix, SMALL, &OPTIONS)?;
        Ok(Self { prefix, outside })
    }

    fn nvml(&self) -> String {
        self.prefix.test_program("sim/libnvidia-ml.so.1").display().to_string()
    }

    fn log(&self) -> String {
        self.outside.folder().join("client.log").display().to_string()
    }

    fn program(&self, environment: &[(&str, &str)]) -> Result<OnRequest> {
        let (nvml, log) = (self.nvml(), self.log());
        let mut all = vec![("ACB_NVML", nvml.as_str()), ("ACB_LOG_FILE", log.as_str())];
        all.extend_from_slice(environment);
        self.outside.on_request_with(&all)
    }

    /// With more than half of the GPU's memory.
    fn large(&self) -> Result<OnRequest> {
        let mut program = self.program(&[])?;
        for request in ["alloc 4 12M", "fill", "sync"] {
            program.ask(request)?;
        }
        Ok(program)
    }
}

/// NVML says of the memory, and of this process in all of its lists, what cuMemGetInfo says.
fn expect_agreement(program: &mut OnRequest, nvml: &str) -> Result<Asked> {
    let cuda = program.ask("info")?;
    let told = program.ask(nvml)?;
    let used = cuda.total - cuda.free;
    ensure!(
        [told.free, told.total, told.used] == [cuda.free, cuda.total, used],
        "{cuda:?} {told:?}"
    );
    for list in &told.processes {
        let own: Vec<_> = list.iter().filter(|(pid, _)| *pid == program.pid()).collect();
        ensure!(own == [&(program.pid(), used)], "{used}: {told:?}");
    }
    Ok(told)
}

#[test]
fn a_limit_is_all_there_is() -> Result<()> {
    let small = Small::start()?;
    let limit = 20 << 20;
    let mut program = small.program(&[("ACB_MEMORY", &limit.to_string())])?;
    program.ask("alloc 1 10M")?;
    let told = expect_agreement(&mut program, "nvml")?;
    ensure!(told.total <= limit && told.used > 10 << 20, "{told:?}");
    Ok(())
}

#[test]
fn memory_that_is_paged_out_is_the_programs_still() -> Result<()> {
    let small = Small::start()?;
    let mut program = small.large()?;
    let before = expect_agreement(&mut program, "nvml")?;
    let mut neighbour = small.large()?;
    let (own, other) = (program.pid(), neighbour.pid());
    small.outside.wait_for("memory is paged out", |status| {
        status.client(own).is_some_and(|client| client.memory().paged_out >= 24 << 20)
    })?;
    let told = expect_agreement(&mut program, "nvml")?;
    ensure!(told.used == before.used && told.used > 48 << 20, "{before:?} {told:?}");
    // The driver's own NVML knows what is on the GPU; of the neighbour both say that.
    let physical = program.ask(&format!("nvml {}", small.nvml()))?;
    ensure!(physical.total == 64 << 20 && physical.used > told.used, "{physical:?}");
    for (list, physical) in told.processes.iter().zip(&physical.processes) {
        let of = |list: &[(u32, u64)], pid| list.iter().find(|found| found.0 == pid).copied();
        ensure!(of(list, other).is_some() && of(list, other) == of(physical, other), "{told:?}");
        ensure!(of(physical, own).is_some_and(|(_, bytes)| bytes < 32 << 20), "{physical:?}");
    }
    expect_agreement(&mut neighbour, "nvml").map(drop)
}

#[test]
fn a_path_goes_past_it_and_is_told_unless_it_is_audited() -> Result<()> {
    let small = Small::start()?;
    let path = format!("nvml {}", small.nvml());
    let audit = small.prefix.library().join("libacb-audit.so").display().to_string();
    let mut audited = small.program(&[("LD_AUDIT", &audit)])?;
    audited.ask("alloc 1 10M")?;
    expect_agreement(&mut audited, &path)?;
    drop(audited);
    ensure!(!said(&small)?.contains("past slurm-acb"), "{}", said(&small)?);

    let mut program = small.program(&[])?;
    let told = program.ask(&path)?;
    ensure!(told.total == 64 << 20, "{told:?}");
    let words = [&format!("opened NVML as {}", small.nvml()), "agarun --audit"];
    wait_until("the program is told", PATIENCE, || {
        Ok(said(&small)?.lines().any(|line| words.iter().all(|word| line.contains(word))))
    })?;
    Ok(())
}

fn said(small: &Small) -> Result<String> {
    Ok(std::fs::read_to_string(small.log()).unwrap_or_default())
}

#[test]
fn by_dt_rpath_likewise() -> Result<()> {
    let (prefix, outside) = start(GPU)?;
    let program = prefix.test_program("nvml_rpath");
    let nvml = prefix.test_program("sim/libnvidia-ml.so.1");
    for audit in [false, true] {
        let log = outside.folder().join(format!("rpath-{audit}"));
        let options: &[&str] = if audit { &["--audit"] } else { &[] };
        let mut command = outside.agarun(options, &program);
        command.env("ACB_NVML", &nvml).env("ACB_LOG_FILE", &log);
        let answer = ask(command)?;
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        ensure!(said.contains(&format!("opened NVML as {}", nvml.display())) != audit, "{said}");
        match audit {
            true => expect_own(&answer)?,
            false => ensure!(answer.after[0].v1[1] == 16 * GIB, "{answer:?}"),
        }
    }
    Ok(())
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

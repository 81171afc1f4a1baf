//! Unmodified programs under the interposer and a user's own assigner, on software GPUs.
//!
//! Owns: that programs reach the interposer and that what they compute is right. Does not own: the ways of
//! loading the driver (load_paths), Slurm. Needs an installation with tests, named by ACB_PREFIX.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use acb_tests::bench::outside::Outside;
use acb_tests::bench::record::Round;
use acb_tests::lab::{Prefix, wait_until};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;

const ONE_GPU: &str = "[[gpu]]\nname = \"Simulated GPU\"\nmemory = \"16GiB\"\n";
const PATIENCE: Duration = Duration::from_secs(120);

/// What a program said and how it ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs a program to its end; its output goes through files, so that it never waits for us.
fn finish(mut command: Command) -> Result<Ended> {
    let folder = tempfile::tempdir()?;
    let (out, err) = (folder.path().join("out"), folder.path().join("err"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(File::create(&out)?)
        .stderr(File::create(&err)?)
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    let mut status = None;
    let ended = wait_until(&format!("{command:?} has ended"), PATIENCE, || {
        status = child.try_wait()?;
        Ok(status.is_some())
    });
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    let stderr = std::fs::read_to_string(err)?;
    ended.with_context(|| stderr.clone())?;
    let code = status.and_then(|status| status.code());
    Ok(Ended { code, stdout: std::fs::read_to_string(out)?, stderr })
}

/// The line that a program prints about the library that answered it.
#[derive(Debug, Deserialize)]
struct Loaded {
    way: String,
    interposed: bool,
    result: String,
}

fn loaded(ended: &Ended) -> Result<Vec<Loaded>> {
    let lines = ended.stdout.lines().map(serde_json::from_str).collect::<Result<Vec<_>, _>>();
    lines.with_context(|| format!("{ended:?}"))
}

/// Runs a program under `agarun`: it must reach the interposer and compute what is right.
fn expect_interposed(outside: &Outside, program: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = outside.agarun(&[], program);
    command.args(arguments);
    let ended = finish(command)?;
    let lines = loaded(&ended)?;
    ensure!(ended.code == Some(0) && lines.len() == 1, "{ended:?}\n{}", outside.log());
    ensure!(lines[0].interposed && lines[0].result == "ok", "{ended:?}");
    Ok(())
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads")
}

fn start() -> Result<(Prefix, Outside)> {
    let prefix = Prefix::from_env()?;
    let outside = Outside::start(&prefix, ONE_GPU, &[])?;
    Ok((prefix, outside))
}

#[test]
fn programs_that_fork_and_thread_reach_the_interposer() -> Result<()> {
    let (prefix, outside) = start()?;
    for way in ["entry", "fork-before", "threads"] {
        expect_interposed(&outside, &prefix.test_program("loads"), &[way]).context(way)?;
    }
    expect_interposed(&outside, &prefix.test_program("cudarc_safe"), &[])
}

#[test]
fn a_child_forked_after_cu_init_gets_an_error_and_the_parent_goes_on() -> Result<()> {
    let (prefix, outside) = start()?;
    let mut command = outside.agarun(&[], prefix.test_program("loads"));
    command.arg("fork-after");
    let ended = finish(command)?;
    let lines = loaded(&ended)?;
    ensure!(ended.code == Some(0) && lines.len() == 2, "{ended:?}");
    let (child, parent) = (&lines[0], &lines[1]);
    ensure!(child.way == "fork-after, child" && child.result.contains("failed"), "{ended:?}");
    ensure!(parent.way == "fork-after" && parent.interposed && parent.result == "ok", "{ended:?}");
    Ok(())
}

#[test]
fn python_through_nvidias_bindings() -> Result<()> {
    let (_, outside) = start()?;
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    let made = Command::new(sources().join("python-env")).arg(environment).output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let python = PathBuf::from(String::from_utf8(made.stdout)?.trim());
    let script = sources().join("cuda_bindings.py");
    expect_interposed(&outside, &python, &[&script.to_string_lossy()])
}

#[test]
fn clients_take_turns_and_all_data_is_right() -> Result<()> {
    // A pause inside a GPU phase, on a crowded machine, is not to end the lease.
    let prefix = Prefix::from_env()?;
    let outside = Outside::start(&prefix, ONE_GPU, &["--idle-us", "100000"])?;
    let run = |name: &str| {
        let mut command = outside.agarun(&[], prefix.test_program("phases"));
        command.args(["--rounds", "6", "--cpu-ms", "30", "--gpu-ms", "20", "--cv", "0.5"]);
        command.args(["--seed", &name.len().to_string(), "--name", name]);
        finish(command)
    };
    let names = ["a", "bb", "ccc"];
    let ended: Vec<Ended> = std::thread::scope(|scope| {
        let clients: Vec<_> = names.iter().map(|name| scope.spawn(|| run(name))).collect();
        clients.into_iter().map(|client| client.join().expect("no panic")).collect::<Result<_>>()
    })?;
    let mut phases = vec![];
    for ended in &ended {
        let rounds: Vec<Round> = ended.stdout.lines().filter_map(Round::parse).collect();
        ensure!(ended.code == Some(0) && rounds.len() == 6, "{ended:?}");
        ensure!(rounds.iter().all(|round| round.ok), "{ended:?}");
        phases.extend(rounds.iter().map(|round| (round.gpu_got_ns, round.gpu_done_ns)));
    }
    phases.sort_unstable();
    for pair in phases.windows(2) {
        ensure!(pair[0].1 <= pair[1].0, "two GPU phases at a time: {pair:?}");
    }
    Ok(())
}

#[test]
fn a_client_sees_as_many_gpus_as_it_asked_for() -> Result<()> {
    let prefix = Prefix::from_env()?;
    let outside = Outside::start(&prefix, &ONE_GPU.repeat(4), &[])?;
    let mut command = outside.agarun(&["--gpus", "2"], prefix.test_program("phases"));
    command.args(["--rounds", "2", "--gpus", "2", "--cpu-ms", "1"]);
    let ended = finish(command)?;
    ensure!(ended.code == Some(0), "{ended:?}");
    let mut command = outside.agarun(&[], prefix.test_program("phases"));
    command.args(["--rounds", "1", "--gpus", "2"]);
    let ended = finish(command)?;
    ensure!(ended.code == Some(1) && ended.stderr.contains("shows 1"), "{ended:?}");
    Ok(())
}

#[test]
fn a_failing_kernel_is_reported_by_its_call_and_others_go_on() -> Result<()> {
    let prefix = Prefix::from_env()?;
    let fault = "[[fault]]\nkind = \"launch_fails\"\nkernel = \"acb_step\"\nenv = \"BROKEN=1\"\n";
    let outside = Outside::start(&prefix, &format!("{ONE_GPU}\n{fault}"), &[])?;
    let phases = || {
        let mut command = outside.agarun(&[], prefix.test_program("phases"));
        command.args(["--rounds", "3", "--cpu-ms", "5", "--gpu-ms", "5"]);
        command
    };
    let mut broken = phases();
    broken.env("BROKEN", "1");
    let ended = finish(broken)?;
    ensure!(ended.code == Some(1), "{ended:?}");
    ensure!(ended.stderr.contains("failed: CUDA_ERROR_"), "{ended:?}");
    let ended = finish(phases())?;
    ensure!(ended.code == Some(0), "{ended:?}");
    Ok(())
}

#[test]
fn a_holder_that_is_killed_leaves_the_gpu_to_the_next() -> Result<()> {
    let (_, outside) = start()?;
    let mut next = outside.on_request()?;
    let mut holder = outside.on_request()?;
    holder.request("spin 600000000000")?;
    holder.answer()?;
    next.request("nop")?;
    holder.kill()?;
    next.answer()?;
    // The kernel died with its program, so the GPU is free and not only granted.
    next.request("sync")?;
    next.answer()?;
    Ok(())
}

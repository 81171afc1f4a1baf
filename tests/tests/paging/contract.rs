//! What programs may expect of a driver holds under the interposer, too, while their memory is swapped: every contract case, and
//! between any two of its calls a rival that needs the memory has its turn.
//!
//! Owns: which cases differ under the interposer, and why. Does not own: the cases (tests/gpu/contract).

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use acb_tests::bench::outside::OnRequest;
use acb_tests::lab::wait_until;
use anyhow::{Context, Result, bail, ensure};

use crate::stage::{Stage, is_right};

/// Cases need up to 256 MiB.
const GPU: u64 = 448 << 20;
/// All but the contexts of rival and case, in chunks: nothing else fits beside it.
const ALL: u64 = GPU - (8 << 20);
/// What leaves room for memory that stays on the GPU.
const LESS: u64 = GPU - (264 << 20);
/// How long the rival's turn is waited for at its first call, and at the later ones: while a kernel of the case runs it has none, and some
/// cases look at what has not happened yet.
const TURN: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(1)];
/// The same for cases whose memory must have been moved: for as long as it takes, which in a capture is for ever.
const MOVE: Duration = Duration::from_secs(10);
/// Turns of the rival in one case: a case that makes thousands of calls is swapped often enough.
const TURNS: usize = 60;
/// How long a case may take, swaps and a busy machine included.
const CASE: Duration = Duration::from_secs(180);

/// Cases that want another answer than programs under the interposer get, and what they say then.
const DIFFERENT: [(&str, &str); 3] = [
    // Memory is mapped, which no capture forbids.
    ("capturing::other_threads_may_not_allocate_meanwhile", "refused: got Ok(())"),
    ("capturing::a_capture_of_one_thread_leaves_the_others_alone", "in this one: got Ok(())"),
    // What a graph allocates counts as long as it can be made to run again.
    ("graph_memory::it_counts_until_it_is_trimmed", "on the GPU: got false"),
];

/// Cases that look at what has not happened yet, which the rival would keep them until, or at how long it took, in which its turn would
/// be. They run beside it, without its turns.
const IMPATIENT: [&str; 8] = [
    "order::copies_are_seen_when_they_are_done",
    "order::streams_know_whether_they_are_done",
    "order::functions_of_the_program_run_in_order",
    "order::events_measure_time",
    "order::other_streams_do_not_wait",
    "order::the_default_stream_waits_for_blocking_ones",
    "graphs::a_graph_runs_in_the_order_of_its_stream",
    "graphs::instances_record_events",
];

/// Cases in which memory must have been moved: streams, events, rows and layers, graphs, mapped memory.
const MOVED: [&str; 7] = [
    "order::a_stream_keeps_its_order",
    "order::a_full_queue_loses_nothing",
    "order::other_streams_wait_for_events",
    "memory::copies_between_contexts_have_rows_and_layers",
    "graphs::a_thousand_runs_lose_nothing",
    "graphs::graphs_lie_in_graphs",
    "virtual_memory::exported_memory_is_the_same_memory",
];

/// Cases with memory that stays on the GPU: it waits as long as the rival could not be there in full.
const STAYING: [&str; 4] = [
    "arrays::",
    "graph_memory::",
    "pools::only_plain_memory_is_shared",
    "pools::another_process_opens_it",
];

/// Another program that has its turn whenever somebody says so.
struct Rival {
    go: Sender<()>,
    done: Receiver<()>,
    /// Its turn has been asked for and is not over.
    at_it: bool,
    turns: usize,
    /// How long its turn is waited for at its first call.
    patience: Duration,
}

impl Rival {
    /// A turn that the case before left under way is over: the next case's first call gets a whole one.
    fn rest(&mut self) -> Result<()> {
        if std::mem::take(&mut self.at_it) {
            self.done.recv_timeout(CASE).context("the rival's turn does not end")?;
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<()> {
        let patience = if self.at_it { TURN[1] } else { self.patience };
        if !self.at_it {
            if self.turns >= TURNS {
                return Ok(());
            }
            self.turns += 1;
            self.at_it = true;
            self.go.send(()).context("the rival has ended")?;
        }
        match self.done.recv_timeout(patience) {
            Ok(()) => self.at_it = false,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("the rival has ended"),
        }
        Ok(())
    }
}

/// What came of a case.
#[derive(Debug)]
struct Verdict {
    pid: u32,
    /// What was not as expected.
    why: Option<String>,
}

/// Runs cases one after the other, beside a rival with so much memory.
fn run(stage: &Stage, bytes: u64, cases: &[&str]) -> Result<BTreeMap<String, Verdict>> {
    let socket = stage.outside.folder().join("turns");
    let listener = UnixListener::bind(&socket)?;
    let mut program = stage.program("rival")?;
    program.ask(&format!("alloc {} 2M", bytes >> 21))?;
    program.ask("fill")?;
    program.ask("sync")?;
    let (go, asked) = mpsc::channel();
    let (finished, done) = mpsc::channel();
    let rival = Mutex::new(Rival { go, done, at_it: false, turns: 0, patience: TURN[0] });
    let over = AtomicBool::new(false);
    let mut verdicts = BTreeMap::new();
    thread::scope(|scope| -> Result<()> {
        let playing = scope.spawn(move || -> Result<OnRequest> {
            for () in asked {
                program.ask("nop")?;
                program.ask("sync")?;
                // At the end nobody waits for it any more.
                let _ = finished.send(());
            }
            Ok(program)
        });
        let (rival, over) = (&rival, &over);
        scope.spawn(move || {
            for stream in listener.incoming().map_while(std::io::Result::ok) {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                // A case may consist of several processes.
                scope.spawn(move || offered(stream, rival));
            }
        });
        let ran = cases.iter().try_for_each(|case| {
            {
                let mut rival = rival.lock().unwrap_or_else(PoisonError::into_inner);
                rival.rest()?;
                rival.turns = 0;
                rival.patience = if MOVED.contains(case) { MOVE } else { TURN[0] };
            }
            verdicts.insert((*case).to_owned(), one(stage, case, &socket)?);
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        drop(UnixStream::connect(&socket)?);
        // Nobody who could want a turn any more: that ends the rival.
        drop(std::mem::replace(
            &mut rival.lock().unwrap_or_else(PoisonError::into_inner).go,
            mpsc::channel().0,
        ));
        let rival = playing.join().map_err(|_| anyhow::anyhow!("the rival panicked"))?;
        ran.and(is_right(&mut rival?))
    })?;
    std::fs::remove_file(&socket)?;
    Ok(verdicts)
}

/// Gives the rival its turn whenever a process of a case offers one.
fn offered(mut stream: UnixStream, rival: &Mutex<Rival>) {
    let mut word = [0];
    while stream.read_exact(&mut word).is_ok() {
        let turn = rival.lock().unwrap_or_else(PoisonError::into_inner).turn();
        if turn.is_err() || stream.write_all(b"!").is_err() {
            break;
        }
    }
}

fn one(stage: &Stage, case: &str, turns: &Path) -> Result<Verdict> {
    let mut command = stage.outside.client(stage.prefix.test_program("contract"));
    command.args(["--driver", "libcuda.so.1", "--only", case]);
    if !IMPATIENT.contains(&case) {
        command.env("CONTRACT_TURNS", turns);
    }
    command.env("ACB_LOG_FILE", stage.outside.folder().join("contract.log"));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let pid = child.id();
    if wait_until("the case is over", CASE, || Ok(child.try_wait()?.is_some())).is_err() {
        // Its verdict is the signal.
        child.kill()?;
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let why = (!output.status.success()).then(|| format!("{}: {said}", output.status));
    Ok(Verdict { pid, why })
}

/// Times that the assigner asked for memory of each process.
fn asked_back(stage: &Stage) -> Result<BTreeMap<u32, usize>> {
    let mut pids = BTreeMap::new();
    let mut asked: BTreeMap<u32, usize> = BTreeMap::new();
    for line in stage.outside.log().lines() {
        let client = |head: &str| head.rsplit(' ').next().unwrap_or_default().to_owned();
        if let Some((head, tail)) = line.split_once(" joined: ") {
            let pid = tail.rsplit("(pid ").next().unwrap_or_default().trim_end_matches(')');
            pids.insert(client(head), pid.parse().with_context(|| line.to_owned())?);
        } else if let Some((head, _)) = line.split_once(" is to move ")
            && let Some(pid) = pids.get(&client(head))
        {
            *asked.entry(*pid).or_default() += 1;
        }
    }
    Ok(asked)
}

#[test]
fn every_case_holds_while_its_memory_is_swapped() -> Result<()> {
    let eager = ["--quantum-ms", "1", "--idle-us", "100", "--switch-share", "0.9", "--verbose"];
    let stage = Stage::on(1, GPU, "", &eager)?;
    let listed = include_str!("../../gpu/contract/cases.txt");
    let stays = |case: &str| STAYING.iter().any(|group| case.starts_with(group));
    let (staying, moved): (Vec<&str>, Vec<&str>) = listed.lines().partition(|case| stays(case));
    let mut verdicts = run(&stage, ALL, &moved)?;
    verdicts.extend(run(&stage, LESS, &staying)?);
    let asked = asked_back(&stage)?;
    let mut wrong = Vec::new();
    for (case, verdict) in &verdicts {
        let different = DIFFERENT.iter().find(|(name, _)| name == case);
        let as_expected = match (&verdict.why, different) {
            (None, None) => true,
            (Some(why), Some((_, said))) => why.contains(said),
            _ => false,
        };
        let swapped = asked.get(&verdict.pid).copied().unwrap_or(0);
        if !as_expected || (MOVED.contains(&case.as_str()) && swapped == 0) {
            wrong.push(format!("{case}: {:?}, memory asked back {swapped} times", verdict.why));
        }
    }
    ensure!(verdicts.len() == listed.lines().count() && wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// Also where GPUs do not reach each other: then the interposer names contexts that the program did not.
#[test]
fn memory_is_copied_between_gpus_as_plain_memory_is() -> Result<()> {
    for peers in [true, false] {
        let stage = Stage::on(2, GPU, &format!("peers = {peers}"), &[])?;
        for case in [
            "plain_memory_is_copied_without_access",
            "mapped_memory_is_copied_between_contexts_alone",
            "mapped_memory_that_is_open_is_copied",
        ] {
            let mut command = stage.outside.client(stage.prefix.test_program("contract"));
            command.args(["--driver", "libcuda.so.1", "--only", &format!("peers::{case}")]);
            command.env("ACB_GPUS", "2").env("CUDA_VISIBLE_DEVICES", "0,1");
            let output = command.stdin(Stdio::null()).output()?;
            let said = String::from_utf8_lossy(&output.stdout);
            ensure!(output.status.success(), "peers = {peers}: {case}: {said}");
        }
    }
    Ok(())
}

//! Priorities between real programs on the software GPU: a hog that never pauses, and requests that go before it (benchmark B7).
//!
//! Owns: that the hog is interrupted between two kernels for them and for nobody else, goes on, and that its data is right. Nobody
//! has to give a GPU back at the end of a quantum, for an hour, or because it is idle, for a minute: what is given back was asked
//! back for a priority.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use acb_tests::bench::outside::{OnRequest, Outside};
use acb_tests::lab::{Prefix, wait_until};
use anyhow::{Context, Result, anyhow, ensure};

const GPU: &str =
    "memory = \"256MiB\"\ncontext_bytes = 1048576\n[[gpu]]\nname = \"Simulated GPU\"\n";
const OPTIONS: [&str; 8] =
    ["--quantum-ms", "3600000", "--idle-us", "60000000", "--context-mib", "2", "--chunk-mib", "2"];
const PATIENCE: Duration = Duration::from_secs(180);
/// Kernels of the hog that are many.
const MANY: usize = 20;

/// A program that computes without a pause, in kernels of 5 ms.
struct Hog {
    kernels: Arc<AtomicUsize>,
    stops: Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<(OnRequest, Kernels)>>,
}

/// For each kernel when its launch was asked for, and when it was known to be done.
type Kernels = Vec<(u64, u64)>;

impl Hog {
    fn start(mut program: OnRequest) -> Hog {
        let (kernels, stops) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, end) = (kernels.clone(), stops.clone());
        let thread = thread::spawn(move || {
            let mut done = Vec::new();
            while !end.load(Ordering::Relaxed) {
                program.ask("step")?;
                let wanted = program.ask("spin 5000000")?.wanted_ns;
                done.push((wanted, program.ask("sync")?.got_ns));
                counter.fetch_add(1, Ordering::Relaxed);
            }
            Ok((program, done))
        });
        Hog { kernels, stops, thread }
    }

    /// Waits for many more kernels.
    fn goes_on(&self) -> Result<()> {
        let begin = self.kernels.load(Ordering::Relaxed);
        wait_until("the hog goes on", PATIENCE, || {
            Ok(self.kernels.load(Ordering::Relaxed) >= begin + MANY || self.thread.is_finished())
        })?;
        ensure!(!self.thread.is_finished(), "the hog has ended");
        Ok(())
    }

    /// The program, and its kernels.
    fn stop(self) -> Result<(OnRequest, Kernels)> {
        self.stops.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the hog's thread has panicked"))?
    }
}

#[test]
fn requests_of_high_priority_interrupt_a_hog_and_nobody_else_does() -> Result<()> {
    let outside = Arc::new(Outside::start(&Prefix::from_env()?, GPU, &OPTIONS)?);
    let mut program = outside.on_request()?;
    program.ask("alloc 4 4M")?;
    program.ask("fill")?;
    let hog = Hog::start(program);
    hog.goes_on()?;

    // One of the same priority waits for as long as there is a hog.
    let (there, equal) = (outside.clone(), Arc::new(AtomicBool::new(false)));
    let started = equal.clone();
    let peer = thread::spawn(move || {
        let program = there.on_request()?;
        started.store(true, Ordering::Relaxed);
        anyhow::Ok(program)
    });
    outside.wait_for("it waits", |status| {
        status.clients.iter().any(|client| client.state == "waiting")
    })?;

    let mut served = Vec::new();
    for _ in 0..5 {
        // It gets the GPU in cuInit's wake already, or would wait until the hog is stopped.
        let mut request = outside.on_request_with(&[("ACB_PRIORITY", "100")])?;
        request.ask("alloc 1 4M")?;
        request.ask("fill")?;
        request.ask("spin 20000000")?;
        served.push(request.ask("sync")?);
        request.ask("compare")?;
        drop(request);
        // Who gave way has its place before who came later.
        hog.goes_on()?;
        ensure!(!equal.load(Ordering::Relaxed), "{}", outside.log());
    }

    let (mut program, kernels) = hog.stop()?;
    // A request has the GPU to itself: no kernel of the hog was launched and done between its launch and its end. (The hog may have
    // waited for a processor until then to be told of the end of the last one before.)
    for request in &served {
        let during = request.wanted_ns..request.got_ns;
        let within = |(wanted, done): &(u64, u64)| during.contains(wanted) && during.contains(done);
        ensure!(!kernels.iter().any(within), "{request:?}");
    }
    let compared = program.ask("compare")?;
    ensure!(compared.checked >= 16 << 20, "{compared:?}");
    drop(program);
    peer.join().map_err(|_| anyhow!("the other's thread has panicked"))?.context("the other")?;
    Ok(())
}

//! CPU and GPU phases through cudarc's safe API: streams, events, its asynchronous allocator, pinned
//! memory, and a graph that it captured.
//!
//! Owns: a client that nobody here wrote the driver access of, in rounds, so that it can be swapped between them;
//! and the record of `phases`, one line of JSON a round. Does not own: the kernels.
#![allow(unsafe_code)] // cudarc's launch is unsafe: it cannot check a kernel's arguments.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use acb_workloads::quantities::{bytes, milliseconds};
use acb_workloads::reference::{self, Steps};
use acb_workloads::rounds::{self, Moments, Round};
use acb_workloads::{clock, kernels};
use clap::Parser;
use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaGraph, CudaSlice, CudaStream, DriverError, LaunchConfig,
    PinnedHostSlice, PushKernelArg,
};
use cudarc::nvrtc::Ptx;

const SALT: u64 = 7;

/// CPU and GPU phases through cudarc; checks its data in every round
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Rounds to run
    #[arg(long, default_value_t = 5)]
    rounds: u64,
    /// Run further rounds until this file is there
    #[arg(long, value_name = "FILE")]
    until: Option<PathBuf>,
    /// Length of a CPU phase
    #[arg(long, value_name = "MS", default_value = "20", value_parser = milliseconds)]
    cpu_ms: Duration,
    /// Length of the kernels of a GPU phase, together
    #[arg(long, value_name = "MS", default_value = "10", value_parser = milliseconds)]
    gpu_ms: Duration,
    /// Device memory of each of the two arrays; K, M, G for powers of 1024
    #[arg(long, value_name = "BYTES", default_value = "1M", value_parser = bytes)]
    bytes: u64,
    /// Seed of the data
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Name in the record
    #[arg(long, default_value = "cudarc")]
    name: String,
}

fn main() -> ExitCode {
    let options = Options::parse();
    rounds::end("cudarc_rounds", &options.name, run(&options))
}

fn run(options: &Options) -> anyhow::Result<bool> {
    let words = (options.bytes / 8) as usize;
    let mut client = Client::new(words, options)?;
    let mut kept = vec![0; words];
    reference::fill(&mut kept, options.seed);
    let steps = Steps::default().then(SALT);
    let goes_on = |round: u64| {
        round < options.rounds || options.until.as_ref().is_some_and(|file| !file.exists())
    };
    for round in (0..).take_while(|round| goes_on(*round)) {
        let cpu_start = clock::monotonic();
        std::thread::sleep(options.cpu_ms);
        let mut fresh = vec![0; words];
        reference::fill(&mut fresh, options.seed.wrapping_add(1000 * (round + 1)));
        let wanted = clock::monotonic();
        client.first()?;
        let got = clock::monotonic();
        let (fresh_back, kept_back) = client.gpu_phase(&fresh)?;
        let done = clock::monotonic();
        steps.apply(&mut fresh);
        steps.apply(&mut kept);
        let ok = fresh_back == fresh && kept_back == kept;
        let at = Moments { cpu_start, wanted, got, done };
        rounds::print(&Round::new(&options.name, round, at, ok))?;
        if !ok {
            return Ok(false);
        }
    }
    Ok(true)
}

struct Client {
    first: Arc<CudaStream>,
    second: Arc<CudaStream>,
    step: CudaFunction,
    kept: CudaSlice<u64>,
    fresh: CudaSlice<u64>,
    /// What a phase does with the words that stay, captured.
    graph: CudaGraph,
    pinned: PinnedHostSlice<u64>,
    length: u64,
}

impl Client {
    fn new(words: usize, options: &Options) -> anyhow::Result<Client> {
        let context = CudaContext::new(0)?;
        let (first, second) = (context.new_stream()?, context.new_stream()?);
        let step = context.load_module(Ptx::from_src(kernels::PTX))?.load_function("acb_step")?;
        let mut start = vec![0; words];
        reference::fill(&mut start, options.seed);
        let mut kept = second.clone_htod(&start)?;
        let fresh = first.alloc_zeros(words)?;
        // SAFETY: written in each round before it is read.
        let pinned = unsafe { context.alloc_pinned(words) }?;
        context.synchronize()?;
        let length = options.gpu_ms.as_nanos() as u64 / 2;
        // cudarc's own events between the streams would be waited for in the graph too.
        // SAFETY: each array is used in one stream only until they are waited for.
        unsafe { context.disable_event_tracking() };
        second.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        launch(&second, &step, &mut kept, length)?;
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = second.end_capture(flags)?;
        let graph = graph.ok_or_else(|| anyhow::anyhow!("the capture gave no graph"))?;
        Ok(Client { first, second, step, kept, fresh, graph, pinned, length })
    }

    fn first(&mut self) -> Result<(), DriverError> {
        self.first.memset_zeros(&mut self.fresh)?;
        self.first.synchronize()
    }

    fn gpu_phase(&mut self, words: &[u64]) -> anyhow::Result<(Vec<u64>, Vec<u64>)> {
        let timed = Some(CUevent_flags::CU_EVENT_DEFAULT);
        let start = self.first.record_event(timed)?;
        self.pinned.as_mut_slice()?.copy_from_slice(words);
        self.first.memcpy_htod(&self.pinned, &mut self.fresh)?;
        launch(&self.first, &self.step, &mut self.fresh, self.length)?;
        self.graph.launch()?;
        // The first stream fetches what the second one has made, behind its own work.
        self.first.join(&self.second)?;
        let kept = self.first.clone_dtoh(&self.kept)?;
        self.first.memcpy_dtoh(&self.fresh, &mut self.pinned)?;
        let end = self.first.record_event(timed)?;
        end.synchronize()?;
        anyhow::ensure!(start.elapsed_ms(&end)? > 0.0, "events out of order");
        Ok((self.pinned.as_slice()?.to_vec(), kept))
    }
}

fn launch(
    stream: &Arc<CudaStream>,
    step: &CudaFunction,
    memory: &mut CudaSlice<u64>,
    length: u64,
) -> Result<(), DriverError> {
    let (words, salt) = (memory.len() as u64, SALT);
    let shape = LaunchConfig { grid_dim: (32, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the arguments are those of the kernel, and the memory has that many words.
    let launched = unsafe {
        stream.launch_builder(step).arg(memory).arg(&words).arg(&salt).arg(&length).launch(shape)
    };
    launched.map(drop)
}

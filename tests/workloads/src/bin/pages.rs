//! A program that has much memory on its GPUs, alternates CPU phases and GPU phases, and knows every byte.
//!
//! Owns: the workload of the figures and tests of paged memory, and its record: one line of JSON a round on
//! stdout, as `phases` prints it, with what was checked. Does not own: the memory and the checks
//! ([`acb_workloads::memory`]), the lengths of phases ([`acb_workloads::timing`]).
//!
//! In a GPU phase the changing part of the memory takes a step, the GPU computes for a while, and sums up
//! all of its memory, piece by piece; the sums are what the CPU compares. Memory that is lost, stale or
//! another's is seen in the same phase. At the end every byte is fetched and compared.

use std::process::ExitCode;
use std::time::Duration;

use acb_workloads::clock;
use acb_workloads::driver::queues::Queues;
use acb_workloads::driver::{Context, DevicePtr, Driver, DriverError, Kernel, Stream};
use acb_workloads::kernels;
use acb_workloads::memory::{Check, Fetched, Memory, RegionId, Replay, Shape, Way};
use acb_workloads::quantities::bytes;
use acb_workloads::reference::splitmix64;
use acb_workloads::rounds::{self, EXIT_CODES, Moments, Pace, Round};
use clap::Parser;
use serde::Serialize;

/// Uses much memory in GPU phases, checks every byte, and prints one line of JSON a round
#[derive(Debug, Parser)]
#[command(
    name = "pages",
    version,
    after_help = EXIT_CODES
)]
struct Options {
    #[command(flatten)]
    pace: Pace,
    /// Memory on each GPU that takes steps; K, M, G for powers of 1024
    #[arg(long, value_name = "BYTES", default_value = "64M", value_parser = bytes)]
    bytes: u64,
    /// Blocks that it is allocated in
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    blocks: u64,
    /// How much of each piece of 2 MiB of it changes in a step; all of it is checked
    #[arg(long, value_name = "BYTES", default_value = "2M", value_parser = bytes)]
    changing: u64,
    /// More memory, which is filled once and only read
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = bytes)]
    still: u64,
    /// More memory, in small blocks, which takes steps
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = bytes)]
    small: u64,
    /// Size of a small block
    #[arg(long, value_name = "BYTES", default_value = "20000", value_parser = bytes)]
    small_block: u64,
    /// More memory that is allocated in each GPU phase, and freed after it
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = bytes)]
    grow: u64,
    /// How memory is allocated: plain, async (in stream order) or mapped (cuMemCreate, cuMemMap)
    #[arg(long, default_value = "plain")]
    way: Way,
    /// Capture step and sums once, and replay them in each GPU phase
    #[arg(long, conflicts_with_all = ["streams", "check_every"])]
    graph: bool,
    /// Streams to spread steps and sums over
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    streams: u32,
    /// Kernels that the computation consists of
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    kernels: u32,
    /// Check all memory by sums in every Nth round
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    check_every: u64,
    /// Compare all memory byte by byte in every Nth round; 0: only at the end
    #[arg(long, value_name = "N", default_value_t = 0)]
    compare_every: u64,
}

/// The record of one round.
#[derive(Debug, Serialize)]
struct Checked<'a> {
    #[serde(flatten)]
    round: Round<'a>,
    /// Bytes that were checked, and how many of them were wrong.
    checked: u64,
    wrong: u64,
}

/// The record of the comparison at the end.
#[derive(Debug, Serialize)]
struct End<'a> {
    name: &'a str,
    pid: u32,
    /// Bytes that were compared, and how many of them were wrong.
    end_checked: u64,
    end_wrong: u64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let name = options.pace.name();
    rounds::end("pages", &name, run(&options, &name))
}

/// Runs all rounds; false at the first wrong byte.
fn run(options: &Options, name: &str) -> anyhow::Result<bool> {
    let pace = &options.pace;
    let (seed, mut times) = (pace.seed(), pace.times());
    let driver = pace.driver()?;
    let mut gpus = (0..pace.gpus)
        .map(|ordinal| Gpu::new(&driver, ordinal, options, splitmix64(seed ^ u64::from(ordinal))))
        .collect::<Result<Vec<_>, _>>()?;

    std::thread::sleep(pace.start_offset);
    let begin = clock::monotonic();
    let mut cpu_start = begin;
    for round in 0.. {
        if pace.is_over(round, cpu_start - begin) {
            break;
        }
        for gpu in &mut gpus {
            gpu.shrink()?;
        }
        let length = times.draw(pace.cpu_ms);
        std::thread::sleep((cpu_start + length).saturating_sub(clock::monotonic()));
        let phase = Phase {
            length: times.draw(pace.gpu_ms),
            salt: splitmix64(seed ^ round << 20),
            checked: round % options.check_every == 0,
            compared: options.compare_every > 0 && round % options.compare_every == 0,
        };

        let wanted = clock::monotonic();
        for gpu in &gpus {
            gpu.first_operation(phase.salt)?;
        }
        let got = clock::monotonic();
        for gpu in &mut gpus {
            gpu.submit(options, phase)?;
        }
        let mut found = Check::default();
        for gpu in &mut gpus {
            found.add(gpu.complete(phase)?);
        }
        let done = clock::monotonic();

        for gpu in &gpus {
            found.add(gpu.check()?);
        }
        let at = Moments { cpu_start, wanted, got, done };
        rounds::print(&Checked {
            round: Round::new(name, round, at, found.wrong == 0),
            checked: found.bytes,
            wrong: found.wrong,
        })?;
        if !is_right(name, &format!("round {round}"), &found) {
            return Ok(false);
        }
        cpu_start = done;
    }
    let mut found = Check::default();
    for gpu in gpus {
        found.add(gpu.close()?);
    }
    rounds::print(&End {
        name,
        pid: std::process::id(),
        end_checked: found.bytes,
        end_wrong: found.wrong,
    })?;
    Ok(is_right(name, "the end", &found))
}

fn is_right(name: &str, when: &str, found: &Check) -> bool {
    if let Some(first) = &found.first {
        eprintln!(
            "pages: {name}: {when}: {} bytes of {} are wrong: {first}",
            found.wrong, found.bytes
        );
    }
    found.wrong == 0
}

/// What is done in a GPU phase.
#[derive(Clone, Copy)]
struct Phase {
    length: Duration,
    salt: u64,
    checked: bool,
    compared: bool,
}

/// One GPU's part of the workload.
struct Gpu<'a> {
    driver: &'a Driver,
    ordinal: u32,
    context: Context,
    spin: Kernel,
    /// A word that is written first in each phase.
    ticket: DevicePtr,
    streams: Vec<Stream>,
    kept: Memory<'a>,
    replay: Option<Replay<'a>>,
    /// What is allocated in each phase.
    grown: Memory<'a>,
    fetched: Vec<Fetched>,
}

impl<'a> Gpu<'a> {
    fn new(
        driver: &'a Driver,
        ordinal: u32,
        options: &Options,
        seed: u64,
    ) -> Result<Self, DriverError> {
        let context = driver.retain_primary(ordinal)?;
        let module = driver.load_kernels()?;
        let spin = driver.kernel(&module, kernels::SPIN)?;
        let mut kept = Memory::new(driver, context, seed)?;
        let blocks = |bytes: u64| Shape {
            way: options.way,
            blocks: options.blocks,
            block_bytes: bytes / options.blocks / 8 * 8,
            changing: options.changing,
        };
        let small = Shape {
            way: Way::Plain,
            blocks: options.small / options.small_block.max(8),
            block_bytes: options.small_block / 8 * 8,
            changing: options.changing,
        };
        let shapes = [blocks(options.bytes), Shape { changing: 0, ..blocks(options.still) }, small];
        for shape in shapes {
            if shape.blocks > 0 && shape.block_bytes > 0 {
                let region = kept.allocate(shape)?;
                kept.fill(region)?;
            }
        }
        let replay = match options.graph {
            true => Some(kept.capture(splitmix64(seed))?),
            false => None,
        };
        let streams = match options.streams {
            1 => vec![Stream::DEFAULT],
            count => {
                let queues = Queues::of(driver)?;
                (0..count).map(|_| queues.create()).collect::<Result<_, _>>()?
            }
        };
        let ticket = driver.alloc(8)?;
        let grown = Memory::new(driver, context, splitmix64(seed))?;
        driver.synchronize()?;
        Ok(Self {
            driver,
            ordinal,
            context,
            spin,
            ticket,
            streams,
            kept,
            replay,
            grown,
            fetched: vec![],
        })
    }

    /// One word to the GPU: when it returns, the GPU is ours.
    fn first_operation(&self, word: u64) -> Result<(), DriverError> {
        self.driver.set_current(&self.context)?;
        self.driver.copy_in(self.ticket, &[word])
    }

    /// Launches everything; does not wait for it.
    fn submit(&mut self, options: &Options, phase: Phase) -> Result<(), DriverError> {
        self.driver.set_current(&self.context)?;
        if options.grow > 0 {
            let shape = Shape {
                way: options.way,
                blocks: 1,
                block_bytes: options.grow / 8 * 8,
                changing: options.changing,
            };
            let region = self.grown.allocate(shape)?;
            self.grown.fill(region)?;
            self.grown.step(phase.salt, &[Stream::DEFAULT])?;
            self.grown.sum(&[Stream::DEFAULT])?;
        }
        let each = phase.length.as_nanos() as u64 / u64::from(options.kernels);
        match &self.replay {
            Some(replay) => self.kept.replay(replay)?,
            None => self.kept.step(phase.salt, &self.streams)?,
        }
        for _ in 0..options.kernels {
            self.driver.launch_in(self.streams[0], &self.spin, 1, 1, &[each])?;
        }
        if self.replay.is_none() && phase.checked {
            self.kept.sum(&self.streams)?;
        }
        Ok(())
    }

    /// Waits for everything and fetches the sums, or all bytes.
    fn complete(&mut self, phase: Phase) -> Result<Check, DriverError> {
        self.driver.set_current(&self.context)?;
        self.driver.synchronize()?;
        self.fetched.clear();
        if self.replay.is_some() || phase.checked {
            for region in self.kept.regions() {
                self.fetched.push(self.kept.fetch(region)?);
            }
        }
        let mut found = Check::default();
        for region in self.grown.regions() {
            found.add(self.grown.check(&self.grown.fetch(region)?)?);
        }
        if phase.compared {
            found.add(self.kept.compare()?);
        }
        Ok(found)
    }

    /// Looks at the sums.
    fn check(&self) -> Result<Check, DriverError> {
        let mut found = Check::default();
        for fetched in &self.fetched {
            found.add(self.kept.check(fetched)?);
        }
        Ok(found)
    }

    /// Frees what the last phase allocated.
    fn shrink(&mut self) -> Result<(), DriverError> {
        let grown: Vec<RegionId> = self.grown.regions();
        if !grown.is_empty() {
            self.driver.set_current(&self.context)?;
        }
        grown.into_iter().try_for_each(|region| self.grown.free(region))
    }

    /// Compares every byte, and frees everything.
    fn close(mut self) -> Result<Check, DriverError> {
        self.driver.set_current(&self.context)?;
        let mut found = self.kept.compare()?;
        if let Some(first) = &mut found.first {
            *first = format!("GPU {}: {first}", self.ordinal);
        }
        if let Some(replay) = self.replay {
            replay.close()?;
        }
        if self.streams.len() > 1 {
            let queues = Queues::of(self.driver)?;
            self.streams.iter().try_for_each(|stream| queues.destroy(*stream))?;
        }
        self.kept.free_all()?;
        self.grown.free_all()?;
        self.driver.free(self.ticket)?;
        self.driver.release_primary(&self.context)?;
        Ok(found)
    }
}

//! A program that alternates CPU phases and GPU phases and checks its data in every round.
//!
//! Owns: the workload of the benchmarks, and its record: one line of JSON a round on stdout. Does not
//! own: the arithmetic ([`acb_workloads::reference`]), the lengths of phases ([`acb_workloads::timing`]).
//!
//! A CPU phase lasts from the end of a GPU phase until the GPU is wanted, checking and printing
//! included. A GPU phase copies data in, runs kernels, and copies data out. Half of the data comes
//! from the host in each round; the other half stays on the GPU, where a lost or mixed-up byte
//! would be seen in the next round.

use std::process::ExitCode;
use std::time::Duration;

use acb_workloads::clock;
use acb_workloads::driver::{Context, DevicePtr, Driver, DriverError, Kernel};
use acb_workloads::kernels;
use acb_workloads::quantities::bytes;
use acb_workloads::reference::{self, Steps, splitmix64};
use acb_workloads::rounds::{self, EXIT_CODES, Moments, Pace, Round};
use clap::Parser;

/// Alternates CPU phases and GPU phases, checks its data, and prints one line of JSON a round
#[derive(Debug, Parser)]
#[command(
    name = "phases",
    version,
    after_help = EXIT_CODES
)]
struct Options {
    #[command(flatten)]
    pace: Pace,
    /// Device memory to allocate on each GPU; K, M, G for powers of 1024
    #[arg(long, value_name = "BYTES", default_value = "8M", value_parser = bytes)]
    bytes: u64,
    /// How much of it to use in each round
    #[arg(long, value_name = "BYTES", default_value = "1M", value_parser = bytes)]
    touch: u64,
    /// Kernels in a GPU phase
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    kernels: u32,
    /// Compute in the CPU phases, for that much CPU time, instead of sleeping
    #[arg(long)]
    burn: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let name = options.pace.name();
    rounds::end("phases", &name, run(&options, &name))
}

/// Runs all rounds; false at the first wrong word.
fn run(options: &Options, name: &str) -> anyhow::Result<bool> {
    anyhow::ensure!(
        options.touch >= 16 && options.touch <= options.bytes,
        "--touch {} is not between 16 and --bytes {}",
        options.touch,
        options.bytes
    );
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
        cpu_phase(cpu_start, times.draw(pace.cpu_ms), options.burn);
        let length = times.draw(pace.gpu_ms);
        let salts: Vec<u64> =
            (0..options.kernels).map(|k| splitmix64(seed ^ (round << 20) ^ u64::from(k))).collect();

        let wanted = clock::monotonic();
        for gpu in &gpus {
            gpu.first_operation(&driver)?;
        }
        let got = clock::monotonic();
        for gpu in &mut gpus {
            gpu.submit(&driver, &salts, length, round)?;
        }
        for gpu in &mut gpus {
            gpu.fetch(&driver)?;
        }
        let done = clock::monotonic();

        let ok = gpus.iter_mut().all(|gpu| gpu.check(&salts));
        let at = Moments { cpu_start, wanted, got, done };
        rounds::print(&Round::new(name, round, at, ok))?;
        if !ok {
            eprintln!("phases: {name}: round {round}: {}", wrong(&gpus, &salts));
            return Ok(false);
        }
        cpu_start = done;
    }
    for gpu in gpus {
        gpu.close(&driver)?;
    }
    Ok(true)
}

/// The CPU phase that began at `begin`.
fn cpu_phase(begin: Duration, length: Duration, burn: bool) {
    if burn {
        // CPU time, not wall-clock: on a crowded machine the phase takes longer, as real work would.
        let start = clock::thread_cpu();
        let mut x = start.as_nanos() as u64;
        while clock::thread_cpu() - start < length {
            for _ in 0..10_000 {
                x = std::hint::black_box(splitmix64(x));
            }
        }
    } else {
        std::thread::sleep((begin + length).saturating_sub(clock::monotonic()));
    }
}

/// One GPU's part of the workload.
struct Gpu {
    ordinal: u32,
    context: Context,
    step: Kernel,
    memory: DevicePtr,
    /// Where the half is that comes from the host: at the start of the allocation.
    fresh_at: DevicePtr,
    /// Where the half is that stays: at the end of the allocation.
    kept_at: DevicePtr,
    /// What the host sends in this round, and what must come back.
    fresh: Vec<u64>,
    /// What must be on the GPU.
    kept: Vec<u64>,
    fetched_fresh: Vec<u64>,
    fetched_kept: Vec<u64>,
    seed: u64,
}

impl Gpu {
    fn new(
        driver: &Driver,
        ordinal: u32,
        options: &Options,
        seed: u64,
    ) -> Result<Self, DriverError> {
        let context = driver.retain_primary(ordinal)?;
        let module = driver.load_kernels()?;
        let fill = driver.kernel(&module, kernels::FILL)?;
        let step = driver.kernel(&module, kernels::STEP)?;
        let words = (options.touch / 16) as usize;
        let memory = driver.alloc(options.bytes as usize)?;
        let kept_at = memory + (options.bytes - words as u64 * 8) / 8 * 8;
        let mut kept = vec![0; words];
        reference::fill(&mut kept, seed);
        let (blocks, threads) = shape(words);
        driver.launch(&fill, blocks, threads, &[kept_at, words as u64, seed])?;
        driver.synchronize()?;
        Ok(Self {
            ordinal,
            context,
            step,
            memory,
            fresh_at: memory,
            kept_at,
            fresh: vec![0; words],
            kept,
            fetched_fresh: vec![0; words],
            fetched_kept: vec![0; words],
            seed,
        })
    }

    /// One word to the GPU: when it returns, the GPU is ours.
    fn first_operation(&self, driver: &Driver) -> Result<(), DriverError> {
        driver.set_current(&self.context)?;
        driver.copy_in(self.fresh_at, &[self.seed])
    }

    /// Copies in and launches; does not wait for the kernels.
    fn submit(
        &mut self,
        driver: &Driver,
        salts: &[u64],
        length: Duration,
        round: u64,
    ) -> Result<(), DriverError> {
        driver.set_current(&self.context)?;
        reference::fill(&mut self.fresh, self.seed.wrapping_add(round));
        driver.copy_in(self.fresh_at, &self.fresh)?;
        let words = self.fresh.len() as u64;
        let (blocks, threads) = shape(self.fresh.len());
        let each = length.as_nanos() as u64 / salts.len() as u64;
        for salt in salts {
            driver.launch(&self.step, blocks, threads, &[self.fresh_at, words, *salt, 0])?;
            driver.launch(&self.step, blocks, threads, &[self.kept_at, words, *salt, each])?;
        }
        Ok(())
    }

    /// Waits for the kernels and copies out.
    fn fetch(&mut self, driver: &Driver) -> Result<(), DriverError> {
        driver.set_current(&self.context)?;
        driver.copy_out(&mut self.fetched_fresh, self.fresh_at)?;
        driver.copy_out(&mut self.fetched_kept, self.kept_at)?;
        driver.synchronize()
    }

    /// Whether every word is right; what must be there is brought up to date.
    fn check(&mut self, salts: &[u64]) -> bool {
        let steps = salts.iter().fold(Steps::default(), |steps, salt| steps.then(*salt));
        steps.apply(&mut self.fresh);
        steps.apply(&mut self.kept);
        self.fetched_fresh == self.fresh && self.fetched_kept == self.kept
    }

    fn close(self, driver: &Driver) -> Result<(), DriverError> {
        driver.set_current(&self.context)?;
        driver.free(self.memory)?;
        driver.release_primary(&self.context)
    }
}

/// A launch that a GPU takes in one wave, so that a kernel's length is what was asked for.
fn shape(words: usize) -> (u32, u32) {
    (words.div_ceil(256).clamp(1, 64) as u32, 256)
}

/// Where the data is wrong, for people.
fn wrong(gpus: &[Gpu], salts: &[u64]) -> String {
    for gpu in gpus {
        for (half, fetched, right) in
            [("copied", &gpu.fetched_fresh, &gpu.fresh), ("kept", &gpu.fetched_kept, &gpu.kept)]
        {
            let mut places = fetched
                .iter()
                .zip(right)
                .enumerate()
                .filter(|(_, (fetched, right))| fetched != right);
            if let Some((at, (fetched, right))) = places.next() {
                let more = places.count();
                return format!(
                    "wrong data on GPU {}, {half} half, after {} kernels: word {at} is {fetched:#018x} instead of {right:#018x} ({more} more words are wrong)",
                    gpu.ordinal,
                    salts.len(),
                );
            }
        }
    }
    "wrong data".into()
}

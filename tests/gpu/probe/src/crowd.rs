//! A GPU of which only a part is left for memory that can be moved, so that programs with 95 % of that each are swapped on
//! machines whose GPU is larger than the memory of the host, and in a short time.
//!
//! A program with plain memory (`ACB_PAGER=off`) holds the rest. All of them are under one assigner of their own.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::assigner::Assigner;
use crate::bench::{Bench, GIB, MIB, Workbench};
use crate::child;
use crate::driver::device::Gpu;
use crate::groups::memory::Holder;
use crate::host;
use crate::pace::Pace;
use crate::reference::splitmix64;

/// What the pager takes in a context, and the drivers' own granularity.
const BESIDE: u64 = 8 * MIB;
/// Part of what is left that each program has.
const SHARE: f64 = 0.95;

/// How large the GPU is, as a process of its own has seen it, and how fast its plain copies are.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Sizes {
    /// Bytes free without any context.
    pub(crate) free: u64,
    /// What a context with kernels takes.
    pub(crate) context: u64,
    /// Pinned copies, GB/s.
    pub(crate) out: f64,
    pub(crate) inward: f64,
    /// The same of each direction while both are busy.
    pub(crate) both: f64,
    /// GB/s at which fresh memory of the host is pinned and copied to.
    pub(crate) host: f64,
}

impl Sizes {
    /// Asked of a process that ends, for a context of this one would take memory that no assigner knows of.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut printed = String::new();
        let limit = Duration::from_secs(20);
        let ending = child::run(command.arg("size-up"), limit, |line| printed = line.to_owned())?;
        anyhow::ensure!(ending.is_success(), "measuring the GPU: {}", ending.why());
        serde_json::from_str(&printed).with_context(|| format!("it printed '{printed}'"))
    }

    fn context_of_client(&self) -> u64 {
        (self.context + BESIDE).next_multiple_of(MIB)
    }

    /// Bytes that programs with so many contexts can fight for, by the GPU and by the host: all of it may have to be there, once for
    /// each of two programs.
    pub(crate) fn most(&self, contexts: u64) -> u64 {
        let device = self.free.saturating_sub(contexts * self.context_of_client()) / 10 * 9;
        device.min((host::available_memory() as f64 * 0.3) as u64)
    }

    /// What lines of a table can be planned by.
    pub(crate) fn pace(&self, simulated: bool) -> Pace {
        let pace = Pace::new(self.both.min(self.slower()), self.host);
        if simulated { pace.without_trying() } else { pace }
    }

    /// For people.
    pub(crate) fn told(&self) -> String {
        format!(
            "pinned copies: {:.1} GB/s out, {:.1} in, {:.1} each way at once; fresh host memory {:.1} GB/s",
            self.out, self.inward, self.both, self.host
        )
    }

    /// GB/s of the slower direction.
    pub(crate) fn slower(&self) -> f64 {
        self.out.min(self.inward)
    }
}

/// `probe size-up`.
pub(crate) fn size_up() -> anyhow::Result<()> {
    let gpu = Gpu::open()?;
    let before = gpu.memory()?.free;
    let mut holder = Holder::start()?;
    holder.next_line()?;
    holder.go()?;
    holder.next_line()?;
    let context = before.saturating_sub(gpu.memory()?.free);
    holder.go()?;
    holder.end()?;
    let bytes = (before / 16).min(256 * MIB) / MIB * MIB;
    let streams = [gpu.stream()?, gpu.stream()?];
    let device = [gpu.allocate(bytes)?, gpu.allocate(bytes)?];
    let begin = Instant::now();
    let host = [gpu.pinned(bytes)?, gpu.pinned(bytes)?];
    let copy = |direction: usize| match direction {
        0 => streams[0].copy_out(&host[0], 0, device[0].at, bytes),
        _ => streams[1].copy_in(device[1].at, &host[1], 0, bytes),
    };
    // Seconds until both streams are done, with these directions busy.
    let seconds = |directions: &[usize]| -> anyhow::Result<f64> {
        let begin = Instant::now();
        directions.iter().try_for_each(|direction| copy(*direction))?;
        streams.iter().try_for_each(|stream| stream.synchronize())?;
        Ok(begin.elapsed().as_secs_f64())
    };
    seconds(&[0, 1])?;
    let first = begin.elapsed().as_secs_f64();
    let rate = |directions: &[usize]| -> anyhow::Result<f64> {
        let times = (0..4).map(|_| seconds(directions)).collect::<Result<Vec<_>, _>>()?;
        Ok(bytes as f64 / times.into_iter().fold(f64::INFINITY, f64::min) / 1e9)
    };
    let sizes = Sizes {
        free: before + context,
        context,
        out: rate(&[0])?,
        inward: rate(&[1])?,
        both: rate(&[0, 1])?,
        host: 2.0 * bytes as f64 / first / 1e9,
    };
    println!("{}", serde_json::to_string(&sizes)?);
    Ok(())
}

/// An assigner, and who fills its GPU.
pub(crate) struct Crowd {
    pub(crate) assigner: Assigner,
    /// Bytes that the programs fight for.
    pub(crate) rest: u64,
    /// Bytes for each program that is to be swapped.
    pub(crate) each: u64,
    _filler: Option<Program>,
}

impl Crowd {
    /// Leaves about `rest` bytes for the memory of programs with so many contexts, which is moved in chunks of `chunk`.
    pub(crate) fn gather(
        bench: &Bench,
        sizes: Sizes,
        rest: u64,
        contexts: u64,
        chunk: u64,
    ) -> anyhow::Result<Self> {
        let context = sizes.context_of_client();
        let rest = rest.min(sizes.most(contexts)) / (2 * MIB) * (2 * MIB);
        anyhow::ensure!(rest >= 16 * MIB, "GPU or host have too little memory for this");
        let options = [
            ("--chunk-mib", (chunk / MIB).to_string()),
            ("--context-mib", (context / MIB).to_string()),
            ("--host-budget", format!("{}M", 3 * rest / MIB)),
        ];
        let assigner = Assigner::start_with(bench, &options)?;
        let headroom = assigner.headroom()?;
        // One more context is the filler's own.
        let filled = sizes.free.saturating_sub(headroom + rest + (contexts + 1) * context);
        let filler = match filled >= 64 * MIB {
            true => {
                let mut command = assigner.run(std::env::current_exe()?);
                command.env("ACB_PAGER", "off").args(["hold-plain", &filled.to_string()]);
                let mut program = Program::start(command)?;
                program.expect("ready").context("the program that fills the GPU")?;
                Some(program)
            }
            false => None,
        };
        let each = (rest as f64 * SHARE) as u64 / (2 * MIB) * (2 * MIB);
        Ok(Self { assigner, rest, each, _filler: filler })
    }

    /// A program with so much memory of its own content, which does what it is told.
    pub(crate) fn partner(&self, bytes: u64, seed: u64) -> anyhow::Result<Program> {
        let mut command = self.assigner.run(std::env::current_exe()?);
        command.args(["swapped", &bytes.to_string(), &seed.to_string()]);
        Program::swapped(command).context("a program that is to be swapped")
    }
}

/// A process that is told what to do line by line, and answers each with one.
pub(crate) struct Program {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// The program's own, which is not that of the launcher before it.
    pid: u32,
}

impl Program {
    /// `probe swapped`, when its memory is there.
    pub(crate) fn swapped(command: Command) -> anyhow::Result<Self> {
        let mut program = Self::start(command)?;
        let line = program.line()?;
        let pid = line.strip_prefix("ready ").and_then(|pid| pid.parse().ok());
        program.pid = pid.with_context(|| format!("it said '{line}'"))?;
        Ok(program)
    }

    fn start(mut command: Command) -> anyhow::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("its stdout is piped"));
        let pid = child.id();
        Ok(Self { child, input, output, pid })
    }

    fn expect(&mut self, word: &str) -> anyhow::Result<()> {
        let line = self.line()?;
        anyhow::ensure!(line == word, "it said '{line}'");
        Ok(())
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        anyhow::ensure!(!line.is_empty(), "it ended: {}", self.child.wait()?);
        Ok(line.trim().to_owned())
    }

    fn tell(&mut self, word: &str) -> anyhow::Result<String> {
        let input = self.input.as_mut().context("it has been told to end")?;
        writeln!(input, "{word}")?;
        self.line()
    }

    /// Seconds of a turn in which all of its memory changes.
    pub(crate) fn step(&mut self) -> anyhow::Result<f64> {
        Ok(self.tell("step")?.parse()?)
    }

    /// Seconds of a turn in which nothing changes.
    pub(crate) fn touch(&mut self) -> anyhow::Result<f64> {
        Ok(self.tell("touch")?.parse()?)
    }

    /// Whether its memory is what it has made of it.
    pub(crate) fn is_right(&mut self) -> anyhow::Result<bool> {
        Ok(self.tell("check")? == "right")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // The end of its input is its end; one that hangs is ended.
        drop(self.input.take());
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `probe hold-plain BYTES`: memory that nothing is done with, until the end of input.
pub(crate) fn hold_plain(bytes: u64) -> anyhow::Result<()> {
    let gpu = Gpu::open()?;
    // In pieces, for no driver promises one of this size.
    let mut held = Vec::new();
    let mut left = bytes;
    while left > 0 {
        let piece = left.min(4 * GIB);
        held.push(gpu.allocate(piece)?);
        left -= piece;
    }
    say("ready")?;
    std::io::stdin().lines().last();
    Ok(())
}

const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
const SALT: u64 = 1_442_695_040_888_963_407;

/// `probe swapped BYTES SEED`: takes turns with memory that it knows every word of.
pub(crate) fn swapped(bytes: u64, seed: u64) -> anyhow::Result<()> {
    let work = Workbench::open()?;
    let memory = work.gpu.allocate(bytes)?;
    let words = bytes / 8;
    let start = seed << 40;
    work.fill(memory.at, bytes, start)?;
    let (step, nop) = (work.kernel("acb_step")?, work.kernel("acb_nop")?);
    let (mut factor, mut summand) = (1u64, 0u64);
    say(&format!("ready {}", std::process::id()))?;
    for line in std::io::stdin().lines() {
        let begin = Instant::now();
        match line?.as_str() {
            "step" => {
                step.launch(&work.stream, work.wide(), &[memory.at, words, SALT, 0])?;
                work.stream.synchronize()?;
                factor = factor.wrapping_mul(MULTIPLIER);
                summand = summand.wrapping_mul(MULTIPLIER).wrapping_add(SALT);
                say(&begin.elapsed().as_secs_f64().to_string())?;
            }
            "touch" => {
                nop.launch(&work.stream, crate::driver::device::Grid(1, 1, 32), &[])?;
                work.stream.synchronize()?;
                say(&begin.elapsed().as_secs_f64().to_string())?;
            }
            "check" => {
                let expected = |i: u64| {
                    splitmix64(start.wrapping_add(i)).wrapping_mul(factor).wrapping_add(summand)
                };
                let (right, _) = work.compare(memory.at, words, expected)?;
                say(if right { "right" } else { "WRONG" })?;
            }
            other => anyhow::bail!("there is no turn '{other}'"),
        }
    }
    Ok(())
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

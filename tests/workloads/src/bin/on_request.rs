//! A client that uses the GPU when it is told to, and says when it got it.
//!
//! Owns: that conversation, for benchmarks and tests that must know who wants the GPU when. Does not own: the
//! benchmarks, the memory and how it is checked ([`acb_workloads::memory`]).
//!
//! Each line on stdin is a request, answered by a line of JSON; one such line, before any request, says that
//! the program is ready. A call that fails is an answer too. The requests:
//!
//! | request | does |
//! | --- | --- |
//! | `nop`, `spin NS` | launches a kernel of no length, of NS nanoseconds, without waiting for it |
//! | `sync` | waits for everything |
//! | `alloc BLOCKS BYTES [plain, async or mapped]` | allocates blocks; regions are counted from 0 |
//! | `fill` | fills all regions that are not filled |
//! | `step` | lets all memory change |
//! | `check`, `compare` | lets the GPU sum up all memory, or fetches it, and checks it |
//! | `capture`, `replay` | captures a step and sums of all regions; does them |
//! | `free REGION` | frees one |
//! | `hold KIND BYTES`, `drop KIND` | allocates a piece of memory that stays on the GPU (managed, array, graph, module, packed, heap), frees it |
//! | `held` | checks all such pieces |
//! | `wander` | lets all memory change on the default streams of threads that end, on streams that wait for events, with functions between |
//! | `told` | how many of these functions have run, and how many of them out of their order |
//! | `offer FILE BYTES` | allocates memory and hands it to other processes by a handle of the old kind |
//! | `open FILE BYTES`, `close` | opens such memory, closes it |
//! | `write WORD`, `look WORD` | writes that into the memory that is offered or open, looks for it there |
//! | `info`, `nvml [PATH]` | asks how much memory there is: the driver, or NVML, opened by its name or by a path |
//! | `fork` | calls the driver in a forked child, which must fail |
//! | `endless`, `end` | launches a kernel that does not end; ends the last of them |
//! | `reset` | resets the device, which ends the context with all memory in it, and begins anew |
//! | `exit`, `exit in thread` | ends in the midst of it, by exit on this thread or on another |
//! | `exec` | becomes another program, which does nothing for long |

use std::io::{self, BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, Command, ExitCode};
use std::thread;

use acb_workloads::driver::nvml::Told;
use acb_workloads::driver::pinned::Pinned;
use acb_workloads::driver::queues::{self, Queues};
use acb_workloads::driver::shared::{Handle, Sharing};
use acb_workloads::driver::staying::{Kind, Staying};
use acb_workloads::driver::{
    Context as CudaContext, DevicePtr, Driver, DriverError, Kernel, Stream,
};
use acb_workloads::memory::{Check, Memory, RegionId, Replay, Shape, Way};
use acb_workloads::quantities::bytes;
use acb_workloads::{clock, fork, kernels};
use anyhow::{Context, bail};
use serde::Serialize;

/// What memory takes its steps with.
const SALT: u64 = 0x5eed;
const STREAM: &[Stream] = &[Stream::DEFAULT];
/// So long that what comes after it is not done when the GPU is wanted.
const SPIN_NS: u64 = 20_000_000;

/// The answer; times are CLOCK_MONOTONIC in nanoseconds.
#[derive(Serialize)]
struct Answer {
    pid: u32,
    /// Before the call.
    wanted_ns: u64,
    /// After it.
    got_ns: u64,
    #[serde(flatten)]
    outcome: Outcome,
}

/// What came of a request.
#[derive(Default, Serialize)]
struct Outcome {
    /// A call failed.
    error: Option<String>,
    /// Bytes that were checked, and those of them that are wrong.
    checked: u64,
    wrong: u64,
    /// Where.
    first: Option<String>,
    /// Memory, as the driver or NVML says.
    free: u64,
    total: u64,
    /// Memory in use, and who uses how much of it, as all forms of NVML's list say.
    used: u64,
    processes: [Vec<(u32, u64)>; 3],
}

impl From<Check> for Outcome {
    fn from(check: Check) -> Self {
        let Check { bytes, wrong, first } = check;
        Self { checked: bytes, wrong, first, ..Self::default() }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("on_request: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let driver = Driver::open("libcuda.so.1")?;
    driver.init()?;
    let mut client = Client::new(&driver, 0)?;
    driver.launch(&client.nop, 1, 1, &[])?;
    driver.synchronize()?;
    answer(|| Ok(Outcome::default()))?;
    for line in io::stdin().lock().lines() {
        let request = Request::parse(&line?)?;
        answer(|| client.serve(request))?;
    }
    client.memory.free_all()?;
    driver.release_primary(&client.context)?;
    Ok(())
}

enum Request {
    Nop,
    Spin(u64),
    Sync,
    Allocate(Shape),
    Fill,
    Step,
    Check,
    Compare,
    Capture,
    Replay,
    Free(RegionId),
    Hold(Kind, usize),
    Drop(Kind),
    Held,
    Info,
    Nvml(String),
    Wander,
    Told,
    Offer(PathBuf, usize),
    Open(PathBuf, usize),
    Close,
    Write(u64),
    Look(u64),
    Fork,
    Endless,
    End,
    Reset,
    Exit,
    ExitInThread,
    Exec,
}

impl Request {
    fn parse(line: &str) -> anyhow::Result<Self> {
        let kind_of = |text: &str| text.parse::<Kind>().map_err(anyhow::Error::msg);
        let number = |text: &str| bytes(text).map_err(anyhow::Error::msg).context(line.to_owned());
        Ok(match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["nop"] => Self::Nop,
            ["spin", ns] => Self::Spin(number(ns)?),
            ["sync"] => Self::Sync,
            ["alloc", blocks, size, ref way @ ..] => {
                let way = match way {
                    [] => Way::Plain,
                    [way] => way.parse().map_err(anyhow::Error::msg).context(line.to_owned())?,
                    _ => bail!("'{line}': alloc BLOCKS BYTES [WAY]"),
                };
                let block_bytes = number(size)?;
                let changing = block_bytes;
                Self::Allocate(Shape { way, blocks: number(blocks)?, block_bytes, changing })
            }
            ["fill"] => Self::Fill,
            ["step"] => Self::Step,
            ["check"] => Self::Check,
            ["compare"] => Self::Compare,
            ["capture"] => Self::Capture,
            ["replay"] => Self::Replay,
            ["free", region] => Self::Free(RegionId(number(region)? as usize)),
            ["hold", kind, size] => Self::Hold(kind_of(kind)?, number(size)? as usize),
            ["drop", kind] => Self::Drop(kind_of(kind)?),
            ["held"] => Self::Held,
            ["info"] => Self::Info,
            ["nvml"] => Self::Nvml("libnvidia-ml.so.1".into()),
            ["nvml", path] => Self::Nvml(path.into()),
            ["wander"] => Self::Wander,
            ["told"] => Self::Told,
            ["offer", file, size] => Self::Offer(file.into(), number(size)? as usize),
            ["open", file, size] => Self::Open(file.into(), number(size)? as usize),
            ["close"] => Self::Close,
            ["write", word] => Self::Write(number(word)?),
            ["look", word] => Self::Look(number(word)?),
            ["fork"] => Self::Fork,
            ["endless"] => Self::Endless,
            ["end"] => Self::End,
            ["reset"] => Self::Reset,
            ["exit"] => Self::Exit,
            ["exit", "in", "thread"] => Self::ExitInThread,
            ["exec"] => Self::Exec,
            _ => bail!("'{line}' is no request"),
        })
    }
}

struct Client<'a> {
    driver: &'a Driver,
    context: CudaContext,
    /// Resets so far; each time the memory has other content.
    resets: u64,
    nop: Kernel,
    spin: Kernel,
    endless: Kernel,
    /// What the last endless kernel waits for.
    flag: Option<Pinned<'a>>,
    memory: Memory<'a>,
    unfilled: Vec<RegionId>,
    replay: Option<Replay<'a>>,
    staying: Staying<'a>,
    /// Functions that were put into streams.
    functions: u64,
    /// Memory that other processes have too, and how much it is.
    shared: (DevicePtr, usize),
}

impl<'a> Client<'a> {
    fn new(driver: &'a Driver, resets: u64) -> Result<Self, DriverError> {
        let context = driver.retain_primary(0)?;
        let module = driver.load_kernels()?;
        let seed = u64::from(std::process::id()) | resets << 32;
        Ok(Client {
            driver,
            context,
            resets,
            nop: driver.kernel(&module, kernels::NOP)?,
            spin: driver.kernel(&module, kernels::SPIN)?,
            endless: driver.kernel(&module, kernels::ENDLESS)?,
            flag: None,
            memory: Memory::new(driver, context, seed)?,
            unfilled: vec![],
            replay: None,
            staying: Staying::of(driver)?,
            functions: queues::told().0,
            shared: (0, 0),
        })
    }

    fn serve(&mut self, request: Request) -> Result<Outcome, DriverError> {
        match request {
            Request::Nop => self.driver.launch(&self.nop, 1, 1, &[])?,
            Request::Spin(ns) => self.driver.launch(&self.spin, 1, 1, &[ns])?,
            Request::Sync => self.driver.synchronize()?,
            Request::Allocate(shape) => {
                let region = self.memory.allocate(shape)?;
                self.unfilled.push(region);
            }
            Request::Fill => {
                for region in self.unfilled.drain(..) {
                    self.memory.fill(region)?;
                }
            }
            Request::Step => self.memory.step(SALT, STREAM)?,
            Request::Check => {
                self.memory.sum(STREAM)?;
                return Ok(self.fetch_and_check()?.into());
            }
            Request::Compare => {
                self.driver.synchronize()?;
                return Ok(self.memory.compare()?.into());
            }
            Request::Capture => self.replay = Some(self.memory.capture(SALT)?),
            Request::Replay => {
                if let Some(replay) = &self.replay {
                    self.memory.replay(replay)?;
                }
                return Ok(self.fetch_and_check()?.into());
            }
            Request::Free(region) => {
                self.unfilled.retain(|unfilled| *unfilled != region);
                self.memory.free(region)?;
            }
            Request::Hold(kind, bytes) => self.staying.hold(kind, bytes)?,
            Request::Drop(kind) => self.staying.release(kind)?,
            Request::Held => {
                let (checked, wrong) = self.staying.check()?;
                let first = (wrong > 0).then(|| "in memory that stays".to_owned());
                return Ok(Outcome { checked, wrong, first, ..Outcome::default() });
            }
            Request::Info => {
                let (free, total) = self.driver.memory_info()?;
                return Ok(Outcome { free, total, ..Outcome::default() });
            }
            Request::Nvml(name) => {
                let Told { total, free, used, processes } = self.driver.ask_nvml(&name)?;
                return Ok(Outcome { free, total, used, processes, ..Outcome::default() });
            }
            Request::Wander => self.wander()?,
            Request::Told => {
                let (checked, wrong) = queues::told();
                let first = (wrong > 0).then(|| "a function out of its order".to_owned());
                return Ok(Outcome { checked, wrong, first, ..Outcome::default() });
            }
            Request::Offer(file, bytes) => {
                self.shared = (self.driver.alloc(bytes)?, bytes);
                let handle = Sharing::of(self.driver)?.handle(self.shared.0)?;
                std::fs::write(&file, handle.bytes()).expect("the folder is writable");
            }
            Request::Open(file, bytes) => {
                let handle = std::fs::read(&file).expect("it was handed over");
                self.shared = (Sharing::of(self.driver)?.open(Handle::of(&handle))?, bytes);
            }
            Request::Close => Sharing::of(self.driver)?.close(self.shared.0)?,
            Request::Write(word) => {
                self.driver.copy_in(self.shared.0, &pattern(word, self.shared.1))?;
            }
            Request::Look(word) => {
                let right = pattern(word, self.shared.1);
                let mut found = vec![0; right.len()];
                self.driver.copy_out(&mut found, self.shared.0)?;
                let wrong = found.iter().zip(&right).filter(|(found, right)| found != right);
                let (checked, wrong) = (self.shared.1 as u64, 8 * wrong.count() as u64);
                let first = (wrong > 0).then(|| "in memory of several processes".to_owned());
                return Ok(Outcome { checked, wrong, first, ..Outcome::default() });
            }
            Request::Fork => {
                let driver = self.driver;
                let code = fork::run_in_child(|| i32::from(driver.memory_info().is_ok()));
                let error = match code {
                    Ok(0) => None,
                    other => Some(format!("the driver works in a forked child: {other:?}")),
                };
                return Ok(Outcome { error, ..Outcome::default() });
            }
            Request::Endless => {
                let flag = Pinned::alloc(self.driver, 8)?;
                flag.write(0);
                self.driver.launch(&self.endless, 1, 1, &[flag.address()])?;
                self.flag = Some(flag);
            }
            // No call of the driver's: it may come when no call passes.
            Request::End => self.flag.iter().for_each(|flag| flag.write(1)),
            Request::Reset => {
                self.driver.reset_primary(&self.context)?;
                *self = Client::new(self.driver, self.resets + 1)?;
            }
            Request::Exit => process::exit(0),
            Request::ExitInThread => {
                let exit = thread::spawn(|| process::exit(0));
                // It does not come back.
                let _ = exit.join();
            }
            Request::Exec => {
                let error = Command::new("sleep").arg("1000").exec().to_string();
                return Ok(Outcome { error: Some(error), ..Outcome::default() });
            }
        }
        Ok(Outcome::default())
    }

    /// Each step waits for the one before, wherever that is; nothing is waited for here.
    fn wander(&mut self) -> Result<(), DriverError> {
        let queues = Queues::of(self.driver)?;
        let (driver, context, memory) = (self.driver, self.context, &mut self.memory);
        let (spin, turns) = (&self.spin, &mut self.functions);
        for _ in 0..2 {
            thread::scope(|scope| {
                let steps = || {
                    driver.set_current(&context)?;
                    queues.join(Stream::LEGACY, Stream::PER_THREAD)?;
                    driver.launch_in(Stream::PER_THREAD, spin, 1, 1, &[SPIN_NS])?;
                    memory.step(SALT, &[Stream::PER_THREAD])?;
                    queues.tell(Stream::PER_THREAD, *turns)?;
                    queues.join(Stream::PER_THREAD, Stream::LEGACY)
                };
                scope.spawn(steps).join().expect("no panic")
            })?;
            *turns += 1;
        }
        let own = queues.create()?;
        queues.join(Stream::LEGACY, own)?;
        driver.launch_in(own, spin, 1, 1, &[SPIN_NS])?;
        memory.step(SALT, &[own])?;
        queues.tell(own, *turns)?;
        *turns += 1;
        queues.join(own, Stream::LEGACY)?;
        queues.destroy(own)?;
        memory.step(SALT, &[Stream::LEGACY])
    }

    fn fetch_and_check(&self) -> Result<Check, DriverError> {
        self.driver.synchronize()?;
        let mut found = Check::default();
        for region in self.memory.regions() {
            found.add(self.memory.check(&self.memory.fetch(region)?)?);
        }
        Ok(found)
    }
}

/// Words that are all different.
fn pattern(word: u64, bytes: usize) -> Vec<u64> {
    (0..bytes as u64 / 8).map(|at| word << 32 | at).collect()
}

fn answer(request: impl FnOnce() -> Result<Outcome, DriverError>) -> anyhow::Result<()> {
    let wanted = clock::monotonic();
    let outcome = request();
    let got = clock::monotonic();
    let failed =
        |error: DriverError| Outcome { error: Some(error.to_string()), ..Outcome::default() };
    let answer = Answer {
        pid: std::process::id(),
        wanted_ns: wanted.as_nanos() as u64,
        got_ns: got.as_nanos() as u64,
        outcome: outcome.unwrap_or_else(failed),
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&answer)?)?;
    out.flush()?;
    Ok(())
}

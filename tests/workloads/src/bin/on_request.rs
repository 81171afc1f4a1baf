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
//! | `info`, `nvml [PATH]` | asks how much memory there is: the driver, or NVML, opened by its name or by a path |
//! | `fork` | calls the driver in a forked child, which must fail |
//! | `endless`, `end` | launches a kernel that does not end; ends the last of them |
//! | `reset` | resets the device, which ends the context with all memory in it, and begins anew |
//! | `exit`, `exit in thread` | ends in the midst of it, by exit on this thread or on another |
//! | `exec` | becomes another program, which does nothing for long |

use std::io::{self, BufRead, Write};
use std::os::unix::process::CommandExt;
use std::process::{self, Command, ExitCode};
use std::thread;

use acb_workloads::driver::nvml::Told;
use acb_workloads::driver::pinned::Pinned;
use acb_workloads::driver::staying::{Kind, Staying};
use acb_workloads::driver::{Context as CudaContext, Driver, DriverError, Kernel, Stream};
use acb_workloads::memory::{Check, Memory, RegionId, Replay, Shape, Way};
use acb_workloads::quantities::bytes;
use acb_workloads::{clock, fork, kernels};
use anyhow::{Context, bail};
use serde::Serialize;

/// What memory takes its steps with.
const SALT: u64 = 0x5eed;
const STREAM: &[Stream] = &[Stream::DEFAULT];

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

    fn fetch_and_check(&self) -> Result<Check, DriverError> {
        self.driver.synchronize()?;
        let mut found = Check::default();
        for region in self.memory.regions() {
            found.add(self.memory.check(&self.memory.fetch(region)?)?);
        }
        Ok(found)
    }
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

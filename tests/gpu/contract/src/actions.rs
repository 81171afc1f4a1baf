//! Parts for tests of several processes. A part says `ready` on stdout when it is
//! where the test wants it.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use crate::gpu::{Gpu, check};

/// Plays a part.
pub(crate) fn play(driver: &Path, part: &str, rest: &[String]) -> anyhow::Result<()> {
    let gpu = Gpu::open(driver).map_err(anyhow::Error::msg)?;
    let number = |at: usize| -> anyhow::Result<u64> {
        let text = rest.get(at).ok_or_else(|| anyhow::anyhow!("{part}: number {at} is missing"))?;
        Ok(text.parse()?)
    };
    let call = |what: &'static str| move |code: u32| anyhow::anyhow!("{what}: error {code}");
    match part {
        // Holds memory until it is killed.
        "hold" => {
            gpu.alloc(number(0)? as usize).map_err(call("allocate"))?;
            stay()
        }
        // Tries to allocate, and says what became of it.
        "allocate" => {
            match gpu.alloc(number(0)? as usize) {
                Ok(_) => println!("0"),
                Err(code) => println!("{code}"),
            }
            Ok(())
        }
        // Keeps the compute engine busy until it is killed.
        "compute" => {
            gpu.launch(0, "acb_spin", &[3_600_000_000_000]).map_err(call("launch"))?;
            stay()
        }
        // Keeps a copy engine busy until it is killed.
        "copy" => {
            let bytes = number(0)? as usize;
            let pinned = gpu.pinned(bytes / 8).map_err(call("pin"))?;
            let to = gpu.alloc(bytes).map_err(call("allocate"))?;
            let stream = gpu.stream(1).map_err(call("stream"))?;
            gpu.driver.cuMemcpyHtoDAsync_v2(to, pinned.pointer(), bytes, stream);
            stay()
        }
        // Runs kernels and says how many milliseconds they took, as the GPU counts.
        "kernels" => {
            let (count, length) = (number(0)?, number(1)?);
            let (start, end) =
                (gpu.event().map_err(call("event"))?, gpu.event().map_err(call("event"))?);
            println!("ready");
            std::io::stdout().flush()?;
            // The test lets all parts go at once.
            let mut line = String::new();
            std::io::stdin().read_line(&mut line)?;
            // So that all kernels are there before the first one runs: then only the
            // GPU's time counts.
            let held = gpu.hold(0).map_err(call("hold"))?;
            gpu.record(start, 0).map_err(call("record"))?;
            for _ in 0..count {
                gpu.launch(0, "acb_spin", &[length]).map_err(call("launch"))?;
            }
            gpu.record(end, 0).map_err(call("record"))?;
            held.let_go();
            gpu.synchronize().map_err(call("synchronize"))?;
            println!("{}", gpu.elapsed(start, end).map_err(call("elapsed"))?);
            Ok(())
        }
        // A short copy, which another process's work must not hold up for ever.
        "short-copy" => {
            let to = gpu.alloc(4096).map_err(call("allocate"))?;
            gpu.write(to, &[1; 512]).map_err(call("write"))?;
            println!("done");
            Ok(())
        }
        // Opens another process's memory: prints the last of 1000 words, and fills them.
        "open-shared" => {
            let mut handle = [0_u64; 8];
            for (at, word) in handle.iter_mut().enumerate() {
                *word = number(at)?;
            }
            let mut pointer = 0;
            let opened = gpu.driver.cuIpcOpenMemHandle_v2(&raw mut pointer, handle, 1);
            check(opened).map_err(call("open"))?;
            println!("{}", gpu.read(pointer + 999 * 8, 1).map_err(call("read"))?[0]);
            gpu.launch(0, "acb_fill", &[pointer, 1000, 6]).map_err(call("launch"))?;
            gpu.synchronize().map_err(call("synchronize"))?;
            check(gpu.driver.cuIpcCloseMemHandle(pointer)).map_err(call("close"))
        }
        // Makes calls by name and prints the code of each.
        "calls" => {
            for name in rest {
                println!("{name} {}", call_named(&gpu, name)?);
            }
            Ok(())
        }
        // A kernel that no software GPU knows: what it leaves in memory, and the
        // milliseconds that it took, as the GPU counts.
        "stranger" => {
            let (start, end) =
                (gpu.event().map_err(call("event"))?, gpu.event().map_err(call("event"))?);
            let mut module = 0;
            let text = STRANGER.as_ptr().cast();
            check(gpu.driver.cuModuleLoadData(&raw mut module, text)).map_err(call("load"))?;
            let memory = gpu.alloc(8).map_err(call("allocate"))?;
            gpu.write(memory, &[4711]).map_err(call("write"))?;
            // So that all is there before the first one runs.
            let held = gpu.hold(0).map_err(call("hold"))?;
            gpu.record(start, 0).map_err(call("record"))?;
            for name in [c"stranger", c"stranger", c"another", c"stranger"] {
                let mut kernel = 0;
                let found = gpu.driver.cuModuleGetFunction(&raw mut kernel, module, name.as_ptr());
                check(found).map_err(call("find"))?;
                let shape = [1, 1, 1, 1, 1, 1];
                gpu.launch_shaped(kernel, 0, shape, &[memory]).map_err(call("launch"))?;
            }
            gpu.record(end, 0).map_err(call("record"))?;
            held.let_go();
            let words = gpu.read(memory, 1).map_err(call("read"))?;
            println!("{} {}", words[0], gpu.elapsed(start, end).map_err(call("elapsed"))?);
            Ok(())
        }
        // Copies out, copies in, and both at a time: the milliseconds of each.
        "both-ways" => {
            let bytes = number(0)? as usize;
            let (out, back) =
                (gpu.stream(1).map_err(call("stream"))?, gpu.stream(1).map_err(call("stream"))?);
            let (a, b) =
                (gpu.alloc(bytes).map_err(call("a"))?, gpu.alloc(bytes).map_err(call("b"))?);
            let (from, to) = (
                gpu.pinned(bytes / 8).map_err(call("pin"))?,
                gpu.pinned(bytes / 8).map_err(call("pin"))?,
            );
            let event = || gpu.event().map_err(call("event"));
            let go_out =
                |stream| check(gpu.driver.cuMemcpyDtoHAsync_v2(to.pointer(), a, bytes, stream));
            let go_in =
                |stream| check(gpu.driver.cuMemcpyHtoDAsync_v2(b, from.pointer(), bytes, stream));
            let (start, half, whole) = (event()?, event()?, event()?);
            // So that all is there before the first one runs.
            let held = gpu.hold(out).map_err(call("hold"))?;
            gpu.record(start, out).map_err(call("record"))?;
            go_out(out).map_err(call("copy"))?;
            gpu.record(half, out).map_err(call("record"))?;
            go_in(out).map_err(call("copy"))?;
            gpu.record(whole, out).map_err(call("record"))?;
            held.let_go();
            gpu.synchronize().map_err(call("synchronize"))?;
            let (begin, end) = (event()?, event()?);
            // Both wait for a kernel, so that they begin together.
            let held = gpu.hold(out).map_err(call("hold"))?;
            gpu.record(begin, out).map_err(call("record"))?;
            check(gpu.driver.cuStreamWaitEvent(back, begin, 0)).map_err(call("wait"))?;
            go_out(out).map_err(call("copy"))?;
            go_in(back).map_err(call("copy"))?;
            let joined = event()?;
            gpu.record(joined, back).map_err(call("record"))?;
            check(gpu.driver.cuStreamWaitEvent(out, joined, 0)).map_err(call("wait"))?;
            gpu.record(end, out).map_err(call("record"))?;
            held.let_go();
            gpu.synchronize().map_err(call("synchronize"))?;
            let elapsed = |from, to| gpu.elapsed(from, to).map_err(call("elapsed"));
            println!(
                "{} {} {}",
                elapsed(start, half)?,
                elapsed(half, whole)?,
                elapsed(begin, end)?
            );
            Ok(())
        }
        // Copies as fast as the link lets it, and says how many milliseconds of the
        // clock they took.
        "copies" => {
            let (count, bytes) = (number(0)?, number(1)? as usize);
            let pinned = gpu.pinned(bytes / 8).map_err(call("pin"))?;
            let a = gpu.alloc(bytes).map_err(call("allocate"))?;
            println!("ready");
            std::io::stdout().flush()?;
            let mut line = String::new();
            std::io::stdin().read_line(&mut line)?;
            let begin = std::time::Instant::now();
            for _ in 0..count {
                let copied = gpu.driver.cuMemcpyDtoHAsync_v2(pinned.pointer(), a, bytes, 0);
                check(copied).map_err(call("copy"))?;
            }
            gpu.synchronize().map_err(call("synchronize"))?;
            println!("{}", begin.elapsed().as_secs_f64() * 1e3);
            Ok(())
        }
        // Maps, opens, unmaps and pins: the milliseconds of each, and those that the
        // thread was on a processor.
        "costs" => {
            let (count, size) = (number(0)? as usize, number(1)? as usize);
            let range = gpu.reserve(count * size).map_err(call("reserve"))?;
            let parts: Vec<u64> = (0..count).map(|at| range + (at * size) as u64).collect();
            let handle = gpu.create(size).map_err(call("create"))?;
            let processor = processor_time();
            let clock = std::time::Instant::now;
            let begin = clock();
            for &part in &parts {
                gpu.map(part, size, handle).map_err(call("map"))?;
            }
            let mapped = clock();
            for &part in &parts {
                gpu.open_up(part, size).map_err(call("access"))?;
            }
            let opened = clock();
            for &part in &parts {
                gpu.unmap(part, size).map_err(call("unmap"))?;
            }
            let unmapped = clock();
            let pinned = gpu.pinned(count * size / 8).map_err(call("pin"))?;
            let end = clock();
            drop(pinned);
            let spent = (processor_time() - processor).as_secs_f64() * 1e3;
            let milliseconds =
                [(begin, mapped), (mapped, opened), (opened, unmapped), (unmapped, end)]
                    .map(|(from, to)| (to - from).as_secs_f64() * 1e3);
            let [map, open, unmap, pin] = milliseconds;
            println!("{map} {open} {unmap} {pin} {spent}");
            Ok(())
        }
        // What calls answer that need memory of the driver's own, and what is free then.
        "grow" => {
            let tell = |what: &str, answer: Result<(), u32>| {
                let (free, _) = gpu.memory().map_err(call("info"))?;
                println!("{what} {} {}", answer.err().unwrap_or(0), free >> 20);
                anyhow::Ok(())
            };
            let mut graph = 0;
            check(gpu.driver.cuGraphCreate(&raw mut graph, 0)).map_err(call("graph"))?;
            tell("begin", Ok(()))?;
            tell("launch", gpu.launch(0, "acb_spin", &[1000]))?;
            tell("again", gpu.launch(0, "acb_spin", &[1000]))?;
            let (free, _) = gpu.memory().map_err(call("info"))?;
            tell("fill", gpu.alloc(free - (2 << 20)).map(drop))?;
            tell("other", gpu.launch(0, "acb_nop", &[]))?;
            tell("again", gpu.launch(0, "acb_spin", &[1000]))?;
            let mut made = [0, 0];
            for place in &mut made {
                tell("graph", gpu.instantiate(graph, 0).map(|new| *place = new))?;
            }
            tell("gone", check(gpu.driver.cuGraphExecDestroy(made[0])))?;
            tell("wait", gpu.synchronize())
        }
        // The time of an empty launch.
        "launch-cost" => {
            let nop = gpu.function("acb_nop").map_err(call("function"))?;
            let mut best = u128::MAX;
            for _ in 0..20 {
                let start = std::time::Instant::now();
                for _ in 0..10_000 {
                    gpu.launch_shaped(nop, 0, [1, 1, 1, 32, 1, 1], &[]).map_err(call("launch"))?;
                }
                best = best.min(start.elapsed().as_nanos() / 10_000);
                gpu.synchronize().map_err(call("synchronize"))?;
            }
            println!("{best} ns");
            Ok(())
        }
        _ => anyhow::bail!("there is no part {part:?}"),
    }
}

/// Two kernels of which nothing is known but their names.
const STRANGER: &str = ".version 6.4\n.target sm_52\n.address_size 64\n\
    .visible .entry stranger(.param .u64 p) { ret; }\n\
    .visible .entry another(.param .u64 p) { ret; }\n\0";

fn call_named(gpu: &Gpu, name: &str) -> anyhow::Result<u32> {
    let code = |answer: Result<(), u32>| answer.err().unwrap_or(0);
    let unit = 2 << 20;
    Ok(match name {
        "allocate" => code(gpu.alloc(unit).map(drop)),
        "allocate-later" => {
            let mut pointer = 0;
            gpu.driver.cuMemAllocAsync(&raw mut pointer, unit, 0)
        }
        "create" => code(gpu.create(unit).map(drop)),
        "map" => code(gpu.create(unit).and_then(|handle| {
            let range = gpu.reserve(unit)?;
            gpu.map(range, unit, handle)
        })),
        "pin" => code(gpu.pinned(1024).map(drop)),
        "register" => {
            let pages = vec![0_u64; 4096];
            let start = (pages.as_ptr() as usize).next_multiple_of(4096);
            let start = std::ptr::without_provenance_mut(start);
            let registered = gpu.driver.cuMemHostRegister_v2(start, 8192, 0);
            if registered == 0 {
                gpu.driver.cuMemHostUnregister(start);
            }
            registered
        }
        "copy" => code(gpu.alloc(64).and_then(|a| gpu.write(a, &[1; 8]))),
        "launch" => code(gpu.launch(0, "acb_nop", &[])),
        "spin" => code(gpu.launch(0, "acb_spin", &[1000])),
        "query" => code(gpu.query(0)),
        "wait" => code(gpu.synchronize()),
        _ => anyhow::bail!("there is no call {name:?}"),
    })
}

fn processor_time() -> Duration {
    let [user, system] = crate::gpu::processor_times();
    user + system
}

fn stay() -> anyhow::Result<()> {
    println!("ready");
    std::io::stdout().flush()?;
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

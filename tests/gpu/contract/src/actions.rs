//! Parts for tests of several processes. A part says `ready` on stdout when it is
//! where the test wants it.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use crate::gpu::Gpu;

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
            gpu.launch(0, "acb_spin", &[200_000_000]).map_err(call("launch"))?;
            gpu.record(start, 0).map_err(call("record"))?;
            for _ in 0..count {
                gpu.launch(0, "acb_spin", &[length]).map_err(call("launch"))?;
            }
            gpu.record(end, 0).map_err(call("record"))?;
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

fn stay() -> anyhow::Result<()> {
    println!("ready");
    std::io::stdout().flush()?;
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

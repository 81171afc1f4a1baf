//! `contract --driver PATH`: checks a CUDA driver, each case in a process of its
//! own, and prints a table. `--only NAME` runs one case here. The actions are
//! parts that tests of several processes let their children play.

mod actions;
mod cases;
mod driver;
mod gpu;
mod turns;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;

/// Checks what programs may expect of a CUDA driver.
#[derive(Parser)]
struct Arguments {
    /// The driver: a path, or a name that the dynamic linker finds
    #[arg(long, env = "CONTRACT_DRIVER", default_value = "libcuda.so.1")]
    driver: PathBuf,
    /// Runs this case only, in this process
    #[arg(long)]
    only: Option<String>,
    /// Lists the cases
    #[arg(long)]
    list: bool,
    /// Seconds that a case may take
    #[arg(long, default_value_t = 60)]
    timeout: u64,
    /// A socket on which others wait for their turn, offered before every call of the driver's
    #[arg(long, env = "CONTRACT_TURNS", hide = true)]
    turns: Option<PathBuf>,
    /// Plays a part in a test of several processes
    #[arg(long, num_args = 1.., hide = true)]
    act: Vec<String>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.list {
        for (name, _) in cases::ALL {
            println!("{name}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(socket) = &arguments.turns {
        turns::ask_at(socket)?;
    }
    if let Some((part, rest)) = arguments.act.split_first() {
        actions::play(&arguments.driver, part, rest)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(name) = &arguments.only {
        let Some((_, case)) = cases::ALL.iter().find(|(own, _)| own == name) else {
            anyhow::bail!("there is no case {name:?}: `contract --list` shows them");
        };
        return Ok(match case(&arguments.driver) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                println!("{why}");
                ExitCode::FAILURE
            }
        });
    }
    all(&arguments)
}

fn all(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    let mut failed = 0;
    for (name, _) in cases::ALL {
        let (ok, why) = run(&arguments.driver, name, Duration::from_secs(arguments.timeout))?;
        failed += usize::from(!ok);
        table.add_row([*name, if ok { "ok" } else { "failed" }, why.trim()]);
    }
    println!("{table}");
    println!("{} passed, {failed} failed", cases::ALL.len() - failed);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(driver: &Path, name: &str, limit: Duration) -> anyhow::Result<(bool, String)> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("--driver")
        .arg(driver)
        .args(["--only", name])
        .stdout(Stdio::piped())
        .spawn()?;
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok((false, format!("not over after {} s", limit.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let output = child.wait_with_output()?;
    let mut why = String::from_utf8_lossy(&output.stdout).into_owned();
    if !status.success() && why.is_empty() {
        why = format!("ended with {status}");
    }
    Ok((status.success(), why))
}

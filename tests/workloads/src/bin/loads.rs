//! Loads the CUDA driver in one of the ways that programs use, and says which library answered.
//!
//! Owns: the ways that need no linker flags (see loads_linked and loads_rpath) and no Python (see
//! loads_ctypes.py). Does not own: what is expected of each; that is the tests' matter.

use std::process::ExitCode;
use std::thread;

use acb_workloads::driver::{Driver, DriverError, Scope};
use acb_workloads::fork::run_in_child;
use acb_workloads::loaded::Loaded;
use acb_workloads::sample;
use clap::{Parser, Subcommand};

/// Loads the CUDA driver in one way, works with it, and prints one line of JSON: which library
/// answered, whether that is the one that LD_PRELOAD names, and how the work went
#[derive(Debug, Parser)]
#[command(name = "loads", version)]
struct Options {
    #[command(subcommand)]
    way: Way,
}

#[derive(Debug, Subcommand)]
enum Way {
    /// dlopen("libcuda.so.1"), as the CUDA runtime and most programs do
    Soname,
    /// dlopen("libcuda.so"), as cudarc and Numba do
    Name,
    /// dlopen of an absolute path
    Path {
        /// The path
        path: String,
    },
    /// dlopen("libcuda.so.1") with RTLD_DEEPBIND, as some Python extensions are loaded
    Deepbind,
    /// dlmopen of a name or a path into a namespace of its own
    Namespace {
        /// The name or path
        name: String,
    },
    /// As the CUDA runtime that nvcc links statically: dlopen("libcuda.so.1"), one dlsym, and all other
    /// functions from cuGetProcAddress; reports who serves cuLaunchKernel
    Runtime,
    /// cuGetProcAddress of a driver from dlopen("libcuda.so.1"); reports who serves cuLaunchKernel
    Entry,
    /// Use CUDA, then open another copy of the driver by its path, and stay until standard input ends
    After {
        /// The path
        path: String,
    },
    /// fork, then use CUDA in the child alone
    ForkBefore,
    /// Use CUDA, fork, use CUDA in the child (which no driver allows), go on in the parent
    ForkAfter,
    /// Eight threads, all beginning with cuInit
    Threads,
}

fn main() -> ExitCode {
    match Options::parse().way {
        Way::Soname => report("soname", "libcuda.so.1", work),
        Way::Name => report("name", "libcuda.so", work),
        Way::Path { path } => report("path", &path, work),
        Way::Deepbind => {
            finish("deepbind", Driver::open_as("libcuda.so.1", Scope::DeepBind), Driver::path, work)
        }
        Way::Namespace { name } => {
            finish("namespace", Driver::open_as(&name, Scope::Namespace), Driver::path, work)
        }
        Way::Runtime => {
            finish("runtime", Driver::open_as_static_runtime(), Driver::path_of_launch, work)
        }
        Way::Entry => entry(),
        Way::After { path } => report("after", "libcuda.so.1", |driver| {
            work(driver)?;
            Driver::open(&path).map_err(|error| error.to_string())?;
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink())
                .map(drop)
                .map_err(|error| error.to_string())
        }),
        Way::ForkBefore => child("fork-before", || report("fork-before", "libcuda.so.1", work)),
        Way::ForkAfter => report("fork-after", "libcuda.so.1", |driver| {
            work(driver)?;
            let code = run_in_child(|| {
                let result = work(driver).err().unwrap_or_else(|| "ok".into());
                let child = Loaded::new("fork-after, child", driver.path(), result);
                child.print();
                i32::from(!child.is_ok())
            });
            match code {
                Ok(0 | 1) => work(driver),
                Ok(code) => Err(format!("the child ended with {code}")),
                Err(error) => Err(format!("fork failed: {error}")),
            }
        }),
        Way::Threads => report("threads", "libcuda.so.1", |driver| {
            thread::scope(|scope| {
                let threads: Vec<_> = (0..8)
                    .map(|seed| {
                        scope.spawn(move || sample::run(driver, seed).map_err(|e| e.to_string()))
                    })
                    .collect();
                threads.into_iter().try_for_each(|thread| {
                    thread.join().unwrap_or_else(|_| Err("a thread panicked".into()))
                })
            })
        }),
    }
}

/// Opens the driver by a name, works, and reports.
fn report(
    way: &'static str,
    name: &str,
    work: impl FnOnce(&Driver) -> Result<(), String>,
) -> ExitCode {
    finish(way, Driver::open(name), Driver::path, work)
}

fn finish(
    way: &'static str,
    opened: Result<Driver, DriverError>,
    path: fn(&Driver) -> String,
    work: impl FnOnce(&Driver) -> Result<(), String>,
) -> ExitCode {
    let loaded = match opened {
        Ok(driver) => {
            let result = work(&driver).err().unwrap_or_else(|| "ok".into());
            Loaded::new(way, path(&driver), result)
        }
        Err(error) => Loaded::new(way, String::new(), error.to_string()),
    };
    loaded.print();
    loaded.exit_code()
}

fn work(driver: &Driver) -> Result<(), String> {
    sample::run(driver, 1).map_err(|error| error.to_string())
}

/// The driver's functions by cuGetProcAddress: the library reported is the one with cuLaunchKernel.
fn entry() -> ExitCode {
    let serves = || -> Result<String, DriverError> {
        let driver = Driver::open("libcuda.so.1")?;
        driver.init()?;
        driver.file_of_entry(c"cuLaunchKernel")
    };
    let loaded = match serves() {
        Ok(library) => Loaded::new("entry", library, "ok".into()),
        Err(error) => Loaded::new("entry", String::new(), error.to_string()),
    };
    loaded.print();
    loaded.exit_code()
}

/// Runs a way in a forked child; the parent has used no CUDA.
fn child(way: &'static str, run: impl FnOnce() -> ExitCode) -> ExitCode {
    match run_in_child(|| i32::from(run() != ExitCode::SUCCESS)) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(code) => {
            eprintln!("loads: {way}: the child ended with {code}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("loads: {way}: fork failed: {error}");
            ExitCode::FAILURE
        }
    }
}

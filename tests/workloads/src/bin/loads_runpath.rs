//! Loads the driver by being linked with it and by DT_RUNPATH, which goes after LD_LIBRARY_PATH: `$ORIGIN/sim`,
//! where an installation has the software GPU. Owns nothing: see linked.rs and build.rs.

#[path = "../linked.rs"]
mod linked;

fn main() -> std::process::ExitCode {
    linked::main("runpath")
}

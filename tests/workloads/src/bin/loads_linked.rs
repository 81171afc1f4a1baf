//! Loads the driver by being linked with it. Owns nothing: see linked.rs and build.rs.

#[path = "../linked.rs"]
mod linked;

fn main() -> std::process::ExitCode {
    linked::main("linked")
}

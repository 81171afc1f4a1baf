//! `gpu_assigner`: the daemon and the commands around it.
//!
//! Owns the dispatch from command to function, and how a failure reaches the user.

use std::process::ExitCode;

use acb_assigner::cli::{Cli, Command, Completed};
use acb_assigner::output::print;
use acb_assigner::start::Failure;
use acb_assigner::{control, launch, simulate, start};
use clap::{CommandFactory, Parser};

fn main() -> ExitCode {
    // Bad arguments end here, with 2; --help and --version with 0.
    let cli = Cli::parse();
    let done = match &cli.command {
        Some(Command::Start(options)) => start::run(&cli.place, options),
        Some(Command::Status(options)) => control::status(&cli.place, options),
        Some(Command::Stop) => control::stop(&cli.place),
        Some(Command::Simulate(options)) => return ExitCode::from(simulate::run(options)),
        Some(Command::Completion { shell, program }) => {
            let (name, mut command) = match program {
                Completed::GpuAssigner => ("gpu_assigner", Cli::command()),
                Completed::Agarun => ("agarun", launch::cli::Cli::command()),
            };
            let mut script = vec![];
            clap_complete::generate(*shell, &mut command, name, &mut script);
            print(&String::from_utf8_lossy(&script));
            Ok(())
        }
        None => {
            eprintln!(
                "WARNING: no command given, nothing done; give start, status, stop or simulate (see gpu_assigner --help)"
            );
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { exit, message }) => {
            eprintln!("ERROR: {message}");
            ExitCode::from(exit as u8)
        }
    }
}

//! `agarun`: runs a program so that it shares GPUs per GPU phase.
//!
//! Owns how an error reaches the user; the rest is [`acb_assigner::launch`].

use acb_assigner::launch::{self, cli::Cli};
use clap::Parser;

fn main() {
    let cli = Cli::parse();
    let code = launch::run(&cli).unwrap_or_else(|error| {
        eprintln!("Error: {error}");
        1
    });
    std::process::exit(code);
}

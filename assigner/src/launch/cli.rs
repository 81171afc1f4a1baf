//! The command line of `agarun`.

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::PathBuf;

use acb_cluster_conf::{ByteSize, GangProblem, GangRequest, Name, NameProblem, Priority};
use clap::{Parser, ValueHint};

/// Run a program so that it shares GPUs per GPU phase.
#[derive(Debug, Parser)]
#[command(name = "agarun", version, max_term_width = 100)]
#[command(override_usage = "agarun [OPTIONS] [--] PROGRAM [ARGUMENTS]")]
#[command(after_help = "Environment: AGA_ENABLE_AUTO (1: automatic mode, 0: manual mode), \
    AGA_GPU_ALLOC_SERVER_ADDRESS and AGA_GPU_ALLOC_SERVER_PORT (127.0.0.1, 11234), \
    AGA_REQUEST_DEVICE (any, cuda, gpu, cpu), ACB_LIB_DIR (folder of the interposer).\n\
    Exit status: the program's own; 128 and the signal's number if a signal ended it, so 130 after \
    Ctrl-C; 1 with `Error: …` if it was not run; 2 for bad options.")]
pub struct Cli {
    /// Run the program without scheduling, to compare
    #[arg(long)]
    pub without_aga: bool,
    /// Lead the program to the interposer also where it opens the driver by a path
    #[arg(long)]
    pub audit: bool,
    /// Append to this file what the program asked for and got [default: $HOME/.acb/job-history.log]
    #[arg(long, value_name = "PATH")]
    pub history_path: Option<PathBuf>,
    /// Accepted as in ACB, without effect: memory is not kept in files here
    #[arg(long, value_name = "DIR")]
    pub checkpoints_topdir: Option<PathBuf>,
    /// GPUs that the program sees [default: 1, or what the Slurm job says]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub gpus: Option<u32>,
    /// Which of the programs in a queue go first: -100 to 100, or latency, interactive, normal, batch [default: 0]
    #[arg(long, value_name = "PRIORITY", allow_hyphen_values = true)]
    pub priority: Option<Priority>,
    /// The queue of the assigner in which the program waits
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub queue: Option<Name>,
    /// Whose quota and share the program counts for
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub tenant: Option<Name>,
    /// Memory that the program may have of each GPU, like 10G, contexts included (without a unit:
    /// MiB) [default: all of it, or what the Slurm job says]
    #[arg(long, value_name = "SIZE")]
    pub mem: Option<ByteSize>,
    /// Programs that name the same gang have their GPUs at the same time, or none of them has
    #[arg(long, value_name = "NAME:SIZE", value_parser = gang)]
    pub gang: Option<(Name, NonZeroU32)>,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, value_name = "PROGRAM", value_hint = ValueHint::CommandWithArguments, hide = true)]
    pub command: Vec<OsString>,
}

fn name(text: &str) -> Result<Name, NameProblem> {
    Name::new(text)
}

fn gang(text: &str) -> Result<(Name, NonZeroU32), String> {
    match text.parse() {
        Ok(GangRequest::Named { name, size }) => Ok((name, size)),
        Ok(GangRequest::Step) => Err("only `srun --acb=…,gang=step` knows the tasks of a step; \
            give the gang's name and the number of its programs, like train:4"
            .into()),
        Err(GangProblem) => Err("not NAME:SIZE, like train:4, with a name of letters, digits and \
            _ - . @ and the number of the gang's programs"
            .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_the_program_is_the_programs() {
        let cli =
            Cli::try_parse_from(["agarun", "--gpus", "2", "python", "--gpus", "9", "--", "-v"])
                .unwrap();
        assert_eq!(cli.gpus, Some(2));
        assert_eq!(cli.command, ["python", "--gpus", "9", "--", "-v"]);
        let cli = Cli::try_parse_from(["agarun", "--", "torchrun", "--nnodes", "2"]).unwrap();
        assert_eq!(cli.command, ["torchrun", "--nnodes", "2"]);
        assert!(Cli::try_parse_from(["agarun", "--gpus", "0", "x"]).is_err());
        let wrong = Cli::try_parse_from(["agarun", "--prio", "1", "x"]).unwrap_err().to_string();
        let step = Cli::try_parse_from(["agarun", "--gang", "step", "x"]).unwrap_err().to_string();
        assert!(step.contains("train:4"), "{step}");
        assert!(wrong.contains("'--prio'") && wrong.contains("'--priority'"), "{wrong}");
    }
}

//! The command line of `gpu_assigner`: ACB's commands and options, and ours beside them.
//!
//! Owns names, defaults and help texts. Does not own what they do. An option of ACB's that has no
//! effect here is accepted and says so in its help.

use std::net::IpAddr;
use std::path::PathBuf;

use acb_cluster_conf::{QueueRule, TenantRule};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use acb_cluster_conf::{ByteSize, Headroom};

use crate::selection::GpuList;
use crate::settings::MemoryTerms;

/// Daemon that grants GPUs to programs per GPU phase.
#[derive(Debug, Parser)]
#[command(name = "gpu_assigner", version, max_term_width = 100)]
#[command(after_help = "Exit status: 0 done; 1 failed to start; 2 bad arguments; \
    65 pid file unreadable or corrupt; 69 no assigner running; 73 $HOME/.acb cannot be made; \
    75 already running.")]
pub struct Cli {
    /// Where the daemon is.
    #[command(flatten)]
    pub place: Place,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Options that stand before the command: which daemon is meant.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Which daemon")]
pub struct Place {
    /// Address at which tools and manual-mode clients reach the daemon [default: 127.0.0.1]
    #[arg(long, global = true, value_name = "ADDRESS", value_parser = ip_address)]
    pub address: Option<IpAddr>,
    /// Port at that address [default: 11234]
    #[arg(long, global = true, value_name = "PORT",
          value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// File that holds the daemon's process id [default: $HOME/.acb/gpu-assigner.pid]
    #[arg(long, global = true, value_name = "PATH")]
    pub pid_file_path: Option<PathBuf>,
    /// Take address, port, log and pid file from this host's table in $HOME/.acb/multinode.toml
    #[arg(long, global = true)]
    pub multinode: bool,
    /// The daemon whose sockets lie in this folder, instead of the one at ADDRESS:PORT
    #[arg(long, global = true, value_name = "DIR")]
    pub socket_dir: Option<PathBuf>,
}

impl Place {
    /// Whether nothing was said: then a job's own daemon may be meant.
    pub fn is_default(&self) -> bool {
        let Place { address, port, pid_file_path, multinode, socket_dir } = self;
        let named = address.is_some() || port.is_some() || pid_file_path.is_some();
        !named && !multinode && socket_dir.is_none()
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the daemon in the background
    Start(Box<Start>),
    /// Say whether the daemon runs, and show GPUs, holders, queue and waits
    Status(Status),
    /// Stop the daemon
    Stop,
    /// Play a scenario in virtual time: whole clusters, with the real scheduler
    Simulate(Box<Simulate>),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: Shell,
        /// The program to complete
        #[arg(long, value_enum, value_name = "PROGRAM", default_value_t = Completed::GpuAssigner)]
        program: Completed,
    },
}

/// The programs that shells can complete.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Completed {
    /// This program.
    #[value(help = "this one")]
    GpuAssigner,
    /// The launcher.
    #[value(help = "the launcher")]
    Agarun,
}

/// Options of `start`.
#[derive(Clone, Debug, Args)]
pub struct Start {
    /// Who gets a GPU next
    #[arg(long, value_enum, default_value_t = Scheduler::GpuAffinity)]
    pub scheduler: Scheduler,
    /// GPUs to hand out: indices or UUIDs with commas between, all, or none [default: all]
    #[arg(long, value_name = "LIST", default_value = "all", hide_default_value = true)]
    pub gpu_list: GpuList,
    /// Log file [default: $HOME/.acb/gpu-assigner.log]
    #[arg(long, value_name = "PATH")]
    pub log_path: Option<PathBuf>,
    /// Log every grant
    #[arg(short, long)]
    pub verbose: bool,
    /// Folder in which the daemon runs [default: /]
    #[arg(long, value_name = "DIR")]
    pub gpu_assigner_working_directory: Option<PathBuf>,
    /// Manual-mode requests that are served at a time; more wait for their turn
    #[arg(long, value_name = "N", default_value_t = 128,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub gpu_assigner_max_workers: u32,
    /// Stop by itself after so many seconds; 0 means never
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub gpu_assigner_execution_time: u64,
    /// How long a GPU that others wait for is held before it is asked back, milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2000,
          value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    pub quantum_ms: u64,
    /// How long a GPU that others wait for must be idle before its holder gives it back, microseconds
    #[arg(long, value_name = "US", default_value_t = 2000,
          value_parser = clap::value_parser!(u32).range(..=60_000_000))]
    pub idle_us: u32,
    /// What one CUDA context takes on a GPU, MiB
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    pub context_mib: u32,
    /// How device memory is shared.
    #[command(flatten)]
    pub paging: Paging,
    /// How often smaller requests may go before the first of the queue
    #[arg(long, value_name = "N", default_value_t = 8,
          value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub max_bypass: u32,
    /// For how long they may, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u32).range(..=86_400))]
    pub max_bypass_s: u32,
    /// Who shares the GPUs with whom.
    #[command(flatten)]
    pub sharing: Sharing,
    /// The driver's libnvidia-ml.so.1, if it is not in the usual places
    #[arg(long, value_name = "PATH", env = "ACB_NVML", hide_env_values = true)]
    pub nvml: Option<PathBuf>,
    /// Stay in the foreground
    #[arg(long)]
    pub foreground: bool,
    /// Serve a Slurm job: everything else is taken from this job spec
    #[arg(long, value_name = "FILE", requires = "foreground")]
    pub spec: Option<PathBuf>,
    /// Write a line to this descriptor once the daemon serves, or when it gives up
    #[arg(long, value_name = "N", requires = "foreground",
          value_parser = clap::value_parser!(i32).range(3..))]
    pub ready_fd: Option<i32>,
    /// The estimate of phase times.
    #[command(flatten)]
    pub estimator: PhaseEstimator,
    /// The estimate of memory.
    #[command(flatten)]
    pub memory: MemoryEstimator,
}

/// How device memory is shared.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sharing of GPU memory")]
pub struct Paging {
    /// Memory that is moved between GPU and host at a time, MiB, a multiple of 2; 0: none ever is
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = chunk_mib)]
    pub chunk_mib: u32,
    /// Memory of the host for what leaves the GPUs, like 64G (without a unit: MiB)
    /// [default: half of what this process may use]
    #[arg(long, value_name = "SIZE")]
    pub host_budget: Option<ByteSize>,
    /// Share of the time that moving memory may cost; leases that others wait for last accordingly
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = part)]
    pub switch_share: f64,
    /// GPU memory that no program is promised, for what drivers take unasked: 512M, 1%, 0, or auto (1 percent, 512 MiB at most)
    #[arg(long, value_name = "SIZE", default_value_t = Headroom::Auto)]
    pub headroom: Headroom,
    /// Compare memory byte by byte where hashes say that it has not changed, to check the hashes
    #[arg(long)]
    pub compare: bool,
}

impl Paging {
    /// What the daemon is told.
    pub fn terms(&self) -> MemoryTerms {
        let budget = self.host_budget.map(ByteSize::bytes);
        MemoryTerms {
            chunk: u64::from(self.chunk_mib) << 20,
            host_budget: budget.unwrap_or_else(|| crate::host::memory() / 2),
            switch_share: self.switch_share,
            headroom: self.headroom,
            compare: self.compare,
        }
    }
}

/// Tenants, queues and fair share.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Tenants and queues (keys as in the cluster file)")]
#[allow(rustdoc::broken_intra_doc_links)] // The brackets are the help text's.
pub struct Sharing {
    /// A queue: NAME[,priority=N][,policy=P][,max_gpus=N][,max_clients=N]; again for each
    #[arg(long, value_name = "QUEUE", value_parser = crate::tenancy::queue)]
    pub queue: Vec<QueueRule>,
    /// A tenant: NAME[,share=PART][,max_gpus=N][,weight=N]; again for each
    #[arg(long, value_name = "TENANT", value_parser = crate::tenancy::tenant)]
    pub tenant: Vec<TenantRule>,
    /// After so many seconds, used GPU time counts half; 0: who came first goes first
    #[arg(long, value_name = "SECONDS", default_value_t = 0,
          value_parser = clap::value_parser!(u32).range(..=31_536_000))]
    pub fair_share_half_life_s: u32,
    /// GPU time that who comes back is owed at most, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0,
          value_parser = clap::value_parser!(u32).range(..=86_400))]
    pub fair_share_credit_s: u32,
}

/// ACB's estimator of phase times.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Phase times (they decide what may be backfilled)")]
pub struct PhaseEstimator {
    /// Phases of a client before its times are estimated
    #[arg(long, value_name = "N", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub exe_est_start_count: u32,
    /// Latest phases that the estimate looks at
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub exe_est_latest_count: u32,
    /// Phases between two estimates
    #[arg(long, value_name = "N", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub exe_est_interval: u32,
    /// Percentile of the latest phases that is the estimate, 0 to 1
    #[arg(long, value_name = "P", default_value_t = 0.9, value_parser = share)]
    pub exe_est_percentile: f64,
    /// Estimate before there is one, milliseconds; 0 means unknown, which is never backfilled
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub exe_est_default_execution_time: u64,
}

/// ACB's estimator of peak memory, and its threshold of residency.
#[derive(Clone, Debug, Args)]
#[command(
    next_help_heading = "Memory of programs without a limit (it decides which of them gpu-sharing puts together)"
)]
pub struct MemoryEstimator {
    /// Phases of a client before its memory is estimated; until then what it has counts
    #[arg(long, value_name = "N", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub mem_est_start_count: u32,
    /// Phases between two estimates
    #[arg(long, value_name = "N", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub mem_est_interval: u32,
    /// Latest phases that the estimate looks at
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub mem_est_data_max_len: u32,
    /// Percentile of the latest phases that is usual, 0 to 1
    #[arg(long, value_name = "P", default_value_t = 0.99, value_parser = share)]
    pub mem_est_percentile: f64,
    /// The usual is taken so many times
    #[arg(long, value_name = "R", default_value_t = 1.1, value_parser = ratio)]
    pub mem_est_fixed_ratio: f64,
    /// The smaller or the larger of that and the largest of the latest phases
    #[arg(long, value_enum, value_name = "WHICH", default_value_t = SelectStrategy::Min)]
    pub mem_est_select_strategy: SelectStrategy,
    /// No effect: a program stays on its GPUs, its memory moves to the host and back
    #[arg(long, value_name = "SHARE", default_value_t = 0.25, value_parser = share)]
    pub res_mem_manager_resident_memory_threshold: f64,
}

/// Options of `status`.
#[derive(Clone, Debug, Args)]
pub struct Status {
    /// Print one JSON document instead of the table
    #[arg(long)]
    pub json: bool,
    /// Print again after every change, until interrupted
    #[arg(long)]
    pub watch: bool,
}

/// Options of `simulate`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Exit status: 0 done; 1 an invariant was violated; 2 the scenario, a file or an option \
    cannot be used. Nothing is asked of a daemon: the options above that say which one have no effect."
)]
pub struct Simulate {
    /// The scenario (TOML), or - for standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// From which phase times and arrivals follow, instead of the scenario's
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,
    /// Play it with so many seeds, on all cores, and show how the figures spread
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub seeds: Option<u64>,
    /// Spread of all phase times, instead of the scenario's: 0 constant, 1 exponential
    #[arg(long, value_name = "CV", value_parser = spread)]
    pub spread: Option<f64>,
    /// Another value of the scenario, such as client.NAME.count=8; may be given several times
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
    /// Print one JSON document instead of the table
    #[arg(long)]
    pub json: bool,
    /// Write every event and every answer of the schedulers to a file
    #[arg(long, value_name = "PATH")]
    pub log: Option<PathBuf>,
    /// Draw what every client and every GPU did when
    #[arg(long, conflicts_with = "json")]
    pub timeline: bool,
    /// Write that picture to a file, as SVG
    #[arg(long, value_name = "PATH")]
    pub svg: Option<PathBuf>,
    /// Colours
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = ColorWhen::Auto)]
    pub color: ColorWhen,
    /// Draw with plain characters
    #[arg(long)]
    pub ascii: bool,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl ColorWhen {
    /// What is said, whatever the terminal is.
    pub fn forced(self) -> Option<bool> {
        match self {
            ColorWhen::Auto => None,
            ColorWhen::Always => Some(true),
            ColorWhen::Never => Some(false),
        }
    }
}

/// ACB's schedulers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scheduler {
    /// First in, first out; one GPU for each client
    Simple,
    /// Several clients on one GPU while their memory fits
    GpuSharing,
    /// One to k GPUs for each client; first in, first out with backfill and affinity
    GpuAffinity,
}

/// ACB's `--mem-est-select-strategy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SelectStrategy {
    /// The smallest estimate
    Min,
    /// The largest estimate
    Max,
}

impl From<Scheduler> for acb_core::Policy {
    fn from(scheduler: Scheduler) -> acb_core::Policy {
        match scheduler {
            Scheduler::Simple => acb_core::Policy::Simple,
            Scheduler::GpuSharing => acb_core::Policy::GpuSharing,
            Scheduler::GpuAffinity => acb_core::Policy::GpuAffinity,
        }
    }
}

fn ip_address(text: &str) -> Result<IpAddr, String> {
    text.parse()
        .map_err(|_| "not an IP address; give one of this host, like 127.0.0.1 or ::1".to_owned())
}

fn chunk_mib(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(mib) if mib <= 1024 && mib.is_multiple_of(2) => Ok(mib),
        _ => Err("not an even number from 2 to 1024, or 0".to_owned()),
    }
}

fn part(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.001..1.0).contains(&share) => Ok(share),
        _ => Err("not a number from 0.001 to below 1".to_owned()),
    }
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if ratio.is_finite() && ratio > 0.0 { Ok(ratio) } else { Err("not above 0".to_owned()) }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("not a number from 0 to 1".to_owned()),
    }
}

fn spread(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(spread) if (0.0..=20.0).contains(&spread) => Ok(spread),
        _ => Err("not a number from 0 to 20".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_script_written_for_acb_is_understood() {
        let line = "gpu_assigner --address 127.0.0.1 --port 1200 --pid-file-path /tmp/p start \
            --scheduler gpu-sharing --gpu-list 0,1,2 --log-path /tmp/l -v \
            --gpu-assigner-working-directory /tmp --gpu-assigner-max-workers 64 \
            --gpu-assigner-execution-time 60 --exe-est-start-count 10 --exe-est-latest-count 100 \
            --exe-est-interval 10 --exe-est-percentile 0.9 --exe-est-default-execution-time 0 \
            --mem-est-start-count 10 --mem-est-interval 10 --mem-est-data-max-len 100 \
            --mem-est-percentile 0.99 --mem-est-fixed-ratio 1.1 --mem-est-select-strategy max \
            --res-mem-manager-resident-memory-threshold 0.25";
        Cli::try_parse_from(line.split_whitespace()).unwrap();
    }

    #[test]
    fn a_spec_needs_the_foreground() {
        assert!(Cli::try_parse_from(["gpu_assigner", "start", "--spec", "/x"]).is_err());
    }
}

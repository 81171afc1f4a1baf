//! In srun, sbatch and salloc, as the user: what can be checked or prepared before there is a job.

use crate::slurm::{self, Handle};
use crate::{args, resources, second_life};
use acb_cluster_conf::{AcbOption, Key, Settings};
use std::ffi::{CStr, c_int};
use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};

/// The variable that carries the job's key; prolog and epilog see it as `SPANK_ACB_KEY`.
const KEY: &str = "ACB_KEY";

/// [`crate::plan::KEY_LEFT_BEHIND`], for C.
const KEY_FOR_STEPS: &CStr = c"SLURM_SPANK_ACB_KEY";

/// By this srun inside a job finds the option that the job was submitted with.
const INHERITED: &str = "SLURM_SPANK__SLURM_SPANK_OPTION_acb_acb";

/// Whether the job that this program makes gets an assigner. The last `--acb` counts.
static WANTED: AtomicBool = AtomicBool::new(false);

/// Steps of an acb job run beside each other on the job's GPUs: the assigner orders their use, so
/// Slurm need not. srun reads this variable after the plugins' init.
pub(crate) fn share_gpus_between_steps() {
    let inside = std::env::var_os("SLURM_JOB_ID").is_some();
    if inside && inherited() {
        slurm::set_own_default(c"SLURM_OVERLAP", c"1");
    }
}

/// Whether this srun is in an acb job.
fn inherited() -> bool {
    // With --export=NONE only what the batch step was given is left.
    std::env::var_os(INHERITED).is_some_and(|value| value != "off")
        || std::env::var_os("ACB_SOCKET").is_some()
}

/// srun keeps its own `--gpus-per-task` from the tasks, or tells them only a binding; sbatch and
/// salloc set this variable. What the command line says is more than what was inherited.
pub(crate) fn tell_gpus_per_task() {
    if !WANTED.load(Ordering::Relaxed) && !inherited() {
        return;
    }
    // The components of a heterogeneous step may each have their own, but one environment.
    if std::env::args_os().any(|word| word == ":") {
        return;
    }
    let words: Vec<String> = std::env::args_os()
        .take(slurm::words_taken())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    if let Some(gpus) = resources::option_per_task(&words) {
        slurm::set_own(c"SLURM_GPUS_PER_TASK", gpus);
    }
}

/// The key of a requeued job, for nodes that take its second life for the first.
pub(crate) fn hand_on_key() {
    if let Some(key) = inherited().then(second_life::key_for_steps).flatten() {
        slurm::set_own(KEY_FOR_STEPS, &key.expose_hex());
    }
}

/// Checks an option that the user gave, with the cluster file, so that a mistake costs no queueing.
pub(crate) fn check(value: &str) -> c_int {
    let request = match AcbOption::parse(value) {
        Ok(AcbOption::Off) => {
            WANTED.store(false, Ordering::Relaxed);
            return 0;
        }
        Ok(AcbOption::On(request)) => request,
        Err(error) => return refuse(&error.to_string()),
    };
    match args::site().map_err(|error| error.to_string()).and_then(|site| {
        Settings::settle(&site, &request).map(|_| ()).map_err(|error| error.to_string())
    }) {
        Ok(()) => {
            WANTED.store(true, Ordering::Relaxed);
            0
        }
        Err(message) => refuse(&(message + &not_asked())),
    }
}

/// Somebody may have set the variable that other programs ask, and wonder.
fn not_asked() -> String {
    let variable = std::env::var_os("ACB_CONF").filter(|value| !value.is_empty());
    variable.map_or_else(String::new, |path| {
        format!(
            "\nACB_CONF={} is not asked here: the nodes use the cluster file that plugstack.conf names, \
             or the default, whatever the environment says",
            path.display()
        )
    })
}

/// The option's callback is the one place whose failure always ends srun, sbatch and salloc.
fn refuse(message: &str) -> c_int {
    slurm::error(message);
    -1
}

/// Makes the job's key. It travels in the job-control environment, which only prologs and epilogs
/// see: not on a command line, not in the job's own environment.
pub(crate) fn make_key(handle: &Handle<'_>) -> c_int {
    if !WANTED.load(Ordering::Relaxed) {
        return 0;
    }
    let key = match random_key() {
        Ok(key) => key,
        Err(error) => return refuse(&format!("--acb: /dev/urandom: {error}")),
    };
    match handle.set_control_variable(KEY, &key.expose_hex()) {
        Ok(()) => 0,
        Err(error) => refuse(&format!("--acb: the job's key cannot be handed on: {error}")),
    }
}

fn random_key() -> io::Result<Key> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(Key::new(bytes))
}

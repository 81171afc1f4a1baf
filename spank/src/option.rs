//! Slurm's side of the option `--acb`.
//!
//! Owns: its registration, and what was given with it. Its grammar is [`AcbOption`]'s.

use crate::slurm::{self, Handle};
use crate::{exports, sys};
use acb_cluster_conf::{AcbOption, OptionError};
use std::sync::{Mutex, PoisonError};

/// Whose word it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The user's, in srun, sbatch or salloc.
    Local,
    /// Slurm's, on a node.
    Node,
}

/// Name and argument stay below 30 columns together: srun prints them into a line of 80.
fn declaration() -> sys::spank_option {
    sys::spank_option {
        name: c"acb".as_ptr().cast_mut(),
        arginfo: c"POLICY,key=value,...".as_ptr().cast_mut(),
        usage: c"share the job's GPUs per GPU phase (off: not)".as_ptr().cast_mut(),
        has_arg: OPTIONAL_ARGUMENT,
        val: 0,
        cb: Some(exports::option_given),
    }
}

/// As for getopt_long.
const OPTIONAL_ARGUMENT: i32 = 2;

/// Makes the option known, in every context.
pub(crate) fn register(handle: &Handle<'_>) {
    if let Err(error) = handle.register(&mut declaration()) {
        slurm::error(&format!("--acb is not available: {error}"));
    }
}

/// What Slurm has told a step of the option, before it answers [`given`].
static HEARD: Mutex<Option<String>> = Mutex::new(None);

/// Slurm tells a step's option. The last one counts.
pub(crate) fn hear(value: &str) {
    *HEARD.lock().unwrap_or_else(PoisonError::into_inner) = Some(value.to_owned());
}

/// What was given, in a step's init_post_opt.
pub(crate) fn heard() -> Option<Result<AcbOption, OptionError>> {
    let heard = HEARD.lock().unwrap_or_else(PoisonError::into_inner);
    heard.as_deref().map(AcbOption::parse)
}

/// What was given, on a node; `None`: no `--acb` at all.
pub(crate) fn given(handle: &Handle<'_>) -> Option<Result<AcbOption, OptionError>> {
    handle.option(&mut declaration()).map(|value| AcbOption::parse(&value))
}

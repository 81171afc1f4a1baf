//! Which function answers a callback in which context.

use crate::slurm::{Context, Handle};
use crate::{args, epilog, extern_step, local, option, prolog, second_life, step};
use std::ffi::c_int;

/// A callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Init,
    InitPostOpt,
    JobProlog,
    TaskInit,
    TaskPostFork,
    JobEpilog,
}

impl Hook {
    /// What follows when the plugin itself fails, and what is returned. On a node it is success: anything
    /// else could drain it.
    pub(crate) fn failure(self) -> c_int {
        match self {
            // Slurm would let the task run, and nobody would manage it.
            Self::TaskInit => step::refuse_after_panic(),
            Self::Init | Self::InitPostOpt => match Context::current() {
                Context::Srun | Context::Allocator => -1,
                _ => 0,
            },
            Self::JobProlog | Self::TaskPostFork | Self::JobEpilog => 0,
        }
    }
}

/// Answers a callback.
pub(crate) fn call(hook: Hook, handle: &Handle<'_>, words: &[String]) -> c_int {
    args::remember(words);
    match (hook, Context::current()) {
        (Hook::Init, context) => {
            option::register(handle);
            if context == Context::Srun {
                local::share_gpus_between_steps();
            }
            0
        }
        (Hook::InitPostOpt, context @ (Context::Srun | Context::Allocator)) => {
            if context == Context::Srun {
                local::tell_gpus_per_task();
                local::hand_on_key();
            }
            local::make_key(handle)
        }
        (Hook::InitPostOpt, Context::Step) => step::look_as_root(handle),
        (Hook::JobProlog, _) => prolog::run(handle),
        (Hook::TaskPostFork, Context::Step) => {
            extern_step::run(handle);
            second_life::start(handle)
        }
        (Hook::TaskInit, Context::Step) => step::prepare_task(handle),
        (Hook::JobEpilog, _) => epilog::run(handle),
        _ => 0,
    }
}

/// Answers an option. On a node it is checked where it is needed.
pub(crate) fn option(value: &str, side: option::Side) -> c_int {
    match side {
        option::Side::Local => local::check(value),
        option::Side::Node => {
            option::hear(value);
            0
        }
    }
}

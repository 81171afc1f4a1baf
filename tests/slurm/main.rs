//! slurm-acb on a real Slurm: slurmctld, slurmds and munged of the test's own, jobs of unprivileged
//! users, proctrack linuxproc and cgroup.
//!
//! Owns: what the plugin promises to users and administrators. Does not own: the Slurm
//! ([`acb_tests::lab`]); the scheduler's decisions, which have tests of their own.
//!
//! Needs root, Slurm, munge, and an installation with tests, named by `ACB_PREFIX`. Started by an
//! unprivileged user it says so and passes; started by root it fails for what is missing.

mod cluster_file;
mod comment;
mod ends;
mod environment;
mod faults;
mod guard;
mod help;
mod nodes;
mod plain;
mod stage;
mod steps;
mod submission;
mod tenants;
mod users;

/// Runs each scenario in the two shared labs.
macro_rules! in_both_labs {
    ($($name:ident: $scenario:path,)*) => {
        mod linuxproc {
            $(#[test] fn $name() -> anyhow::Result<()> {
                crate::stage::shared(acb_tests::lab::Proctrack::LinuxProc, $scenario)
            })*
        }
        mod cgroup {
            $(#[test] fn $name() -> anyhow::Result<()> {
                crate::stage::shared(acb_tests::lab::Proctrack::Cgroup, $scenario)
            })*
        }
    };
}

in_both_labs! {
    a_job_without_acb_leaves_no_trace: crate::plain::leaves_no_trace,
    parallel_steps_share: crate::steps::share,
    parallel_steps_share_without_the_environment: crate::steps::share_without_the_environment,
    scancel_leaves_nothing: crate::ends::scancel,
    the_time_limit_leaves_nothing: crate::ends::time_limit,
    requeue_starts_anew: crate::ends::requeue,
    requeue_of_two_nodes_starts_anew: crate::ends::requeue_of_two_nodes,
    a_killed_daemon_comes_back: crate::faults::daemon_is_killed,
    tasks_go_on_without_a_daemon: crate::faults::daemon_and_supervisor_are_killed,
    two_nodes_join: crate::nodes::join,
    a_gang_holds_on_two_nodes: crate::nodes::gang,
    users_are_apart: crate::users::apart,
    a_users_folder_is_no_weapon: crate::users::folder_is_no_weapon,
    a_users_environment_is_no_weapon: crate::users::environment_is_no_weapon,
    the_users_preload_is_kept: crate::environment::preload_is_kept,
    off_is_as_without: crate::environment::off,
    the_key_stays_hidden: crate::environment::key_is_hidden,
    a_limit_of_memory_is_the_gpus_size: crate::environment::memory_is_limited,
    statistics_are_in_the_comment: crate::comment::written,
    a_users_comment_stays: crate::comment::kept,
    wrong_options_are_refused_at_once: crate::submission::wrong_options,
    a_job_without_gpus_is_told: crate::submission::no_gpu,
    a_step_cannot_begin_it: crate::submission::step_of_a_plain_job,
    programs_see_the_gpus_they_are_given: crate::submission::gpus_per_client,
    too_many_gpus_are_told: crate::submission::too_many_gpus,
    salloc_and_its_steps: crate::submission::salloc,
    arrays_and_het_jobs: crate::submission::arrays_and_het_jobs,
}

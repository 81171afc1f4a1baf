//! The SPANK plugin of slurm-acb: the option `--acb` of srun, sbatch and salloc, and what it does.
//!
//! Owns: the option, the job's spec on each node, the start of the job's assigner, the environment
//! of its tasks, and the sweep at its end. Does not own: what the option and the cluster file mean
//! (acb-cluster-conf), and the assigner itself.
//!
//! ```text
//! srun, sbatch, salloc   init            option registered; SLURM_OVERLAP      local
//!                        option          option and cluster file checked       local
//!                        init_post_opt   the job's key made                    local
//! node, root             job_prolog      RUN/NODE/spec/JOBID.toml              prolog
//! extern step, root      task_post_fork  RUN/NODE/JOBID, the assigner          extern_step
//! every step, root       init_post_opt   what task_init cannot see as the user step
//!  of a second life      both of these   spec and assigner, where Slurm ran no  second_life
//!                                        prolog
//! every task, user       task_init       its environment, or a readable error  step
//! node, root             job_epilog      processes, folder and spec removed    epilog
//! ```
//!
//! A job without `--acb` passes through all of this untouched. No callback fails on a node but
//! task_init, because Slurm drains a node for a failure anywhere else.

mod account;
mod args;
mod cgroup;
mod dispatch;
mod epilog;
mod exports;
mod extern_step;
mod launch;
mod library;
mod local;
mod option;
mod plan;
mod process;
mod prolog;
mod ready;
mod records;
mod removal;
mod resources;
mod second_life;
mod slurm;
mod step;
mod sweep;
mod sys;
mod trust;
mod version;
mod whereabouts;

//! What an administrator and a user can set, and what a job is told.
//!
//! Owns: the cluster file ([`SiteConfig`]), the `--acb` option ([`AcbOption`]), the job spec ([`JobSpec`]) that
//! both make together, hostlists, the choice of the controller, ACB's `multinode.toml` ([`Multinode`]), and the
//! names of the files in a job's folder ([`JobFolder`]).
//! Does not own: processes, sockets, Slurm, the scheduler. All of it is pure, but for [`load`](mod@load).
//!
//! A value of these types is right: whatever is read is checked first, and all that is wrong with it is reported
//! at once.
#![forbid(unsafe_code)]

mod diagnostics;
mod election;
mod estimators;
pub mod fields;
mod folder;
mod gang;
mod headroom;
mod hostlist;
mod key;
pub mod load;
mod multinode;
mod option;
mod policy;
mod site;
mod size;
mod spec;
mod tenancy;
mod values;

pub use diagnostics::{ConfigError, Located, Problem, Style, nearest};
pub use election::{CANDIDATE_PORTS, candidate_ports, controller};
pub use estimators::{Decimal, PeakEstimator, PhaseEstimator, Select};
pub use folder::{JobFolder, SOCKET_PATH_MAX, spec_file};
pub use gang::{GangProblem, GangRequest};
pub use headroom::{HEADROOM_GRAMMAR, Headroom, NoHeadroom};
pub use hostlist::{HostlistError, HostlistProblem, MAX_NAMES, compress, expand};
pub use key::{Key, KeyError};
pub use load::{LoadError, Trust};
pub use multinode::{Host, Multinode, Role};
pub use option::{AcbOption, Conflict, KeyHelp, OptionError, OptionProblem, Request, Settings};
pub use policy::{OnFailure, Policy, UnknownName};
pub use site::{
    CommentConfig, DriverPaths, Failure, MemoryConfig, Network, Nodes, Paths, SchedulerConfig,
    SiteConfig,
};
pub use size::{ByteSize, NoSize, SIZE_GRAMMAR};
pub use spec::{JobFacts, JobSpec, PlanError, SpecError};
pub use tenancy::{Name, NameProblem, Priority, PriorityProblem, QueueRule, Share, TenantRule};
pub use values::{AbsolutePath, Environment, Part, PathProblem, VariableProblem};

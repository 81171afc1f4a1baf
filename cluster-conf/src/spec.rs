//! The job spec: all that the assigner of one job on one node has to know, in one file.
//!
//! Owns how it follows from cluster file, option and the job's facts, and its form on disk. Does not own where it
//! lies nor who may read it; it holds the job's key, which leaves this type by [`JobSpec::to_toml`] alone.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::diagnostics::line_and_column;
use crate::election::{candidate_ports, controller};
use crate::estimators::{PeakEstimator, PhaseEstimator};
use crate::folder::{JobFolder, SOCKET_PATH_MAX};
use crate::gang::GangRequest;
use crate::key::Key;
use crate::option::{Conflict, Request, Settings, named};
use crate::policy::{OnFailure, Policy};
use crate::site::{DriverPaths, MemoryConfig, SiteConfig};
use crate::size::ByteSize;
use crate::tenancy::{Name, Priority, QueueRule, TenantRule};
use crate::values::{AbsolutePath, Environment};

/// What the assigner of a job on a node is told.
///
/// Serialising it leaves the key out; only [`JobSpec::to_toml`] writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// Slurm's number of the job.
    pub job_id: u32,
    /// This node.
    pub node: String,
    /// Its position in `nodes`.
    pub node_index: u32,
    /// The job's nodes, in Slurm's order.
    pub nodes: Vec<String>,
    /// The node whose assigner is the controller.
    pub controller: String,
    /// Ports at which the controller may listen, in the order in which they are tried.
    pub candidate_ports: Vec<u16>,
    /// The job's user.
    pub uid: u32,
    /// The job's group.
    pub gid: u32,
    /// The user's home folder, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub home: Option<PathBuf>,
    /// The secret that the job's assigners share.
    #[serde(skip_serializing)]
    pub key: Key,
    /// The scheduling policy.
    pub policy: Policy,
    /// GPUs that each client sees; without it, Slurm's GPUs per task, or else one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpus_per_client: Option<NonZeroU32>,
    /// Quantum, milliseconds.
    pub quantum_ms: NonZeroU32,
    /// Idle time after which a wanted lease is given back, microseconds.
    pub idle_us: u32,
    /// What a CUDA context takes, MiB.
    pub context_mib: u32,
    /// How often the head of the queue may be bypassed.
    pub max_bypass: u32,
    /// How long the head of the queue may be bypassed, seconds.
    pub max_bypass_s: u32,
    /// After so long, used GPU time counts half, seconds; 0: it does not count.
    #[serde(default)]
    pub fair_share_half_life_s: u32,
    /// GPU time that who comes back is owed at most, seconds.
    #[serde(default)]
    pub fair_share_credit_s: u32,
    /// How long phases take.
    #[serde(default)]
    pub estimator: PhaseEstimator,
    /// What memory clients without a limit will have.
    #[serde(default)]
    pub peaks: PeakEstimator,
    /// Priority of clients whose step names none.
    #[serde(default)]
    pub priority: Priority,
    /// Queue of clients whose step names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<Name>,
    /// Tenant of clients whose step names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Name>,
    /// Device memory that each client may have on each of its GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<ByteSize>,
    /// How device memory is shared.
    #[serde(default)]
    pub memory: MemoryConfig,
    /// Gang of clients whose step names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gang: Option<GangRequest>,
    /// What clients do without an assigner.
    pub on_failure: OnFailure,
    /// Whether programs that open the driver by a path are led to the interposer.
    #[serde(default)]
    pub audit: bool,
    /// How long they wait before that, milliseconds.
    pub grace_ms: u32,
    /// How long the start of the job waits for the assigner, seconds.
    pub ready_timeout_s: NonZeroU32,
    /// Slurm's indices of the job's GPUs on this node; empty means all that NVML shows.
    pub gpus: Vec<u32>,
    /// The job's folder on this node.
    pub run_folder: JobFolder,
    /// Folder of the programs.
    pub bin_dir: AbsolutePath,
    /// Folder of the interposer.
    pub lib_dir: AbsolutePath,
    /// Whether statistics go to the job's comment.
    pub comment_enabled: bool,
    /// Slurm's configuration, for the tools that the assigner runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slurm_conf: Option<PathBuf>,
    /// The real driver.
    #[serde(default)]
    pub driver: DriverPaths,
    /// Where the nodes reach each other, by node.
    pub addresses: BTreeMap<String, String>,
    /// Set in the assigner and in the tasks.
    #[serde(default)]
    pub environment: Environment,
    /// The named queues.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<QueueRule>,
    /// The tenants with shares of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tenants: Vec<TenantRule>,
}

/// What Slurm says of a job on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobFacts {
    /// Number of the job.
    pub job_id: u32,
    /// This node.
    pub node: String,
    /// The job's nodes, in Slurm's order.
    pub nodes: Vec<String>,
    /// The job's user.
    pub uid: u32,
    /// The job's group.
    pub gid: u32,
    /// The user's home folder, where it is known.
    pub home: Option<PathBuf>,
    /// The job's key, made where the job begins.
    pub key: Key,
    /// Indices of the job's GPUs on this node; empty: all.
    pub gpus: Vec<u32>,
    /// Slurm's configuration file.
    pub slurm_conf: Option<PathBuf>,
}

/// Why there is no spec for a job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// This node is not of the job.
    #[error("node `{node}` is not in the node list of job {job_id} ({nodes})")]
    NotOfTheJob {
        /// This node.
        node: String,
        /// The job.
        job_id: u32,
        /// Its nodes, compressed.
        nodes: String,
    },
    /// Socket paths would be too long.
    #[error("the sockets under {} would have paths of {length} bytes, but {SOCKET_PATH_MAX} is the most: shorten `paths.run_dir` in the cluster file", folder.display())]
    SocketPath {
        /// The job's folder.
        folder: PathBuf,
        /// Length of the longest path.
        length: usize,
    },
    /// Option and cluster file cannot both be followed.
    #[error(transparent)]
    Conflict(#[from] Conflict),
}

/// Why a text is no job spec. It never repeats a line of the text, because the key stands there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}")]
pub struct SpecError {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

impl JobSpec {
    /// The spec of a job on a node. Every node of the job, given the same cluster file and option, arrives at the
    /// same controller and ports.
    pub fn plan(site: &SiteConfig, request: &Request, facts: JobFacts) -> Result<Self, PlanError> {
        let settings = Settings::settle(site, request)?;
        let not_of_the_job = || PlanError::NotOfTheJob {
            node: facts.node.clone(),
            job_id: facts.job_id,
            nodes: crate::hostlist::compress(&facts.nodes),
        };
        let node_index =
            facts.nodes.iter().position(|node| *node == facts.node).ok_or_else(not_of_the_job)?;
        let controller = controller(&facts.nodes, site.controller.as_deref())
            .ok_or_else(not_of_the_job)?
            .to_owned();
        let run_folder = JobFolder::new(&site.paths.run_dir, &facts.node, facts.job_id);
        let length = run_folder.longest_socket();
        if length > SOCKET_PATH_MAX {
            return Err(PlanError::SocketPath { folder: run_folder.path().to_owned(), length });
        }
        let addresses = facts
            .nodes
            .iter()
            .map(|node| (node.clone(), site.nodes.address(node).to_owned()))
            .collect();
        Ok(JobSpec {
            job_id: facts.job_id,
            node_index: u32::try_from(node_index).expect("a job has fewer than 2^32 nodes"),
            controller,
            candidate_ports: candidate_ports(facts.job_id, site.network).to_vec(),
            uid: facts.uid,
            gid: facts.gid,
            home: facts.home,
            key: facts.key,
            policy: settings.policy,
            gpus_per_client: settings.gpus,
            quantum_ms: settings.quantum_ms,
            idle_us: site.scheduler.idle_us,
            context_mib: site.scheduler.context_mib,
            max_bypass: site.scheduler.max_bypass,
            max_bypass_s: site.scheduler.max_bypass_s,
            fair_share_half_life_s: site.scheduler.fair_share_half_life_s,
            fair_share_credit_s: site.scheduler.fair_share_credit_s,
            estimator: site.scheduler.estimator,
            peaks: site.scheduler.peaks,
            priority: settings.priority,
            queue: settings.queue,
            tenant: settings.tenant,
            memory_limit: settings.memory,
            memory: site.memory.clone(),
            gang: settings.gang,
            on_failure: settings.on_failure,
            audit: settings.audit,
            grace_ms: site.failure.grace_ms,
            ready_timeout_s: site.failure.ready_timeout_s,
            gpus: facts.gpus,
            run_folder,
            bin_dir: site.paths.bin_dir.clone(),
            lib_dir: site.paths.lib_dir.clone(),
            comment_enabled: site.comment.enabled,
            slurm_conf: facts.slurm_conf,
            driver: site.driver.clone(),
            addresses,
            environment: site.environment.clone(),
            queues: site.queues.clone(),
            tenants: site.tenants.clone(),
            node: facts.node,
            nodes: facts.nodes,
        })
    }

    /// Reads a spec.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let spec: JobSpec = toml::from_str(text).map_err(|error| {
            let (line, column) = line_and_column(text, error.span().map_or(0, |span| span.start));
            SpecError { line, column, message: error.message().to_owned() }
        })?;
        let wrong = |message: String| SpecError { line: 1, column: 1, message };
        if spec.nodes.get(spec.node_index as usize) != Some(&spec.node) {
            return Err(wrong(format!(
                "`nodes` does not have `{}` at node_index {}",
                spec.node, spec.node_index
            )));
        }
        if !spec.nodes.contains(&spec.controller) {
            return Err(wrong(format!("the controller `{}` is not in `nodes`", spec.controller)));
        }
        if let Some(node) = spec.nodes.iter().find(|node| !spec.addresses.contains_key(*node)) {
            return Err(wrong(format!("`addresses` has none for `{node}`")));
        }
        if spec.candidate_ports.is_empty() {
            return Err(wrong("`candidate_ports` is empty".to_owned()));
        }
        Ok(spec)
    }

    /// The spec as a text with the key in it: for files that nobody else can read.
    pub fn to_toml(&self) -> String {
        let mut table = toml::Table::try_from(self).expect("a spec is a table of plain values");
        table.insert("key".to_owned(), toml::Value::String(self.key.expose_hex()));
        table.to_string()
    }

    /// Whether a step can have the queue and the tenant that its own option names.
    pub fn knows(&self, request: &Request) -> Result<(), Conflict> {
        named(&self.queues, &self.tenants, request).map(|_| ())
    }

    /// Whose quota a client counts for: what its step or its job named; else the first of `candidates` (account, user)
    /// that is listed.
    pub fn tenant_of(&self, request: &Request, candidates: &[&str]) -> Option<Name> {
        let listed = |name: &&str| self.tenants.iter().find(|tenant| tenant.name.as_str() == *name);
        let derived = || candidates.iter().find_map(listed).map(|tenant| tenant.name.clone());
        request.tenant.clone().or_else(|| self.tenant.clone()).or_else(derived)
    }

    /// Whether this node's assigner is the controller.
    pub fn is_controller(&self) -> bool {
        self.node == self.controller
    }

    /// Where the controller's node is reached.
    pub fn controller_address(&self) -> &str {
        self.addresses.get(&self.controller).map_or(&self.controller, String::as_str)
    }
}

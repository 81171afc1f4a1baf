//! Reading the cluster file: text in, a [`SiteConfig`] or every problem out.
//!
//! Owns the rules between keys. Does not own the rules of single values, nor the report.

mod nodes;
mod tenancy;

use std::num::NonZeroU32;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{
    CommentConfig, DriverPaths, Failure, MemoryConfig, Network, Nodes, Paths, SchedulerConfig,
    SiteConfig,
};
use crate::diagnostics::Problem;
use crate::election::CANDIDATE_PORTS;
use crate::estimators::{PeakEstimator, PhaseEstimator};
use crate::fields::{
    Fault, Fields, boolean, choice, document, headroom, integer, share, size, string,
};
use crate::folder::{SOCKET_PATH_MAX, longest_socket};
use crate::option::MAX_QUANTUM_MS;
use crate::policy::{OnFailure, Policy};
use crate::values::{AbsolutePath, Environment, PathProblem};

/// A cluster file and the keys that it could have had, as `section.key`.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) site: SiteConfig,
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the test of the reference page asks for it")
    )]
    pub(super) keys: Vec<String>,
}

pub(super) fn site(text: &str) -> Result<Read, Vec<Problem>> {
    let document = document(text)?;
    let mut problems = Vec::new();
    let reader = &mut Reader { problems: &mut problems, keys: Vec::new() };
    let site = reader.file(text, document.get_ref());
    let keys = std::mem::take(&mut reader.keys);
    if problems.is_empty() { Ok(Read { site, keys }) } else { Err(problems) }
}

/// Node names whose length nobody told: room for this many characters must be left in socket paths.
const ASSUMED_NODE_NAME: usize = 16;

struct Reader<'p> {
    problems: &'p mut Vec<Problem>,
    keys: Vec<String>,
}

impl Reader<'_> {
    fn file(&mut self, text: &str, table: &DeTable<'_>) -> SiteConfig {
        let mut top = Fields::new("", text, table);
        let (paths, run_dir_span) = self.paths(&mut top);
        let driver = self.driver(&mut top);
        let environment = self.environment(&mut top);
        let scheduler = self.scheduler(&mut top);
        let queues = self.queues(&mut top);
        let tenants = self.tenants(&mut top);
        let memory = self.memory(&mut top);
        let failure = self.failure(&mut top);
        let network = self.network(&mut top);
        let before = self.problems.len();
        let nodes = self.nodes(&mut top);
        // With a faulty list nobody knows what it would have held.
        let listed = (self.problems.len() == before && !nodes.is_empty()).then_some(&nodes);
        let controller = self.controller(&mut top, listed);
        let comment = self.comment(&mut top);
        self.socket_paths(&paths, run_dir_span, &nodes);
        self.finish(top);
        SiteConfig {
            paths,
            driver,
            environment,
            scheduler,
            queues,
            tenants,
            memory,
            failure,
            network,
            controller,
            nodes,
            comment,
        }
    }

    fn finish(&mut self, fields: Fields<'_, '_>) {
        self.keys.extend(fields.finish(self.problems));
    }

    fn paths(&mut self, top: &mut Fields<'_, '_>) -> (Paths, Option<Range<usize>>) {
        let defaults = Paths::default();
        let Some(mut fields) = top.section("paths", self.problems) else { return (defaults, None) };
        let run_dir = fields.read("run_dir", self.problems, absolute);
        let bin_dir = fields.read("bin_dir", self.problems, absolute);
        let lib_dir = fields.read("lib_dir", self.problems, absolute);
        self.finish(fields);
        let span = run_dir.as_ref().map(Spanned::span);
        let paths = Paths {
            run_dir: or(run_dir, defaults.run_dir),
            bin_dir: or(bin_dir, defaults.bin_dir),
            lib_dir: or(lib_dir, defaults.lib_dir),
        };
        (paths, span)
    }

    /// Sockets lie under the run folder, and a socket's path is short.
    fn socket_paths(&mut self, paths: &Paths, span: Option<Range<usize>>, nodes: &Nodes) {
        let longest = nodes.names().map(str::len).max();
        let length = longest_socket(paths.run_dir.as_str(), longest.unwrap_or(ASSUMED_NODE_NAME));
        if length <= SOCKET_PATH_MAX {
            return;
        }
        // Only a very long node name can do this without a run_dir in the file.
        let span = span.unwrap_or(0..0);
        let excess = length - SOCKET_PATH_MAX;
        self.problems.push(
            Problem::new(
                span,
                format!("`paths.run_dir` is {excess} characters too long for the sockets that lie under it"),
            )
            .help(format!(
                "RUN_DIR/NODE/JOBID/client.sock may have {SOCKET_PATH_MAX} bytes; with a node name of {} it has {length}",
                longest.unwrap_or(ASSUMED_NODE_NAME),
            )),
        );
    }

    fn driver(&mut self, top: &mut Fields<'_, '_>) -> DriverPaths {
        let Some(mut fields) = top.section("driver", self.problems) else {
            return DriverPaths::default();
        };
        let cuda = fields.read("cuda", self.problems, absolute).map(Spanned::into_inner);
        let nvml = fields.read("nvml", self.problems, absolute).map(Spanned::into_inner);
        self.finish(fields);
        DriverPaths { cuda, nvml }
    }

    fn environment(&mut self, top: &mut Fields<'_, '_>) -> Environment {
        let mut environment = Environment::default();
        for (name, key_span, value) in
            top.section("environment", self.problems).iter().flat_map(Fields::entries)
        {
            let shown = name.escape_debug();
            match string(value.get_ref()) {
                Err(fault) => {
                    let mut problem = fault.at(value.span());
                    problem.message = format!("`environment.{shown}`: {}", problem.message);
                    self.problems.push(problem);
                }
                Ok(text) => {
                    if let Err(problem) = environment.insert(name, &text) {
                        self.problems.push(Problem::new(
                            key_span,
                            format!("`environment.{shown}`: {problem}"),
                        ));
                    }
                }
            }
        }
        environment
    }

    fn scheduler(&mut self, top: &mut Fields<'_, '_>) -> SchedulerConfig {
        let defaults = SchedulerConfig::default();
        let Some(mut fields) = top.section("scheduler", self.problems) else { return defaults };
        let policy =
            fields.read("policy", self.problems, |v| choice(v, &Policy::ALL, Policy::name));
        let quantum = fields
            .read("quantum_ms", self.problems, |v| positive(v, MAX_QUANTUM_MS, "milliseconds"));
        let idle = fields
            .read("idle_us", self.problems, |v| integer::<u32>(v, 0, 10_000_000, "microseconds"));
        let context_mib =
            fields.read("context_mib", self.problems, |v| integer::<u32>(v, 0, 65_536, "MiB"));
        let max_bypass =
            fields.read("max_bypass", self.problems, |v| integer::<u32>(v, 0, 1_000_000, ""));
        let max_bypass_s =
            fields.read("max_bypass_s", self.problems, |v| integer::<u32>(v, 0, 86_400, "seconds"));
        let mut seconds =
            |key, most| fields.read(key, self.problems, |v| integer::<u32>(v, 0, most, "seconds"));
        let half_life = seconds("fair_share_half_life_s", 31_536_000);
        let credit = seconds("fair_share_credit_s", 86_400);
        let estimator = fields.section("estimator", self.problems).map(|mut fields| {
            let estimator = PhaseEstimator::read(&mut fields, self.problems);
            self.finish(fields);
            estimator
        });
        let peaks = fields.section("peaks", self.problems).map(|mut fields| {
            let peaks = PeakEstimator::read(&mut fields, self.problems);
            self.finish(fields);
            peaks
        });
        self.finish(fields);
        let spans = (idle.as_ref().map(Spanned::span), quantum.as_ref().map(Spanned::span));
        let scheduler = SchedulerConfig {
            policy: or(policy, defaults.policy),
            quantum_ms: or(quantum, defaults.quantum_ms),
            idle_us: or(idle, defaults.idle_us),
            context_mib: or(context_mib, defaults.context_mib),
            max_bypass: or(max_bypass, defaults.max_bypass),
            max_bypass_s: or(max_bypass_s, defaults.max_bypass_s),
            fair_share_half_life_s: or(half_life, defaults.fair_share_half_life_s),
            fair_share_credit_s: or(credit, defaults.fair_share_credit_s),
            estimator: estimator.unwrap_or(defaults.estimator),
            peaks: peaks.unwrap_or(defaults.peaks),
        };
        self.idle_within_quantum(&scheduler, spans);
        scheduler
    }

    fn idle_within_quantum(
        &mut self,
        scheduler: &SchedulerConfig,
        (idle, quantum): (Option<Range<usize>>, Option<Range<usize>>),
    ) {
        let quantum_us = u64::from(scheduler.quantum_ms.get()) * 1000;
        if u64::from(scheduler.idle_us) <= quantum_us {
            return;
        }
        let message = format!(
            "`scheduler.idle_us` ({} µs) is longer than the quantum ({quantum_us} µs), so that no idle GPU would be given back before its end",
            scheduler.idle_us
        );
        let problem = match (idle, quantum) {
            (Some(idle), Some(quantum)) => {
                Problem::new(idle, message).related(quantum, "the quantum")
            }
            (Some(place), None) | (None, Some(place)) => Problem::new(place, message),
            (None, None) => unreachable!("the defaults agree"),
        };
        self.problems.push(problem.help("idle_us is in microseconds, quantum_ms in milliseconds"));
    }

    fn memory(&mut self, top: &mut Fields<'_, '_>) -> MemoryConfig {
        let defaults = MemoryConfig::default();
        let Some(mut fields) = top.section("memory", self.problems) else { return defaults };
        let pager = fields.read("pager", self.problems, boolean);
        let chunk_mib = fields.read("chunk_mib", self.problems, |v| {
            let mib = integer::<u32>(v, 2, 1024, "MiB")?;
            match mib.is_multiple_of(2) {
                true => Ok(mib),
                false => Err(Fault::new(format!("{mib} is odd"))
                    .help("GPUs map memory in pages of 2 MiB: a multiple of 2")),
            }
        });
        let host_share = fields.read("host_share", self.problems, share);
        let host_budget = fields.read("host_budget", self.problems, size);
        let switch_share = fields.read("switch_share", self.problems, |v| {
            let share = share(v)?;
            match share.value() < 1.0 {
                true => Ok(share),
                false => Err(Fault::new("nothing would be left for work").help("less than 1")),
            }
        });
        let headroom = fields.read("headroom", self.problems, headroom);
        let compare = fields.read("compare", self.problems, boolean);
        self.finish(fields);
        MemoryConfig {
            pager: or(pager, defaults.pager),
            chunk_mib: or(chunk_mib, defaults.chunk_mib),
            host_share: or(host_share, defaults.host_share),
            host_budget: host_budget.map(Spanned::into_inner),
            switch_share: or(switch_share, defaults.switch_share),
            headroom: or(headroom, defaults.headroom),
            compare: or(compare, defaults.compare),
        }
    }

    fn failure(&mut self, top: &mut Fields<'_, '_>) -> Failure {
        let defaults = Failure::default();
        let Some(mut fields) = top.section("failure", self.problems) else { return defaults };
        let on_failure = fields
            .read("on_failure", self.problems, |v| choice(v, &OnFailure::ALL, OnFailure::name));
        let grace = fields
            .read("grace_ms", self.problems, |v| integer::<u32>(v, 0, 86_400_000, "milliseconds"));
        let ready = fields.read("ready_timeout_s", self.problems, |v| positive(v, 600, "seconds"));
        self.finish(fields);
        Failure {
            on_failure: or(on_failure, defaults.on_failure),
            grace_ms: or(grace, defaults.grace_ms),
            ready_timeout_s: or(ready, defaults.ready_timeout_s),
        }
    }

    fn network(&mut self, top: &mut Fields<'_, '_>) -> Network {
        let defaults = Network::default();
        let Some(mut fields) = top.section("network", self.problems) else { return defaults };
        let fewest = i64::from(CANDIDATE_PORTS);
        let base = fields.read("base_port", self.problems, |v| integer::<u16>(v, 1024, 65_535, ""));
        let ports = fields.read("ports", self.problems, |v| integer::<u16>(v, fewest, 64_512, ""));
        self.finish(fields);
        let base_span = base.as_ref().map(Spanned::span);
        let ports_span = ports.as_ref().map(Spanned::span);
        let base = or(base, defaults.base_port);
        let ports = or(ports, defaults.ports);
        Network::new(base, ports).unwrap_or_else(|| {
            let last = u32::from(base) + u32::from(ports) - 1;
            let place = ports_span.or(base_span.clone()).unwrap_or(0..0);
            let mut problem = Problem::new(
                place.clone(),
                format!("the ports {base} to {last} go beyond 65535, the last there is"),
            )
            .help(format!(
                "with `base_port = {base}`, `ports` can be at most {}",
                65_536 - u32::from(base)
            ));
            if let Some(span) = base_span.filter(|span| *span != place) {
                problem = problem.related(span, "they begin here");
            }
            self.problems.push(problem);
            defaults
        })
    }

    fn comment(&mut self, top: &mut Fields<'_, '_>) -> CommentConfig {
        let Some(mut fields) = top.section("comment", self.problems) else {
            return CommentConfig::default();
        };
        let enabled = fields.read("enabled", self.problems, boolean);
        self.finish(fields);
        CommentConfig { enabled: or(enabled, true) }
    }
}

fn or<T>(value: Option<Spanned<T>>, default: T) -> T {
    value.map_or(default, Spanned::into_inner)
}

fn positive(value: &DeValue<'_>, high: u32, unit: &str) -> Result<NonZeroU32, Fault> {
    let number = integer::<u32>(value, 1, i64::from(high), unit)?;
    Ok(NonZeroU32::new(number).expect("at least 1"))
}

fn absolute(value: &DeValue<'_>) -> Result<AbsolutePath, Fault> {
    AbsolutePath::new(string(value)?).map_err(|problem| {
        let fault = Fault::new(problem.to_string());
        match problem {
            PathProblem::Relative | PathProblem::Upwards => {
                fault.help("write the whole path from the root, beginning with `/`")
            }
            PathProblem::Control => fault,
        }
    })
}

//! `[scheduler]`, `[[tenant]]`, `[[queue]]` and `[[node]]`: the cluster.

use std::collections::HashSet;
use std::ops::Range;
use std::time::Duration;

use acb_cluster_conf::fields::{Fields, boolean, choice, integer, number, string};
use acb_cluster_conf::{
    MemoryConfig, PeakEstimator, PhaseEstimator, Policy as PolicyName, SchedulerConfig,
};
use acb_core::{
    Backfill, Config, FairShare, GpuConfig, Policy, Priority, QueueConfig, TenantConfig,
};
use toml::Spanned;

use super::clients::{numbers, priority, rows};
use super::limits::PlacedLimit;
use super::{PlacedNode, Reader, gibibytes, milliseconds, or, seconds};
use crate::scenario::{Link, Node};
use crate::terms;

/// Most nodes and GPUs of a scenario.
const MOST_NODES: usize = 10_000;

impl Reader<'_> {
    pub(super) fn nodes(&mut self, top: &mut Fields<'_, '_>) -> Vec<PlacedNode> {
        let mut template = self.scheduler(top);
        template.queues = self.queues(top);
        let tenants = self.tenants(top);
        template.tenants = tenants.iter().map(|(tenant, _)| tenant.clone()).collect();
        let mut nodes: Vec<PlacedNode> = Vec::new();
        let mut names = HashSet::new();
        for (place, mut fields) in top.sections("node", self.problems) {
            let name = fields.read("name", self.problems, string);
            let count = fields.read("count", self.problems, |v| integer::<usize>(v, 1, 10_000, ""));
            let gpus = fields.read("gpus", self.problems, |v| integer::<usize>(v, 1, 1024, ""));
            let memory = fields.read("memory_gib", self.problems, gibibytes);
            let switch = fields.read("switch_ms", self.problems, milliseconds);
            let host = fields.read("host_gib", self.problems, gibibytes);
            let bandwidth =
                fields.read("link_gb_s", self.problems, |v| number(v, 0.001, 1e5, "GB/s"));
            let duplex = fields.read("duplex", self.problems, boolean);
            let chunk =
                fields.read("chunk_mib", self.problems, |v| integer::<u64>(v, 1, 65_536, "MiB"));
            let links = fields.read("links", self.problems, numbers);
            let distances = fields.read("distances", self.problems, rows);
            fields.finish(self.problems);
            let memory = match memory {
                Some(memory) if *memory.get_ref() == 0 => {
                    self.say(memory.span(), "GPUs without memory can run nothing");
                    1
                }
                memory => or(memory, 80 << 30),
            };
            let gpus = vec![GpuConfig { memory }; or(gpus, 1)];
            let mut config = Config { gpus, ..template.clone() };
            if let Some(host) = host {
                config.memory.host_budget = host.into_inner();
            }
            if let Some(links) = links {
                if links.get_ref().len() != config.gpus.len() {
                    let message = format!(
                        "{} links are named for {} GPUs",
                        links.get_ref().len(),
                        config.gpus.len()
                    );
                    self.say(links.span(), message)
                        .help("name one for each GPU, as in [0, 0, 1, 1]");
                } else {
                    config.topology.links = links.into_inner();
                }
            }
            if let Some(distances) = distances {
                let (all, rows) = (config.gpus.len(), distances.get_ref());
                if rows.len() != all || rows.iter().any(|row| row.len() != all) {
                    let message = format!("{all} GPUs need {all} rows of {all} distances");
                    self.say(distances.span(), message).help("as in [[0, 1], [1, 0]] for two GPUs");
                } else {
                    config.topology.distances = distances.into_inner();
                }
            }
            let defaults = Link::default();
            let link = Link {
                bytes_per_s: bandwidth.map_or(defaults.bytes_per_s, |gb| gb.into_inner() * 1e9),
                duplex: or(duplex, defaults.duplex),
                chunk: chunk.map_or(defaults.chunk, |mib| mib.into_inner() << 20),
            };
            let switch = or(switch, Duration::ZERO);
            let name = or(name, "node".to_owned());
            let count = or(count, 1);
            for number in 0..count.min(MOST_NODES) {
                let name = if count == 1 { name.clone() } else { format!("{name}-{number}") };
                if !names.insert(name.clone()) {
                    self.say(place.clone(), format!("there are two nodes named \"{name}\""))
                        .help("give each [[node]] a `name`");
                    break;
                }
                let node = Node { name, config: config.clone(), switch, link };
                nodes.push(PlacedNode { node, place: place.clone() });
            }
        }
        self.guarantees(&tenants, &nodes);
        if nodes.len() > MOST_NODES {
            let message =
                format!("{} nodes are too many; {MOST_NODES} can be simulated", nodes.len());
            self.say(nodes[MOST_NODES].place.clone(), message);
        } else if nodes.is_empty() && self.problems.is_empty() {
            self.say(0..0, "there is no node").help("add [[node]] with `gpus = 1`");
        }
        nodes
    }

    /// What every node's scheduler is told. Keys that the cluster file has too have the same names and defaults.
    fn scheduler(&mut self, top: &mut Fields<'_, '_>) -> Config {
        let mut config = Config::new(Vec::new(), Policy::GpuAffinity);
        let defaults = SchedulerConfig::default();
        config.quantum = Duration::from_millis(defaults.quantum_ms.get().into());
        config.max_bypass = defaults.max_bypass;
        config.max_bypass_time = Duration::from_secs(defaults.max_bypass_s.into());
        config.switch_share = MemoryConfig::default().switch_share.value();
        let Some(mut fields) = top.section("scheduler", self.problems) else { return config };
        let policy =
            fields.read("policy", self.problems, |v| choice(v, &PolicyName::ALL, PolicyName::name));
        let quantum = fields.read("quantum_ms", self.problems, |v| {
            integer::<u64>(v, 1, 86_400_000, "milliseconds")
        });
        let drain = fields.read("drain_s", self.problems, seconds);
        let backfill = fields.read("backfill", self.problems, boolean);
        let max_bypass =
            fields.read("max_bypass", self.problems, |v| integer::<u32>(v, 0, 1_000_000, ""));
        let max_bypass_s =
            fields.read("max_bypass_s", self.problems, |v| integer::<u64>(v, 0, 86_400, "seconds"));
        config.policy = terms::policy(or(policy, PolicyName::GpuAffinity));
        if let Some(quantum) = quantum {
            config.quantum = Duration::from_millis(quantum.into_inner());
        }
        match drain {
            Some(drain) if drain.get_ref().is_zero() => {
                self.say(drain.span(), "nobody stops at once: `drain_s` must be above 0");
            }
            drain => config.drain = or(drain, config.drain),
        }
        if !or(backfill, true) {
            config.backfill = Backfill::Off;
        }
        config.max_bypass = or(max_bypass, config.max_bypass);
        if let Some(limit) = max_bypass_s {
            config.max_bypass_time = Duration::from_secs(limit.into_inner());
        }
        let switch_share =
            fields.read("switch_share", self.problems, |v| number(v, 0.001, 0.999, ""));
        config.switch_share = or(switch_share, config.switch_share);
        let half_life = fields.read("fair_share_half_life_s", self.problems, seconds);
        let credit = fields.read("fair_share_credit_s", self.problems, seconds);
        config.fair_share = match (half_life, credit) {
            (Some(half_life), credit) => {
                if half_life.get_ref().is_zero() {
                    self.say(half_life.span(), "with a half-life of 0 no used time would count")
                        .help("leave it out, or give it seconds");
                }
                let credit = or(credit, Duration::ZERO);
                Some(FairShare { half_life: half_life.into_inner(), credit })
            }
            (None, Some(credit)) => {
                self.say(credit.span(), "there is no fair share to give credit in")
                    .help("add `fair_share_half_life_s`");
                None
            }
            (None, None) => None,
        };
        if let Some(mut fields) = fields.section("estimator", self.problems) {
            config.estimator = terms::phases(&PhaseEstimator::read(&mut fields, self.problems));
            fields.finish(self.problems);
        }
        if let Some(mut fields) = fields.section("peaks", self.problems) {
            config.peaks = terms::peaks(&PeakEstimator::read(&mut fields, self.problems));
            fields.finish(self.problems);
        }
        fields.finish(self.problems);
        config
    }

    fn tenants(&mut self, top: &mut Fields<'_, '_>) -> Vec<(TenantConfig, Range<usize>)> {
        let mut tenants: Vec<(TenantConfig, Range<usize>)> = Vec::new();
        for (place, mut fields) in top.sections("tenant", self.problems) {
            let name = fields.read("name", self.problems, string);
            let guarantee =
                fields.read("guarantee", self.problems, |v| integer::<u32>(v, 0, 1024, "GPUs"));
            let limit = fields.read("limit", self.problems, |v| integer::<u32>(v, 1, 1024, "GPUs"));
            let weight =
                fields.read("weight", self.problems, |v| integer::<u32>(v, 1, 1_000_000, ""));
            fields.finish(self.problems);
            let name = or(name, String::new());
            if let Some((_, other)) = tenants.iter().find(|(other, _)| other.name == name) {
                let other = other.clone();
                self.say(place.clone(), format!("there are two tenants named \"{name}\""))
                    .related(other, "the other one");
            }
            let guarantee_place = guarantee.as_ref().map_or(place, Spanned::span);
            let guarantee = or(guarantee, 0);
            if let Some(limit) = &limit
                && *limit.get_ref() < guarantee
            {
                self.say(
                    limit.span(),
                    format!("tenant \"{name}\" is limited to less than it is guaranteed"),
                )
                .related(guarantee_place.clone(), "its guarantee");
            }
            if let Some(limit) = &limit {
                self.limits.push(PlacedLimit::new("tenant", &name, limit));
            }
            let limit = limit.map(Spanned::into_inner);
            let tenant = TenantConfig { name, guarantee, limit, weight: or(weight, 1) };
            tenants.push((tenant, guarantee_place));
        }
        tenants
    }

    /// What is guaranteed must be there, on every node.
    fn guarantees(&mut self, tenants: &[(TenantConfig, Range<usize>)], nodes: &[PlacedNode]) {
        let fewest = nodes.iter().min_by_key(|node| node.node.config.gpus.len());
        let Some(PlacedNode { node, place }) = fewest else { return };
        let (mut sum, has) = (0, node.config.gpus.len());
        for (tenant, guarantee) in tenants {
            sum += tenant.guarantee as usize;
            if sum > has {
                let message = format!(
                    "the guarantees up to here are {sum} GPUs, but node \"{}\" has {has}",
                    node.name
                );
                self.say(guarantee.clone(), message).related(place.clone(), "this node");
                return;
            }
        }
    }

    fn queues(&mut self, top: &mut Fields<'_, '_>) -> Vec<QueueConfig> {
        let mut queues: Vec<QueueConfig> = Vec::new();
        for (place, mut fields) in top.sections("queue", self.problems) {
            let name = fields.read("name", self.problems, string);
            let priority = fields.read("priority", self.problems, priority);
            let policy = fields
                .read("policy", self.problems, |v| choice(v, &PolicyName::ALL, PolicyName::name));
            let max_gpus =
                fields.read("max_gpus", self.problems, |v| integer::<u32>(v, 1, 1024, "GPUs"));
            let max_clients =
                fields.read("max_clients", self.problems, |v| integer::<u32>(v, 1, 1_000_000, ""));
            fields.finish(self.problems);
            let name = or(name, String::new());
            if queues.iter().any(|other| other.name == name) {
                self.say(place, format!("there are two queues named \"{name}\""));
            }
            if let Some(limit) = &max_gpus {
                self.limits.push(PlacedLimit::new("queue", &name, limit));
            }
            queues.push(QueueConfig {
                name,
                priority: or(priority, Priority::default()),
                policy: policy.map(|policy| terms::policy(policy.into_inner())),
                max_gpus: max_gpus.map(Spanned::into_inner),
                max_clients: max_clients.map(Spanned::into_inner),
            });
        }
        queues
    }
}

//! `[[client]]`: groups of clients that are alike.

use std::ops::Range;
use std::time::Duration;

use acb_cluster_conf::fields::{Fault, Fields, boolean, choice, integer, kind, number, string};
use acb_cluster_conf::nearest;
use acb_core::gang::{GangName, GangSpec};
use acb_core::{Eligible, Gpu, Priority};
use toml::Spanned;
use toml::de::DeValue;

use super::gangs::Gangs;
use super::{PlacedNode, Reader, gibibytes, microseconds, milliseconds, or, seconds};
use crate::random::{Family, Lengths, Random};
use crate::scenario::{Client, Expectation, Release, Work};

/// Most clients of a scenario.
const MOST_CLIENTS: usize = 1_000_000;

impl Reader<'_> {
    pub(super) fn clients(
        &mut self,
        top: &mut Fields<'_, '_>,
        nodes: &[PlacedNode],
        stops: bool,
    ) -> (Vec<String>, Vec<Client>) {
        let (mut groups, mut clients) = (Vec::new(), Vec::new());
        let mut gangs = Gangs::default();
        let sections = top.sections("client", self.problems);
        if sections.is_empty() && self.problems.is_empty() {
            self.say(0..0, "there is no client").help("add [[client]] with `cpu_s` and `gpu_s`");
        }
        for (place, mut fields) in sections {
            let group = groups.len();
            let name = fields.read("name", self.problems, string);
            let name = or(name, format!("client{group}"));
            if groups.contains(&name) {
                self.say(
                    place.clone(),
                    format!("there are two groups of clients named \"{name}\""),
                )
                .help("give each [[client]] a `name`");
            }
            let count =
                fields.read("count", self.problems, |v| integer::<usize>(v, 1, 1_000_000, ""));
            let node = self.node_of(&mut fields, nodes);
            let width = self.width(&mut fields, &place, nodes, node);
            let gpus = *width.get_ref();
            let eligible = self.eligible(&mut fields, gpus, nodes, node);
            let bound = fields.read("bound", self.problems, boolean);
            let bound = or(bound, true);
            let priority = fields.read("priority", self.problems, priority);
            let tenant = self.tenant_of(&mut fields, nodes);
            let queue = self.queue_of(&mut fields, nodes);
            self.standing(&width, &tenant, &queue, nodes, node);
            let (memory, read_only, memory_limit) = self.memory(&mut fields, nodes, node, bound);
            let gang = fields.read("gang", self.problems, string);
            let work = self.work(&mut fields, &place, stops);
            let expectation = fields.read("expects", self.problems, expectation);
            let release = self.release(&mut fields, bound);
            let kernel = fields.read("kernel_ms", self.problems, milliseconds);
            let count = or(count, 1);
            if clients.len() + count > MOST_CLIENTS {
                self.say(
                    place.clone(),
                    format!("more than {MOST_CLIENTS} clients cannot be simulated"),
                );
                break;
            }
            let arrivals = self.arrivals(&mut fields, group, count);
            fields.finish(self.problems);
            let kernel = or(kernel, Duration::ZERO);
            let priority = or(priority, Priority::default());
            if let Some(gang) = &gang {
                self.member(gang, &work, &mut gangs);
            }
            let gang = gang.map(|gang| GangName::from(gang.get_ref().as_str()));
            for (number, arrival) in arrivals.into_iter().enumerate() {
                clients.push(Client {
                    name: if count == 1 { name.clone() } else { format!("{name}-{number}") },
                    group,
                    node: node.unwrap_or(clients.len() % nodes.len().max(1)),
                    gpus,
                    eligible: eligible.clone(),
                    bound,
                    priority,
                    tenant: tenant.clone(),
                    queue: queue.clone(),
                    gang: gang.clone().map(|name| GangSpec { name, size: 0 }),
                    memory,
                    read_only,
                    memory_limit,
                    arrival,
                    work: work.clone(),
                    expectation: expectation
                        .as_ref()
                        .map_or(Expectation::Unknown, |e| *e.get_ref()),
                    release,
                    kernel,
                });
            }
            groups.push(name);
        }
        self.gangs(&gangs, nodes, &mut clients);
        (groups, clients)
    }

    /// The node that a group is kept on; otherwise its clients go round.
    fn node_of(&mut self, fields: &mut Fields<'_, '_>, nodes: &[PlacedNode]) -> Option<usize> {
        let wanted = fields.read("node", self.problems, string)?;
        let names = || nodes.iter().map(|node| node.node.name.as_str());
        let found = names().position(|name| name == wanted.get_ref());
        if found.is_none() {
            let message = format!("there is no node named \"{}\"", wanted.get_ref());
            let help = match nearest(wanted.get_ref(), names()) {
                Some(meant) => format!("did you mean \"{meant}\"?"),
                None => "name one of the [[node]] sections".to_owned(),
            };
            self.say(wanted.span(), message).help(help);
        }
        found
    }

    fn width(
        &mut self,
        fields: &mut Fields<'_, '_>,
        place: &Range<usize>,
        nodes: &[PlacedNode],
        node: Option<usize>,
    ) -> Spanned<u32> {
        let gpus = fields.read("gpus", self.problems, |v| integer::<u32>(v, 1, 1024, ""));
        let gpus = gpus.unwrap_or_else(|| Spanned::new(place.clone(), 1));
        let width = *gpus.get_ref();
        // Clients that go round meet every node.
        let possible =
            nodes.iter().enumerate().filter(|(at, _)| node.is_none_or(|node| node == *at));
        let smallest = possible.min_by_key(|(_, node)| node.node.config.gpus.len());
        if let Some((_, PlacedNode { node, place: there })) = smallest {
            let has = node.config.gpus.len();
            if width as usize > has {
                let message = format!(
                    "{width} GPUs are wanted, but node \"{}\" has {has}: it could never start",
                    node.name
                );
                self.say(gpus.span(), message).related(there.clone(), "this node");
            }
        }
        gpus
    }

    fn memory(
        &mut self,
        fields: &mut Fields<'_, '_>,
        nodes: &[PlacedNode],
        node: Option<usize>,
        bound: bool,
    ) -> (u64, u64, Option<u64>) {
        let memory = fields.read("memory_gib", self.problems, gibibytes);
        let read_only = fields.read("read_only_gib", self.problems, gibibytes);
        let limit = fields.read("limit_gib", self.problems, gibibytes);
        if let (Some(memory), false) = (&memory, bound) {
            self.say(memory.span(), "a client without a binding has no memory to move")
                .help("leave out `bound = false` or `memory_gib`");
        }
        let possible =
            nodes.iter().enumerate().filter(|(at, _)| node.is_none_or(|node| node == *at));
        let has = possible
            .filter_map(|(_, node)| node.node.config.gpus.first())
            .map(|gpu| gpu.memory)
            .min();
        if let (Some(memory), Some(has)) = (&memory, has)
            && *memory.get_ref() > has
        {
            self.say(
                memory.span(),
                format!("this is more than a GPU has ({} GiB): it could never start", has >> 30),
            );
        }
        let bytes = memory.as_ref().map_or(0, |memory| *memory.get_ref());
        if let Some(read_only) = &read_only
            && *read_only.get_ref() > bytes
        {
            self.say(read_only.span(), "more is read only than there is")
                .help("`memory_gib` is all of it");
        }
        if let Some(limit) = &limit
            && *limit.get_ref() < bytes
        {
            self.say(limit.span(), "less is allowed than it has: it could never start")
                .help("`memory_gib` is all of it");
        }
        (bytes, or(read_only, 0), limit.map(Spanned::into_inner))
    }

    fn tenant_of(&mut self, fields: &mut Fields<'_, '_>, nodes: &[PlacedNode]) -> String {
        let Some(tenant) = fields.read("tenant", self.problems, string) else {
            return String::new();
        };
        let known: Vec<&str> = nodes.first().map_or(Vec::new(), |node| {
            node.node.config.tenants.iter().map(|tenant| tenant.name.as_str()).collect()
        });
        // While there are no sections, every name is a tenant.
        if !known.is_empty() {
            self.among("tenant", &tenant, &known);
        }
        tenant.into_inner()
    }

    fn queue_of(&mut self, fields: &mut Fields<'_, '_>, nodes: &[PlacedNode]) -> String {
        let Some(queue) = fields.read("queue", self.problems, string) else { return String::new() };
        let known: Vec<&str> = nodes.first().map_or(Vec::new(), |node| {
            node.node.config.queues.iter().map(|queue| queue.name.as_str()).collect()
        });
        if !queue.get_ref().is_empty() {
            self.among("queue", &queue, &known);
        }
        queue.into_inner()
    }

    /// Sees to it that there is a section for a name.
    fn among(&mut self, what: &str, name: &Spanned<String>, known: &[&str]) {
        if !known.contains(&name.get_ref().as_str()) {
            let message = format!("there is no {what} named \"{}\"", name.get_ref().escape_debug());
            let help = match nearest(name.get_ref(), known.iter().copied()) {
                Some(meant) => format!("did you mean \"{meant}\"?"),
                None => format!("add a section [[{what}]] with this name"),
            };
            self.say(name.span(), message).help(help);
        }
    }

    fn eligible(
        &mut self,
        fields: &mut Fields<'_, '_>,
        width: u32,
        nodes: &[PlacedNode],
        node: Option<usize>,
    ) -> Eligible {
        let Some(list) = fields.read("eligible", self.problems, numbers) else {
            return Eligible::All;
        };
        let place = list.span();
        let mut list: Vec<u32> = list.into_inner();
        list.sort_unstable();
        list.dedup();
        let has = |at: usize| nodes.get(at).map_or(0, |node| node.node.config.gpus.len());
        let fewest = node.map_or_else(|| (0..nodes.len()).map(has).min().unwrap_or(0), has);
        if let Some(beyond) = list.iter().find(|gpu| **gpu as usize >= fewest) {
            self.say(place, format!("there is no GPU {beyond} on a node of {fewest}"))
                .help("GPUs are numbered from 0");
        } else if list.len() < width as usize {
            self.say(
                place,
                format!("{width} GPUs are wanted, but only {} are eligible", list.len()),
            );
        }
        Eligible::Only(list.into_iter().map(Gpu).collect())
    }

    fn work(&mut self, fields: &mut Fields<'_, '_>, place: &Range<usize>, stops: bool) -> Work {
        let cpu = fields.read("cpu_s", self.problems, seconds);
        let gpu = fields.read("gpu_s", self.problems, seconds);
        let every = fields.read("every_s", self.problems, seconds);
        let rate =
            fields.read("per_s", self.problems, |v| number(v, 1e-6, 1e6, "requests a second"));
        let spread = fields.read("spread", self.problems, |v| number(v, 0.0, 20.0, ""));
        let every_spread = fields.read("every_spread", self.problems, |v| number(v, 0.0, 20.0, ""));
        let family =
            fields.read("distribution", self.problems, |v| choice(v, &Family::ALL, Family::name));
        let rounds = fields.read("rounds", self.problems, |v| integer::<u64>(v, 1, 1 << 40, ""));
        let requests =
            fields.read("requests", self.problems, |v| integer::<u64>(v, 1, 1 << 40, ""));
        let spread = self.overrides.spread.unwrap_or(or(spread, 0.0));
        let family = or(family, Family::Gamma);
        let lengths = |mean| Lengths { mean, spread, family };
        let Some(gpu) = gpu else {
            self.say(place.clone(), "this client says nothing of its GPU phases")
                .help("add `gpu_s`");
            return Work::Requests {
                every: lengths(Duration::MAX),
                gpu: lengths(Duration::ZERO),
                requests: None,
            };
        };
        if gpu.get_ref().is_zero() {
            self.say(gpu.span(), "a GPU phase takes time: `gpu_s` must be above 0");
        }
        let gpu = lengths(gpu.into_inner());
        let interval = match (every, rate) {
            (Some(every), Some(rate)) => {
                self.say(rate.span(), "both `per_s` and `every_s` say how often requests come")
                    .related(every.span(), "the other one");
                return Work::Requests { every: gpu, gpu, requests: None };
            }
            (Some(every), None) if every.get_ref().is_zero() => {
                self.say(
                    every.span(),
                    "requests that come at once have no end: `every_s` must be above 0",
                );
                None
            }
            (Some(every), None) => Some((every.span(), every.into_inner())),
            (None, Some(rate)) => {
                Some((rate.span(), Duration::from_secs_f64(1.0 / rate.into_inner())))
            }
            (None, None) => None,
        };
        let work = match interval {
            Some((place, every)) => {
                if let Some(cpu) = cpu {
                    self.say(place, "a client has CPU phases or requests, not both")
                        .related(cpu.span(), "a CPU phase");
                } else if let Some(rounds) = rounds {
                    self.say(rounds.span(), "requests have no rounds").help("write `requests`");
                }
                let every = Lengths { mean: every, spread: or(every_spread, 1.0), family };
                Work::Requests { every, gpu, requests: requests.map(Spanned::into_inner) }
            }
            None => {
                if let Some(requests) = requests {
                    self.say(requests.span(), "`requests` needs `per_s` or `every_s`")
                        .help("or write `rounds`");
                }
                let cpu = lengths(or(cpu, Duration::ZERO));
                Work::Rounds { cpu, gpu, rounds: rounds.map(Spanned::into_inner) }
            }
        };
        let endless = matches!(
            work,
            Work::Rounds { rounds: None, .. } | Work::Requests { requests: None, .. }
        );
        if endless && !stops {
            self.say(place.clone(), "this client never ends, and nothing ends the run")
                .help("add `rounds` (or `requests`) here, or `stop_s` at the top of the file");
        }
        work
    }

    fn release(&mut self, fields: &mut Fields<'_, '_>, bound: bool) -> Release {
        let after = fields.read("release_after_phase", self.problems, boolean);
        let idle = fields.read("idle_us", self.problems, microseconds);
        match (after, idle) {
            (Some(after), idle) if *after.get_ref() => {
                if let Some(idle) = idle {
                    self.say(
                        idle.span(),
                        "who releases after every phase is not asked, and waits for no idleness",
                    )
                    .related(after.span(), "it does");
                }
                Release::AfterPhase
            }
            // What is not bound is manual mode, where a request is for a phase.
            (None, None) if !bound => Release::AfterPhase,
            // The cluster file's default.
            (_, idle) => Release::WhenWanted(or(idle, Duration::from_micros(2000))),
        }
    }

    /// When each client of a group appears.
    fn arrivals(
        &mut self,
        fields: &mut Fields<'_, '_>,
        group: usize,
        count: usize,
    ) -> Vec<Duration> {
        let first = fields.read("arrive_s", self.problems, times);
        let every = fields.read("arrive_every_s", self.problems, seconds);
        let poisson = fields.read("arrive_poisson_s", self.problems, seconds);
        if let (Some(every), Some(poisson)) = (&every, &poisson) {
            self.say(poisson.span(), "clients arrive evenly or at random, not both")
                .related(every.span(), "evenly");
        }
        let (place, first) = match first {
            Some(first) => (first.span(), first.into_inner()),
            None => (0..0, vec![Duration::ZERO]),
        };
        if let [first] = first[..] {
            let interval = match (every, poisson) {
                (Some(every), _) => Lengths::constant(every.into_inner()),
                (None, Some(mean)) => Lengths::exponential(mean.into_inner()),
                (None, None) => Lengths::constant(Duration::ZERO),
            };
            let mut random = Random::new(self.seed, u64::MAX - group as u64);
            let mut at = first;
            return (0..count)
                .map(|_| {
                    let next = at + interval.draw(&mut random);
                    std::mem::replace(&mut at, next)
                })
                .collect();
        }
        if first.len() != count {
            let message = format!("{} arrivals for {count} clients", first.len());
            self.say(place, message).help("list one for each client, or the first one alone");
            return vec![Duration::ZERO; count];
        }
        first
    }
}

fn expectation(value: &DeValue<'_>) -> Result<Expectation, Fault> {
    match value {
        DeValue::String(text) if text == "exact" => Ok(Expectation::Times(1.0)),
        DeValue::String(text) if text == "unknown" => Ok(Expectation::Unknown),
        DeValue::String(text) => {
            Err(Fault::new(format!("\"{}\" is no expectation", text.escape_debug()))
                .help("allowed are \"exact\", \"unknown\", and a number: the truth times that"))
        }
        other => number(other, 0.0, 1e9, "").map(Expectation::Times),
    }
}

pub(super) fn priority(value: &DeValue<'_>) -> Result<Priority, Fault> {
    let (low, high) = (Priority::LOWEST.number(), Priority::HIGHEST.number());
    integer::<i32>(value, low.into(), high.into(), "")
        .map(|number| Priority::new(number).expect("the bounds are its own"))
}

/// One time or a list of them.
fn times(value: &DeValue<'_>) -> Result<Vec<Duration>, Fault> {
    match value {
        DeValue::Array(items) => items.iter().map(|item| seconds(item.get_ref())).collect(),
        one => Ok(vec![seconds(one)?]),
    }
}

/// Lists of numbers.
pub(super) fn rows(value: &DeValue<'_>) -> Result<Vec<Vec<u32>>, Fault> {
    match value {
        DeValue::Array(items) => items.iter().map(|item| numbers(item.get_ref())).collect(),
        other => Err(Fault::new(format!("a list of lists is needed, not {}", kind(other)))
            .help("like [[0, 1], [1, 0]]")),
    }
}

/// A list of numbers, of GPUs or links.
pub(super) fn numbers(value: &DeValue<'_>) -> Result<Vec<u32>, Fault> {
    match value {
        DeValue::Array(items) => {
            items.iter().map(|item| integer::<u32>(item.get_ref(), 0, 1023, "")).collect()
        }
        other => Err(Fault::new(format!("a list of numbers is needed, not {}", kind(other)))
            .help("like [0, 1]")),
    }
}

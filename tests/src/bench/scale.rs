//! What the scheduler takes at the size of a large cluster: decisions a second on one core, how their cost grows with the
//! number of nodes, and memory.
//!
//! Owns: the load and its measurement. Does not own: the scheduler. Every node decides alone, so a cluster is a scheduler
//! for each node; what could grow with their number is the cost of memory that no cache holds.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hint::black_box;
use std::time::Duration;

use acb_core::{
    Action, ClientId, ClientSpec, Config, Epoch, Event, GpuConfig, Policy, Scheduler, Time,
};
use acb_sim::random::{Lengths, Random};
use anyhow::{Context, Result};

use super::clock;
use super::figure::{Figure, Sample};
use super::measure::Effort;

const GPUS: usize = 8;
const CLIENTS: u64 = 50;
const NODES: usize = 1000;
const FEW_NODES: usize = 10;

/// What happens next to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    /// It wants GPUs.
    Want,
    /// It gives back what it holds.
    Done(u64),
}

/// A node whose clients alternate phases, and nothing else: no checks, no figures.
struct Node {
    scheduler: Scheduler,
    /// When, which client, what.
    heap: BinaryHeap<Reverse<(Time, u64, Next)>>,
    random: Random,
    now: Time,
    decisions: u64,
}

impl Node {
    fn new(config: &Config, seed: u64) -> Result<Node> {
        let scheduler = Scheduler::new(config.clone()).context("a scheduler")?;
        let heap = BinaryHeap::with_capacity(CLIENTS as usize);
        let random = Random::new(1, seed);
        let mut node = Node { scheduler, heap, random, now: Time(0), decisions: 0 };
        for client in 0..CLIENTS {
            // One in ten wants two GPUs; half are bound, as programs under the interposer are.
            let gpus = if client % 10 == 0 { 2 } else { 1 };
            let spec = ClientSpec { gpus, ..ClientSpec::default() };
            node.tell(Event::Join { client: ClientId(client), spec });
            if client % 2 == 0 {
                node.tell(Event::Bind { client: ClientId(client) });
            }
            node.plan(client, Duration::from_millis(700), Next::Want);
        }
        Ok(node)
    }

    fn plan(&mut self, client: u64, mean: Duration, next: Next) {
        let at = self.now.after(Lengths::exponential(mean).draw(&mut self.random));
        self.heap.push(Reverse((at, client, next)));
    }

    /// Something happens; timers that are due go first.
    fn step(&mut self) {
        let Some(Reverse((at, client, next))) = self.heap.pop() else { return };
        while let Some(due) = self.scheduler.poll_deadline().filter(|due| *due <= at) {
            self.now = due;
            self.tell(Event::Timer);
        }
        self.now = at;
        let id = ClientId(client);
        match next {
            Next::Want => {
                let expected = Some(Duration::from_millis(100));
                self.tell(Event::Acquire { client: id, expected });
            }
            Next::Done(epoch) => {
                self.tell(Event::Release { client: id, epoch: Epoch(epoch), busy: None });
                self.plan(client, Duration::from_millis(700), Next::Want);
            }
        }
    }

    fn tell(&mut self, event: Event) {
        self.scheduler.handle(event, self.now);
        while let Some(action) = self.scheduler.poll_action() {
            // Phases are shorter than the quantum, so that who is recalled is about to end anyway.
            if let Action::Grant { client, epoch, .. } = black_box(action) {
                self.decisions += 1;
                self.plan(client.0, Duration::from_millis(100), Next::Done(epoch.0));
            }
        }
    }
}

/// Nodes whose events come in turns, so that a node's state is in no cache unless those of all are. Each has its own queue of
/// events: one of all would grow with their number, and its cost is not the scheduler's.
struct Load {
    nodes: Vec<Node>,
    turn: usize,
}

impl Load {
    fn new(nodes: usize) -> Result<Load> {
        let mut config =
            Config::new(vec![GpuConfig { memory: 80 << 30 }; GPUS], Policy::GpuAffinity);
        config.quantum = Duration::from_millis(200);
        let nodes = (0..nodes as u64).map(|seed| Node::new(&config, seed));
        Ok(Load { nodes: nodes.collect::<Result<_>>()?, turn: 0 })
    }

    /// Nanoseconds a decision, over so many of them.
    fn cost(&mut self, decisions: u64) -> f64 {
        let (mut made, begin) = (0, clock::thread_ns());
        while made < decisions {
            let node = &mut self.nodes[self.turn];
            let before = node.decisions;
            node.step();
            made += node.decisions - before;
            self.turn = (self.turn + 1) % self.nodes.len();
        }
        (clock::thread_ns() - begin) as f64 / made as f64
    }
}

/// Decisions a second, the growth of their cost, and memory.
///
/// # Errors
/// The memory of this process cannot be read.
pub fn scale(effort: Effort) -> Result<Vec<Figure>> {
    let decisions = effort.times(100_000).into();
    let before = resident_bytes()?;
    let mut many = Load::new(NODES)?;
    many.cost(u64::from(effort.times(1_000_000))); // until all clients have had some
    let memory = resident_bytes()?.saturating_sub(before);
    let mut few = Load::new(FEW_NODES)?;
    few.cost(decisions);
    // In turns, so that what else this machine does hits both.
    let rounds: Vec<(f64, f64)> =
        (0..10).map(|_| (many.cost(decisions), few.cost(decisions))).collect();
    let many_ns =
        Sample::new(rounds.iter().map(|(many, _)| *many).collect()).context("no rounds")?;
    let few_ns = Sample::new(rounds.iter().map(|(_, few)| *few).collect()).context("no rounds")?;
    let growth = many_ns.median() / few_ns.median();
    Ok(vec![
        Figure {
            name: "decisions_per_s",
            value: 1e9 / many_ns.median(),
            unit: "1/s",
            how: format!(
                "leases granted on {NODES} nodes of {GPUS} GPUs and {CLIENTS} clients, processor time of one core; ns each, with the load's own: {}",
                many_ns.spread()
            ),
        },
        Figure {
            name: "decision_cost_growth",
            value: growth,
            unit: "x",
            how: format!(
                "from {FEW_NODES} to {NODES} nodes; ns each with {FEW_NODES}: {}",
                few_ns.spread()
            ),
        },
        Figure {
            name: "core_mb",
            value: memory as f64 / 1e6,
            unit: "MB",
            how: "growth of resident memory, with the load's own, after a million decisions".into(),
        },
    ])
}

fn resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 =
        line.and_then(|line| line.split_whitespace().next()).context("VmRSS")?.parse()?;
    Ok(kib * 1024)
}

//! What a decision costs: nodes of 8 GPUs and 50 clients each, in one process and on one core. Prints a line for each
//! kind of clients and number of nodes: decisions a second, the growth of their cost from the first number of nodes on,
//! and memory.
//!
//! usage: decisions [KIND…] [NODES…]    (by default all kinds, and 10 and 1000 nodes)
//!
//! A decision is a grant. Each comes with a request, a release and timers, and with what is told to those in the way.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hint::black_box;
use std::time::Duration;

use acb_core::{
    Action, ClientId, ClientSpec, Config, Epoch, Event, FairShare, GpuConfig, Policy, Priority,
    Scheduler, TenantConfig, Time,
};

const GPUS: usize = 8;
const CLIENTS: u64 = 50;
/// Decisions of a node before the clock runs, so that all of its clients have had some.
const WARM_UP: u64 = 500;
/// Decisions on which the clock runs, over all nodes, in each of so many rounds.
const MEASURED: u64 = 100_000;
const ROUNDS: usize = 10;

/// How the clients of a node use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Half of them are bound, one in ten wants two GPUs.
    Mixed,
    /// Each is bound to one GPU.
    Bound,
    /// Any GPU will do.
    Free,
    /// Any GPU will do; priorities, tenants with guarantees, fair share.
    Shared,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Mixed, Kind::Bound, Kind::Free, Kind::Shared];

    fn named(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| format!("{kind:?}").eq_ignore_ascii_case(name))
    }

    fn config(self) -> Config {
        let mut config =
            Config::new(vec![GpuConfig { memory: 80 << 30 }; GPUS], Policy::GpuAffinity);
        config.quantum = Duration::from_millis(200);
        if self == Kind::Shared {
            config.fair_share = Some(FairShare::default());
            let tenant =
                |at: u64| TenantConfig { guarantee: 2, ..TenantConfig::new(at.to_string()) };
            config.tenants = (0..4).map(tenant).collect();
        }
        config
    }

    fn spec(self, client: u64) -> ClientSpec {
        let mut spec = ClientSpec { gpus: 1, ..ClientSpec::default() };
        if self == Kind::Mixed && client.is_multiple_of(10) {
            spec.gpus = 2;
        }
        if self == Kind::Shared {
            spec.tenant = (client % 4).to_string();
            spec.priority = Priority::new((client % 3) as i32).unwrap_or_default();
        }
        spec
    }

    fn binds(self, client: u64) -> bool {
        self == Kind::Bound || self == Kind::Mixed && client.is_multiple_of(2)
    }
}

/// What happens next to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    /// It wants GPUs.
    Want,
    /// It gives back what it holds.
    Done(u64),
}

/// A node with clients that alternate phases: 700 ms without a GPU, 100 ms with, both exponential.
struct Node {
    scheduler: Scheduler,
    /// When, which client, what.
    heap: BinaryHeap<Reverse<(Time, u64, Next)>>,
    random: u64,
    now: Time,
    decisions: u64,
}

impl Node {
    fn new(kind: Kind, seed: u64) -> anyhow::Result<Node> {
        let scheduler = Scheduler::new(kind.config())?;
        let heap = BinaryHeap::with_capacity(CLIENTS as usize);
        let mut node = Node { scheduler, heap, random: seed, now: Time(0), decisions: 0 };
        for client in 0..CLIENTS {
            let id = ClientId(client);
            node.tell(Event::Join { client: id, spec: kind.spec(client) });
            if kind.binds(client) {
                node.tell(Event::Bind { client: id });
            }
            node.plan(client, 700, Next::Want);
        }
        Ok(node)
    }

    fn plan(&mut self, client: u64, mean_ms: u32, next: Next) {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        let share = ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let span = Duration::from_millis(mean_ms.into()).mul_f64(-share.ln());
        self.heap.push(Reverse((self.now.after(span), client, next)));
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
                self.plan(client, 700, Next::Want);
            }
        }
    }

    fn tell(&mut self, event: Event) {
        self.scheduler.handle(event, self.now);
        while let Some(action) = self.scheduler.poll_action() {
            // Who is recalled goes on to the end of its phase: that is near.
            if let Action::Grant { client, epoch, .. } = black_box(action) {
                self.decisions += 1;
                self.plan(client.0, 100, Next::Done(epoch.0));
            }
        }
    }
}

/// Nodes whose events come in turns: when one comes, its node's state is in no cache unless all states are. The load is the
/// same for each node, however many there are.
struct Cluster {
    nodes: Vec<Node>,
    turn: usize,
    decisions: u64,
}

impl Cluster {
    fn new(kind: Kind, count: u64) -> anyhow::Result<Cluster> {
        let nodes: Vec<Node> =
            (0..count).map(|seed| Node::new(kind, seed)).collect::<Result<_, _>>()?;
        let mut cluster = Cluster { nodes, turn: 0, decisions: 0 };
        cluster.decide(count * WARM_UP);
        Ok(cluster)
    }

    fn decide(&mut self, decisions: u64) {
        let until = self.decisions + decisions;
        while self.decisions < until {
            let node = &mut self.nodes[self.turn];
            let before = node.decisions;
            node.step();
            self.decisions += node.decisions - before;
            self.turn = (self.turn + 1) % self.nodes.len();
        }
    }

    /// Nanoseconds a decision.
    fn cost(&mut self, decisions: u64) -> f64 {
        let (from, begin) = (self.decisions, processor_ns());
        self.decide(decisions);
        (processor_ns() - begin) as f64 / (self.decisions - from) as f64
    }
}

/// Nanoseconds that a processor has worked for this thread: what else the machine does is not in it.
fn processor_ns() -> u64 {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    schedstat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

/// Bytes of memory that this process has.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

fn main() -> anyhow::Result<()> {
    let (mut kinds, mut sizes) = (Vec::new(), Vec::new());
    for given in std::env::args().skip(1) {
        match Kind::named(&given) {
            Some(kind) => kinds.push(kind),
            None => sizes.push(given.parse::<u64>()?),
        }
    }
    if kinds.is_empty() {
        kinds.extend(Kind::ALL);
    }
    if sizes.is_empty() {
        sizes.extend([10, 1000]);
    }
    for kind in kinds {
        let mut clusters = Vec::new();
        for &size in &sizes {
            let before = resident();
            let cluster = Cluster::new(kind, size)?;
            clusters.push((cluster, resident().saturating_sub(before), Vec::new()));
        }
        // In turns, so that what else the machine does hits all.
        for _ in 0..ROUNDS {
            for (cluster, _, costs) in &mut clusters {
                costs.push(cluster.cost(MEASURED));
            }
        }
        let mut first = None;
        for (size, (_, memory, costs)) in sizes.iter().zip(&mut clusters) {
            costs.sort_by(f64::total_cmp);
            let median = costs[costs.len() / 2];
            println!(
                "{kind:?}: {size} nodes: {:.0} decisions/s, {:.2} µs each (least {:.2}), growth {:.2}; {:.1} MB",
                1e9 / median,
                median / 1e3,
                costs[0] / 1e3,
                median / *first.get_or_insert(median),
                *memory as f64 / 1e6,
            );
        }
    }
    Ok(())
}

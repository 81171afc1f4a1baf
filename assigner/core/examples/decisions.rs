//! What a decision costs: nodes of 8 GPUs and 50 clients each, in one process and on one core. Prints one line for each
//! number of nodes, and what a client takes of memory.
//!
//! usage: decisions [NODES…]    (by default 10 and 1000)
//!
//! A decision is a grant. Each comes with a request and a release, and with what is told to those in the way.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use acb_core::{
    Action, ClientId, ClientSpec, Config, Epoch, Event, FairShare, GpuConfig, Policy, Priority,
    Scheduler, TenantConfig, Time,
};

const GPUS: usize = 8;
const CLIENTS: u64 = 50;
const GRANTS_PER_NODE: u64 = 500;

/// How the clients of a node use it.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Each is bound to one GPU.
    Bound,
    /// Any GPU will do.
    Free,
    /// Any GPU will do; priorities, tenants with guarantees, fair share.
    Shared,
}

struct Node {
    scheduler: Scheduler,
    holding: BTreeMap<ClientId, Epoch>,
    now: Time,
    grants: u64,
}

impl Node {
    fn new(kind: Kind) -> anyhow::Result<Node> {
        let mut config =
            Config::new(vec![GpuConfig { memory: 80 << 30 }; GPUS], Policy::GpuAffinity);
        config.quantum = Duration::from_millis(50);
        if matches!(kind, Kind::Shared) {
            config.fair_share = Some(FairShare::default());
            let tenant =
                |at: u64| TenantConfig { guarantee: 2, ..TenantConfig::new(at.to_string()) };
            config.tenants = (0..4).map(tenant).collect();
        }
        let scheduler = Scheduler::new(config)?;
        let mut node = Node { scheduler, holding: BTreeMap::new(), now: Time(0), grants: 0 };
        for client in 0..CLIENTS {
            let id = ClientId(client);
            let mut spec = ClientSpec { gpus: 1, ..ClientSpec::default() };
            if matches!(kind, Kind::Shared) {
                spec.tenant = (client % 4).to_string();
                spec.priority = Priority::new((client % 3) as i32).unwrap_or_default();
            }
            node.tell(Event::Join { client: id, spec });
            if matches!(kind, Kind::Bound) {
                node.tell(Event::Bind { client: id });
            }
            node.tell(Event::Acquire { client: id, expected: None });
        }
        Ok(node)
    }

    fn tell(&mut self, event: Event) {
        self.scheduler.handle(event, self.now);
        while let Some(action) = self.scheduler.poll_action() {
            if let Action::Grant { client, epoch, .. } = action {
                self.holding.insert(client, epoch);
                self.grants += 1;
            }
        }
    }

    /// The client that holds longest gives back, and asks again.
    fn turn(&mut self) {
        self.now = self.now.after(Duration::from_millis(1));
        let Some((&client, &epoch)) = self.holding.iter().min_by_key(|(_, epoch)| **epoch) else {
            return;
        };
        self.holding.remove(&client);
        self.tell(Event::Release { client, epoch, busy: Some(Duration::from_millis(1)) });
        self.tell(Event::Acquire { client, expected: None });
    }
}

/// Bytes of memory that this process has.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

fn main() -> anyhow::Result<()> {
    let given: Vec<u64> =
        std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let sizes = if given.is_empty() { vec![10, 1000] } else { given };
    for kind in [Kind::Bound, Kind::Free, Kind::Shared] {
        for &count in &sizes {
            let before = resident();
            let mut nodes = Vec::new();
            for _ in 0..count {
                nodes.push(Node::new(kind)?);
            }
            let memory = resident().saturating_sub(before);
            let begun: u64 = nodes.iter().map(|node| node.grants).sum();
            let start = Instant::now();
            // In turns, as they would come: a node's state is not in the cache when its event comes.
            for _ in 0..GRANTS_PER_NODE {
                for node in &mut nodes {
                    node.turn();
                }
            }
            let took = start.elapsed().as_secs_f64();
            let grants = nodes.iter().map(|node| node.grants).sum::<u64>() - begun;
            println!(
                "{kind:?}: {count} nodes: {:.0} decisions/s, {:.2} µs each; {:.1} MB, {:.1} KB a client",
                grants as f64 / took,
                took * 1e6 / grants as f64,
                memory as f64 / 1e6,
                memory as f64 / 1e3 / (count * CLIENTS) as f64,
            );
        }
    }
    Ok(())
}

//! Many nodes at once, to see what a decision costs: clients that alternate phases, and no checks, figures or logs.
//!
//! Owns: the clients and the order of events. Does not own: the clock that the schedulers are timed with.
//!
//! Events come from all nodes in turns, so that a node's state is in no cache unless those of all are. The load on each
//! node is the same, however many there are. Each node draws its own events: one queue for all would grow with their number.
//!
//! Only the schedulers are timed: [`Load::run`] draws one event for each of a few nodes, then has their schedulers handle
//! them, with the clock running, then looks at what they said.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hint::black_box;
use std::time::Duration;

use acb_core::{
    Action, ClientId, ClientSpec, Config, ConfigError, Epoch, Event, FairShare, GpuConfig, Policy,
    Priority, Scheduler, TenantConfig, Time,
};

use crate::random::{Lengths, Random};

/// GPUs of a node.
pub const GPUS: usize = 8;
/// Clients of a node.
pub const CLIENTS: u64 = 50;
/// Nodes whose schedulers run between two looks at the clock: no more than the fewest nodes that are measured.
const TOGETHER: usize = 10;

const AWAY: Duration = Duration::from_millis(700);
const PHASE: Duration = Duration::from_millis(100);

/// How the clients of a node use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Half of them are bound, as programs under the interposer are; one in ten wants two GPUs.
    Mixed,
    /// Each is bound to one GPU.
    Bound,
    /// Any GPU will do.
    Free,
    /// Any GPU will do; priorities, tenants with guarantees, fair share.
    Shared,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 4] = [Kind::Mixed, Kind::Bound, Kind::Free, Kind::Shared];

    /// The kind of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| format!("{kind:?}").eq_ignore_ascii_case(name))
    }

    fn config(self) -> Config {
        let mut config =
            Config::new(vec![GpuConfig { memory: 80 << 30 }; GPUS], Policy::GpuAffinity);
        // Phases are shorter, so that who is recalled is about to end anyway.
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

/// The clients of a node: 700 ms without a GPU, 100 ms with, both exponential.
#[derive(Debug)]
struct Clients {
    /// When, which client, what.
    heap: BinaryHeap<Reverse<(Time, u64, Next)>>,
    random: Random,
}

impl Clients {
    fn draw(&mut self, now: Time, client: u64, mean: Duration, next: Next) {
        let at = now.after(Lengths::exponential(mean).draw(&mut self.random));
        self.heap.push(Reverse((at, client, next)));
    }

    /// What happens on the node next.
    fn next(&mut self) -> Option<(Time, Event)> {
        let Reverse((at, id, next)) = self.heap.pop()?;
        let client = ClientId(id);
        let event = match next {
            Next::Want => Event::Acquire { client, expected: Some(PHASE) },
            Next::Done(epoch) => {
                self.draw(at, id, AWAY, Next::Want);
                Event::Release { client, epoch: Epoch(epoch), busy: None }
            }
        };
        Some((at, event))
    }
}

/// A lease that was granted.
#[derive(Clone, Copy, Debug)]
struct Granted {
    node: usize,
    at: Time,
    client: ClientId,
    epoch: Epoch,
}

/// What a number of decisions cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Leases granted. Each comes with a request, a release and timers, and with what is told to those in the way.
    pub decisions: u64,
    /// What the clock said that the schedulers took.
    pub ns: u64,
}

impl Cost {
    /// Nanoseconds a decision.
    #[must_use]
    pub fn each(self) -> f64 {
        self.ns as f64 / self.decisions.max(1) as f64
    }
}

/// Nodes and their clients.
#[derive(Debug)]
pub struct Load {
    schedulers: Vec<Scheduler>,
    clients: Vec<Clients>,
    turn: usize,
    events: Vec<(usize, Time, Event)>,
    granted: Vec<Granted>,
}

impl Load {
    /// So many nodes, on which nothing has happened yet.
    ///
    /// # Errors
    /// The scheduler's: none, unless the configuration of a kind is wrong.
    pub fn new(kind: Kind, nodes: usize) -> Result<Load, ConfigError> {
        let schedulers = (0..nodes).map(|_| Scheduler::new(kind.config()));
        let clients = (0..nodes as u64).map(|seed| Clients {
            heap: BinaryHeap::with_capacity(CLIENTS as usize),
            random: Random::new(1, seed),
        });
        let mut load = Load {
            schedulers: schedulers.collect::<Result<_, _>>()?,
            clients: clients.collect(),
            turn: 0,
            events: Vec::new(),
            granted: Vec::new(),
        };
        for node in 0..nodes {
            for client in 0..CLIENTS {
                load.come(kind, node, client);
            }
        }
        Ok(load)
    }

    /// Nodes.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.schedulers.len()
    }

    fn come(&mut self, kind: Kind, node: usize, id: u64) {
        let client = ClientId(id);
        let scheduler = &mut self.schedulers[node];
        scheduler.handle(Event::Join { client, spec: kind.spec(id) }, Time(0));
        if kind.binds(id) {
            scheduler.handle(Event::Bind { client }, Time(0));
        }
        while scheduler.poll_action().is_some() {}
        self.clients[node].draw(Time(0), id, AWAY, Next::Want);
    }

    /// Goes on for so many decisions; what they cost by `clock`, in nanoseconds.
    pub fn run(&mut self, decisions: u64, clock: impl Fn() -> u64) -> Cost {
        let mut cost = Cost::default();
        while cost.decisions < decisions {
            for _ in 0..TOGETHER.min(self.nodes()) {
                let next = self.clients[self.turn].next();
                self.events.extend(next.map(|(at, event)| (self.turn, at, event)));
                self.turn = (self.turn + 1) % self.nodes();
            }
            let begin = clock();
            for (node, at, event) in self.events.drain(..) {
                step(&mut self.schedulers[node], node, at, event, &mut self.granted);
            }
            cost.ns += clock().saturating_sub(begin);
            cost.decisions += self.granted.len() as u64;
            for granted in self.granted.drain(..) {
                let Granted { node, at, client, epoch } = granted;
                self.clients[node].draw(at, client.0, PHASE, Next::Done(epoch.0));
            }
        }
        cost
    }
}

/// Something happens; timers that are due go first.
fn step(scheduler: &mut Scheduler, node: usize, at: Time, event: Event, out: &mut Vec<Granted>) {
    while let Some(due) = scheduler.poll_deadline().filter(|due| *due <= at) {
        tell(scheduler, node, due, Event::Timer, out);
    }
    tell(scheduler, node, at, event, out);
}

fn tell(scheduler: &mut Scheduler, node: usize, at: Time, event: Event, out: &mut Vec<Granted>) {
    scheduler.handle(event, at);
    while let Some(action) = scheduler.poll_action() {
        if let Action::Grant { client, epoch, .. } = black_box(action) {
            out.push(Granted { node, at, client, epoch });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_goes_on_and_on() {
        for kind in Kind::ALL {
            let mut load = Load::new(kind, 3).unwrap();
            let cost = load.run(2_000, || 0);
            assert!(cost.decisions >= 2_000, "{kind:?}");
            for scheduler in &load.schedulers {
                assert_eq!(scheduler.sanity_check(), Ok(()), "{kind:?}");
                let held =
                    scheduler.snapshot().gpus.iter().filter(|gpu| !gpu.holders.is_empty()).count();
                assert!(held > 0, "{kind:?}: nobody is at work");
            }
        }
    }
}

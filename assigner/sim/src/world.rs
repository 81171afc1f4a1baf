//! The run of a scenario: virtual time, and what happens in it.
//!
//! Owns: the order of events, and what is written down of them. Does not own: what clients do (`client`), the nodes and
//! their schedulers (`node`), what goes wrong (`fault`), what must be true (`check`).
//!
//! The scheduler of every node is the real one. Its invariants are checked after every event that it handles, and the
//! truth about GPUs, which it cannot see, after everything that clients do.

mod apart;
mod check;
mod client;
mod fault;
#[cfg(test)]
mod fires;
mod gang;
mod memory;
mod node;
mod outside;
mod recalls;
mod written;

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::fmt::Write;
use std::time::Duration;

use acb_core::gang::{Order, Report, Session};
use acb_core::{Action, ConfigError, Epoch, Event, Gpu, Time};

pub use check::{Lag, Violation};
use client::Client;
use gang::{End, Gangs};
use memory::Way;
use node::Node;

use crate::random::Random;
use crate::scenario::Scenario;

/// What is written down of a run, besides its figures.
#[derive(Default)]
pub struct Watch<'w> {
    /// Every event and every answer, a line each.
    pub log: Option<&'w mut dyn Write>,
    /// What every client did when, for a picture.
    pub spans: bool,
    /// Check the schedulers' invariants after every event.
    pub check: bool,
    /// Stop after so many events of the schedulers; 0: never.
    pub events: u64,
}

/// What a client was doing for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Computing without a GPU.
    Cpu,
    /// Waiting for a lease.
    Waiting,
    /// Holding one, while memory is moved for it.
    Moving,
    /// Computing on GPUs.
    Gpu,
}

/// A client did something for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its position in the scenario.
    pub client: usize,
    /// From when.
    pub from: Time,
    /// Until when.
    pub to: Time,
    /// What it did.
    pub doing: Doing,
}

/// A GPU phase that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Position of the client.
    pub client: usize,
    /// When the GPU was first wanted for it.
    pub wanted: Time,
    /// When it was done.
    pub done: Time,
    /// The CPU phase before it.
    pub cpu: Duration,
    /// Its time on the GPU.
    pub gpu: Duration,
}

/// What came of a run, raw.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The moment at which it ended.
    pub end: Time,
    /// The GPU phases that were done, in order of time.
    pub done: Vec<Done>,
    /// When GPUs computed for whom: client, from, to. In order of their ends.
    pub busy: Vec<(usize, Time, Time)>,
    /// When GPUs were held by a client that could not use them yet: client, GPUs, from, to. In order of their ends.
    pub switching: Vec<(usize, Vec<Gpu>, Time, Time)>,
    /// For a picture: what clients did.
    pub spans: Vec<Span>,
    /// For a picture: client, GPUs, from, to.
    pub held: Vec<(usize, Vec<Gpu>, Time, Time)>,
    /// Of each client: when it was done with everything, if it was.
    pub finished: Vec<Option<Time>>,
    /// Of each client: why it was refused, if it was.
    pub refused: Vec<Option<String>>,
    /// Events that the schedulers handled.
    pub events: u64,
    /// Leases granted.
    pub grants: u64,
    /// Leases asked back.
    pub recalls: u64,
    /// GPU phases that had to give way before they were done.
    pub preemptions: u64,
    /// Times that the holder of a GPU was another one than its latest.
    pub switches: u64,
    /// Bytes moved to GPUs and from them.
    pub moved: (u64, u64),
    /// Page-ins that did not find what they were credited.
    pub short: u64,
    /// Clients that ended because their memory was denied.
    pub out_of_memory: u64,
    /// Clients that were killed; by the scenario, for nobody else kills.
    pub kills: u64,
    /// Starts that had been promised.
    pub promises: u64,
    /// By how much the latest start came after its promise.
    pub promise_late: Duration,
    /// By how much the latest start came after its promise, the longest kernel in its way, and the switch.
    pub promise_beyond: Duration,
    /// Requests that their tenant's guarantee covered, on any GPU.
    pub reclaims: u64,
    /// By how much the slowest of them could compute later than after the longest kernel and the swap.
    pub reclaim_beyond: Duration,
    /// By how much GPU time tenants are apart that always want the same GPU, by weight; where there are such.
    pub lag_between: Option<Lag>,
    /// The same of the clients of one tenant.
    pub lag_within: Option<Lag>,
    /// What must not be.
    pub violations: Vec<Violation>,
}

/// Most events of a scenario that has to be done in the end.
const MOST_EVENTS: u64 = 1_000_000;

/// Plays a scenario to its end, or until an invariant is violated.
///
/// # Errors
/// A node's configuration makes no sense.
pub fn run(scenario: &Scenario, watch: Watch<'_>) -> Result<Outcome, ConfigError> {
    let mut world = World::new(scenario, watch)?;
    while world.step() {}
    Ok(world.end())
}

/// What is going to happen.
#[derive(Debug)]
enum Happening {
    /// A client appears.
    Arrive(usize),
    /// A CPU phase is over.
    CpuOver(usize),
    /// A request comes.
    Request(usize),
    /// What a client runs is over, if its run number is still that.
    RunOver(usize, u32),
    /// What a client runs is between two kernels, and stops there.
    Boundary(usize, u32),
    /// A client's GPUs are its own: the switch to it is over.
    Ready(usize, Epoch),
    /// A client has been idle for long enough.
    Idle(usize, u32),
    /// A client that was stopped goes on.
    Continue(usize),
    /// The process of a killed client is gone.
    Gone(usize),
    /// A chunk of a client's memory, on the GPU at this position, has been moved.
    Moved(usize, usize, Way),
    /// Programs outside give so much of a GPU of a node back.
    OutsideGone(usize, Gpu, u64),
    /// Memory is missing on a GPU: what is in use there is asked, in this life of its assigner.
    Look(usize, u32, Gpu),
    /// The same, as it is asked now and then.
    Watch(usize, Gpu),
    /// The deadline of a node's scheduler.
    Deadline(usize),
    /// A message of a client reaches its assigner; it was sent in this life of it.
    ToAssigner(usize, u32, Event),
    /// A client hears that the assigner knows it.
    Welcome(usize, u32),
    /// A message reaches a client; it was sent in this life of the assigner.
    ToClient(usize, u32, Action),
    /// The assigner of a node is back.
    Back(usize),
    /// Something goes wrong.
    Fault(usize),
    /// The members of gangs with members on a dead node are ended.
    EndGangs(usize),
    /// The gang of a member that has ended in an error is ended.
    EndGang(usize),
    /// A node tries to connect to the controller.
    GangConnect(usize),
    /// One end of a connection between a node and the controller notices that it is lost.
    GangLost(usize, Session, End),
    /// A message reaches the controller.
    ToController(usize, Report),
    /// A message of the controller reaches a node.
    ToNode(usize, Order),
    /// The controller's deadline.
    ControllerDeadline,
    /// The controller is back.
    ControllerBack,
}

struct Entry {
    at: Time,
    /// Breaks ties: what was planned first happens first.
    order: u64,
    happening: Happening,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

struct World<'s, 'w> {
    scenario: &'s Scenario,
    watch: Watch<'w>,
    now: Time,
    order: u64,
    happenings: BinaryHeap<Reverse<Entry>>,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    gangs: Gangs,
    /// Clients that are not done.
    unfinished: usize,
    /// For the delay of messages.
    random: Random,
    outcome: Outcome,
}

impl<'s, 'w> World<'s, 'w> {
    fn new(scenario: &'s Scenario, watch: Watch<'w>) -> Result<World<'s, 'w>, ConfigError> {
        let mut nodes = scenario.nodes.iter().map(Node::new).collect::<Result<Vec<Node>, _>>()?;
        for client in &scenario.clients {
            let kernel = &mut nodes[client.node].kernel;
            *kernel = client.kernel.max(*kernel);
        }
        let clients: Vec<Client> = (0..)
            .zip(&scenario.clients)
            .map(|(stream, client)| Client::new(client, Random::new(scenario.seed, stream)))
            .collect();
        let outcome = Outcome {
            finished: vec![None; clients.len()],
            refused: vec![None; clients.len()],
            ..Outcome::default()
        };
        let mut world = World {
            scenario,
            watch,
            now: Time(0),
            order: 0,
            happenings: BinaryHeap::with_capacity(clients.len() * 2),
            nodes,
            unfinished: clients.len(),
            clients,
            gangs: Gangs::new(scenario),
            random: Random::new(scenario.seed, u64::MAX / 2),
            outcome,
        };
        for node in 0..world.nodes.len() {
            world.nodes[node].shares = world.shares(node);
        }
        world.start_controller();
        for (index, fault) in scenario.faults.iter().enumerate() {
            world.plan_at(Time(0).after(fault.at), Happening::Fault(index));
        }
        for (index, client) in scenario.clients.iter().enumerate() {
            world.plan_at(Time(0).after(client.arrival), Happening::Arrive(index));
        }
        Ok(world)
    }

    /// Goes to the next moment at which something happens; false when the run is over.
    fn step(&mut self) -> bool {
        if self.scenario.due.is_some() && self.outcome.events > MOST_EVENTS {
            self.violated(format!("{MOST_EVENTS} events, and not all is done"));
        }
        let limit = self.watch.events;
        if self.unfinished == 0
            || !self.outcome.violations.is_empty()
            || limit > 0 && self.outcome.events >= limit
        {
            return false;
        }
        let stop = self.scenario.stop.map(|stop| Time(0).after(stop));
        let next = self.happenings.pop();
        let Some(Reverse(Entry { at, happening, .. })) = next else {
            self.stuck();
            return false;
        };
        if let Some(stop) = stop.filter(|stop| at > *stop) {
            self.now = stop;
            return false;
        }
        if let Some(due) = self.scenario.due.filter(|due| at > Time(0).after(*due)) {
            self.overdue(due);
            return false;
        }
        self.check_idle(at);
        self.check_turns(at);
        self.now = at;
        self.happen(happening);
        self.check_gangs();
        self.check_conserved();
        self.note_idle();
        true
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrive(client) => self.arrive(client),
            Happening::CpuOver(client) => self.cpu_over(client),
            Happening::Request(client) => self.request(client),
            Happening::RunOver(client, number) => self.run_over(client, number),
            Happening::Boundary(client, number) => self.boundary(client, number),
            Happening::Ready(client, epoch) => self.ready(client, epoch),
            Happening::Idle(client, number) => self.idle(client, number),
            Happening::Continue(client) => self.go_on(client),
            Happening::Gone(client) => self.gone(client),
            Happening::Moved(client, at, way) => self.moved(client, at, way),
            Happening::OutsideGone(node, gpu, bytes) => self.go_outside(node, gpu, bytes),
            Happening::Look(node, life, gpu) => self.look(node, life, gpu),
            Happening::Watch(node, gpu) => self.watch_outside(node, gpu),
            Happening::Deadline(node) => self.deadline(node),
            Happening::ToAssigner(client, life, event) => self.reach_assigner(client, life, event),
            Happening::Welcome(client, life) => self.welcome(client, life),
            Happening::ToClient(client, life, action) => self.reach_client(client, life, action),
            Happening::Back(node) => self.back(node),
            Happening::Fault(fault) => self.fault(fault),
            Happening::EndGangs(node) => self.end_gangs(node),
            Happening::EndGang(client) => self.end_gang_of(client),
            Happening::GangConnect(node) => self.gang_connect(node),
            Happening::GangLost(node, session, end) => self.gang_lost(node, session, end),
            Happening::ToController(node, report) => self.reach_controller(node, report),
            Happening::ToNode(node, order) => self.reach_node(node, order),
            Happening::ControllerDeadline => self.controller_due(),
            Happening::ControllerBack => self.start_controller(),
        }
    }

    fn plan(&mut self, after: Duration, happening: Happening) {
        self.plan_at(self.now.after(after), happening);
    }

    fn plan_at(&mut self, at: Time, happening: Happening) {
        self.order += 1;
        self.happenings.push(Reverse(Entry { at, order: self.order, happening }));
    }

    fn end(mut self) -> Outcome {
        for client in 0..self.clients.len() {
            if let Some(running) = self.clients[client].running
                && running.from < self.now
            {
                self.outcome.busy.push((client, running.from, self.now));
            }
            self.close(client);
        }
        self.outcome.end = self.now;
        self.outcome
    }

    /// Writes a line into the log.
    fn log(&mut self, what: impl FnOnce(&Scenario) -> String) {
        if let Some(log) = &mut self.watch.log {
            let Time(ns) = self.now;
            let what = what(self.scenario);
            // Who hands in a writer learns of its errors there.
            let _ = writeln!(log, "{}.{:09} {what}", ns / 1_000_000_000, ns % 1_000_000_000);
        }
    }
}

/// A lease as its holder knows it.
#[derive(Clone, Debug)]
struct Lease {
    /// When its holder heard of it.
    granted: Time,
    /// How long it was in use.
    busy: Duration,
    /// All memory was on the GPUs, and the assigner has been told.
    ready: bool,
    epoch: Epoch,
    /// Later leases on its GPUs were over when an assigner that had started again let its holder in with it.
    renewed: Option<Epoch>,
    gpus: Vec<Gpu>,
    wanted: bool,
    recalled: bool,
}

impl Lease {
    fn new(epoch: Epoch, gpus: Vec<Gpu>, granted: Time) -> Lease {
        Lease {
            granted,
            busy: Duration::ZERO,
            ready: false,
            epoch,
            renewed: None,
            gpus,
            wanted: false,
            recalled: false,
        }
    }
}

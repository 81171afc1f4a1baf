//! The run of a scenario: virtual time, the clients, and the real scheduler between them.
//!
//! Does not own: what a scenario or a report is.
//!
//! ```text
//!            arrival          CPU phase over           grant
//!  (absent) ────────► on CPU ────────────────► waiting ──────► running
//!                       ▲  └── lease kept ──────────────────────► │
//!                       ├──────────── GPU phase over ─────────────┤
//!                       │                waiting ◄─── recalled ───┘
//!                       └► (gone) after the last phase
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::time::Duration;

use super::{
    Binding, ClientReport, Expectation, GpuReport, Phase, Release, Report, Scenario, SimClient,
};
use crate::config::ConfigError;
use crate::event::{Action, ClientSpec, Event};
use crate::ids::{ClientId, Epoch, Gpu, Time};
use crate::scheduler::Scheduler;

/// Why a scenario has no report.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SimError {
    /// The node makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Nothing will happen any more, but clients are not done: a fault in the scheduler.
    #[error("nothing happens any more, but client {0} is not done")]
    Stuck(usize),
}

/// Plays a scenario to its end. Built with debug assertions, it checks the scheduler's invariants
/// after every event.
pub fn run(scenario: &Scenario) -> Result<Report, SimError> {
    let mut run = Run::new(scenario)?;
    while run.step() {}
    run.report()
}

/// What is going to happen to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Arrival,
    CpuDone,
    /// The GPU phase is over, if the lease still runs.
    GpuDone(Epoch),
    /// What was running at a recall has stopped.
    Stopped(Epoch),
}

struct Client<'a> {
    script: &'a SimClient,
    /// Phases begun; the current one is before it.
    begun: usize,
    /// What is left of the current GPU phase.
    left: Duration,
    asked: Time,
    lease: Option<Lease>,
    report: ClientReport,
}

struct Lease {
    epoch: Epoch,
    gpus: Vec<Gpu>,
    /// Since when work runs; `None` in a CPU phase.
    running: Option<Time>,
    wanted: bool,
}

struct Run<'a> {
    scenario: &'a Scenario,
    scheduler: Scheduler,
    clients: Vec<Client<'a>>,
    gpus: Vec<GpuReport>,
    latest_holder: Vec<Option<usize>>,
    happenings: BinaryHeap<Reverse<(Time, u64, usize, Happening)>>,
    /// Breaks ties in time: first come, first.
    order: u64,
    now: Time,
    unfinished: BTreeSet<usize>,
    events: u64,
    grants: u64,
    recalls: u64,
    promise_late: Duration,
}

impl<'a> Run<'a> {
    fn new(scenario: &'a Scenario) -> Result<Run<'a>, SimError> {
        let client = |script| Client {
            script,
            begun: 0,
            left: Duration::ZERO,
            asked: Time(0),
            lease: None,
            report: ClientReport::default(),
        };
        let mut run = Run {
            scenario,
            scheduler: Scheduler::new(scenario.config.clone())?,
            clients: scenario.clients.iter().map(client).collect(),
            gpus: vec![GpuReport::default(); scenario.config.gpus.len()],
            latest_holder: vec![None; scenario.config.gpus.len()],
            happenings: BinaryHeap::new(),
            order: 0,
            now: Time(0),
            unfinished: (0..scenario.clients.len()).collect(),
            events: 0,
            grants: 0,
            recalls: 0,
            promise_late: Duration::ZERO,
        };
        for (index, script) in scenario.clients.iter().enumerate() {
            run.plan(index, script.arrival, Happening::Arrival);
        }
        Ok(run)
    }

    /// Goes to the next moment at which something happens; false when there is none.
    fn step(&mut self) -> bool {
        if self.unfinished.is_empty() {
            return false;
        }
        let next = self.happenings.peek().map(|Reverse((at, ..))| *at);
        match (next, self.scheduler.poll_deadline()) {
            (Some(at), deadline) if deadline.is_none_or(|deadline| at <= deadline) => {
                let Some(Reverse((at, _, index, happening))) = self.happenings.pop() else {
                    return false;
                };
                self.now = at;
                self.happen(index, happening);
            }
            (_, Some(deadline)) => {
                self.now = self.now.max(deadline);
                self.tell(Event::Timer);
            }
            (_, None) => return false,
        }
        true
    }

    fn report(self) -> Result<Report, SimError> {
        if let Some(index) = self.unfinished.first() {
            return Err(SimError::Stuck(*index));
        }
        let finished = self.clients.iter().filter_map(|client| client.report.finished);
        Ok(Report {
            makespan: finished.max().unwrap_or_default(),
            clients: self.clients.into_iter().map(|client| client.report).collect(),
            gpus: self.gpus,
            events: self.events,
            grants: self.grants,
            recalls: self.recalls,
            promise_late: self.promise_late,
        })
    }

    fn plan(&mut self, index: usize, after: Duration, happening: Happening) {
        self.order += 1;
        self.happenings.push(Reverse((self.now.after(after), self.order, index, happening)));
    }

    fn happen(&mut self, index: usize, happening: Happening) {
        match happening {
            Happening::Arrival => self.arrive(index),
            Happening::CpuDone => self.want_gpu(index),
            Happening::GpuDone(epoch) if self.runs(index, epoch) => {
                self.stop(index);
                let client = &self.clients[index];
                let keeps = client.script.release == Release::WhenWanted;
                if !keeps || client.lease.as_ref().is_some_and(|lease| lease.wanted) {
                    self.release(index);
                }
                self.next_phase(index);
            }
            Happening::Stopped(epoch) if self.runs(index, epoch) => {
                self.stop(index);
                self.release(index);
                self.ask(index);
            }
            // The lease ended before.
            Happening::GpuDone(_) | Happening::Stopped(_) => {}
        }
    }

    fn arrive(&mut self, index: usize) {
        let script = self.clients[index].script;
        let spec = ClientSpec {
            gpus: script.gpus,
            eligible: script.eligible.clone(),
            ..ClientSpec::default()
        };
        self.tell(Event::Join { client: number(index), spec });
        if self.clients[index].report.refused.is_some() {
            return;
        }
        if script.binding == Binding::AtArrival {
            self.tell(Event::Bind { client: number(index) });
        }
        self.next_phase(index);
    }

    fn next_phase(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let Some(&Phase { cpu, gpu }) = client.script.phases.get(client.begun) else {
            client.report.finished = Some(self.now.since(Time(0)));
            self.unfinished.remove(&index);
            self.tell(Event::Leave { client: number(index) });
            return;
        };
        client.begun += 1;
        client.left = gpu;
        self.plan(index, cpu, Happening::CpuDone);
    }

    fn want_gpu(&mut self, index: usize) {
        if self.clients[index].lease.is_some() {
            self.start(index);
        } else {
            self.ask(index);
        }
    }

    fn ask(&mut self, index: usize) {
        let client = &mut self.clients[index];
        client.asked = self.now;
        let expected = match client.script.expectation {
            Expectation::Unknown => None,
            Expectation::Exact => Some(client.left),
            Expectation::Times(factor) => Some(client.left.mul_f64(factor)),
        };
        self.tell(Event::Acquire { client: number(index), expected });
    }

    /// The work of the current GPU phase begins, or goes on.
    fn start(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let lease = client.lease.as_mut().expect("work starts under a lease");
        let mut switch = Duration::ZERO;
        for gpu in &lease.gpus {
            let latest = self.latest_holder[gpu.index()].replace(index);
            if latest.is_some_and(|latest| latest != index) {
                self.gpus[gpu.index()].switches += 1;
                switch = self.scenario.switch;
            }
        }
        let epoch = lease.epoch;
        lease.running = Some(self.now.after(switch));
        let left = client.left;
        self.plan(index, switch + left, Happening::GpuDone(epoch));
    }

    fn runs(&self, index: usize, epoch: Epoch) -> bool {
        let lease = self.clients[index].lease.as_ref();
        lease.is_some_and(|lease| lease.epoch == epoch && lease.running.is_some())
    }

    /// The work stops: it is done, or the lease was recalled.
    fn stop(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let lease = client.lease.as_mut().expect("work stops under a lease");
        // A recall may come before the switch to this holder is over.
        let started = lease.running.take().expect("only what runs is stopped").min(self.now);
        let worked = self.now.since(started);
        for gpu in &lease.gpus {
            self.gpus[gpu.index()].busy += worked;
        }
        client.left = client.left.saturating_sub(worked);
        client.report.runs.push((started.since(Time(0)), self.now.since(Time(0))));
    }

    fn release(&mut self, index: usize) {
        let lease = self.clients[index].lease.take().expect("a held lease is released");
        self.tell(Event::Release { client: number(index), epoch: lease.epoch, busy: None });
    }

    /// Gives the scheduler an event and does what it says.
    fn tell(&mut self, event: Event) {
        self.events += 1;
        self.scheduler.handle(event, self.now);
        debug_assert_eq!(self.scheduler.sanity_check(), Ok(()));
        while let Some(action) = self.scheduler.poll_action() {
            self.obey(action);
        }
    }

    fn obey(&mut self, action: Action) {
        match action {
            Action::Grant { client, epoch, gpus, .. } => {
                let index = index(client);
                self.grants += 1;
                let promised = self.scheduler.clients[&number(index)].lease.as_ref();
                let promised = promised.and_then(|lease| lease.promised).unwrap_or(self.now);
                self.promise_late = self.promise_late.max(self.now.since(promised));
                let client = &mut self.clients[index];
                client.report.waits.push(self.now.since(client.asked));
                client.lease = Some(Lease { epoch, gpus, running: None, wanted: false });
                self.start(index);
            }
            Action::Wanted { client, epoch } => self.wanted(index(client), epoch),
            Action::Recall { client, epoch } => {
                self.recalls += 1;
                let index = index(client);
                if self.runs(index, epoch) {
                    let kernel = self.clients[index].script.kernel;
                    self.plan(index, kernel, Happening::Stopped(epoch));
                } else {
                    self.wanted(index, epoch);
                }
            }
            Action::Refused { client, reason } => {
                let index = index(client);
                self.clients[index].report.refused = Some(reason);
                self.unfinished.remove(&index);
            }
            // Made-up clients have no memory.
            Action::Bound { .. }
            | Action::GangReport(_)
            | Action::Room { .. }
            | Action::Evict { .. }
            | Action::Credit { .. }
            | Action::Arena { .. }
            | Action::Blocked { .. } => {}
        }
    }

    /// Somebody waits: a lease that is not in use is given back at once.
    fn wanted(&mut self, index: usize, epoch: Epoch) {
        let Some(lease) = &mut self.clients[index].lease else { return };
        if lease.epoch == epoch {
            lease.wanted = true;
            if lease.running.is_none() {
                self.release(index);
            }
        }
    }
}

fn number(index: usize) -> ClientId {
    ClientId(index as u64)
}

fn index(client: ClientId) -> usize {
    usize::try_from(client.0).expect("clients are numbered by their index")
}

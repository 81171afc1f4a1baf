//! What a client does: the interposer's behaviour, without the program.
//!
//! ```text
//!           Arrive          work is there            Grant               stopped between kernels, or all done
//!  absent ─────────► idle ────────────────► waiting ───────► running ──────────────────────────────┐
//!                     ▲ ▲                      ▲                ▲ │ work done                      │
//!                     │ │                      │                │ ▼                                │
//!                     │ └── wanted and idle ───┼──────────── holding, no work                      │
//!                     └───── no work left ─────┴──── recalled: Release, and Acquire for the rest ◄─┘
//! ```
//!
//! Does not own: messages (`node`), faults (`fault`).

use std::collections::VecDeque;
use std::time::Duration;

use acb_core::{Action, ClientSpec, Epoch, Event, Gpu, Held, Room, Time};

use super::check::{Due, Passed, Turn};
use super::memory::Paged;
use super::{Doing, Done, Happening, Lease, Span, World};
use crate::random::Random;
use crate::scenario::{self, Expectation, Release, Work};

/// Where a client is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// Not there yet.
    Absent,
    /// There.
    Here,
    /// Killed, but its process is not gone.
    Dying,
    /// Done, refused, or gone.
    Over,
}

/// A piece of GPU work.
#[derive(Clone, Copy, Debug)]
struct Job {
    wanted: Time,
    cpu: Duration,
    total: Duration,
    left: Duration,
}

/// Work under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    pub(super) from: Time,
    pub(super) to: Time,
}

pub(super) struct Client {
    pub(super) life: Life,
    random: Random,
    /// Rounds or requests still to come; `None`: no end.
    left: Option<u64>,
    cpu: Duration,
    jobs: VecDeque<Job>,
    /// Rounds done.
    pub(super) done: u64,
    /// It waits for the others of its gang to have done as many.
    pub(super) pauses: bool,
    /// It has asked for a lease that has not come.
    pub(super) asked: bool,
    pub(super) lease: Option<Lease>,
    pub(super) running: Option<Running>,
    /// As its scheduler knows it: since when it waits, and if its tenant's guarantee covers that, how long a page-in may go on
    /// then that it has to wait for.
    pub(super) waits: Option<(Time, Option<Duration>)>,
    /// Its scheduler has refused it; it may not have heard of that yet.
    pub(super) refused: bool,
    /// As its scheduler knows it: it holds a lease.
    pub(super) holds: bool,
    /// The latest one.
    pub(super) turn: Option<Turn>,
    /// It holds one, and has been asked for it.
    pub(super) leaves: bool,
    /// It was asked for its latest lease before its time was over: it asks again for the rest, by the same request.
    pub(super) gave_way: bool,
    /// How many of lower levels have started where it waits, since nobody was left who goes before it.
    pub(super) outrun: u32,
    /// How others were let go before its latest request.
    pub(super) passed: Passed,
    /// What was promised of the lease that it has, until its memory is there.
    pub(super) due: Option<Due>,
    /// Counts what it ran and when it was idle: what was planned for an earlier one is void.
    number: u32,
    idle_since: Time,
    pub(super) bound: Vec<Gpu>,
    /// Those of the lease with which an assigner that had started again let it in: it counts as bound to them.
    pub(super) adopted: Vec<Gpu>,
    /// Its memory on each of them.
    pub(super) memory: Vec<Paged>,
    /// Claims that have no answer.
    pub(super) claims: usize,
    /// Stopped by a signal; what comes meanwhile waits.
    pub(super) stopped: bool,
    pub(super) inbox: Vec<Action>,
    /// It has joined the present life of its assigner.
    pub(super) connected: bool,
    /// It was stopped while its assigner started again: it must not compute before it knows that its lease still holds.
    pub(super) unsure: bool,
    /// When its latest message arrives, in both directions: they keep their order.
    pub(super) latest: (Time, Time),
    /// When the latest that did not arrive at once does.
    pub(super) under_way: Option<Time>,
    /// For the picture.
    doing: Option<(Doing, Time)>,
}

impl Client {
    pub(super) fn new(spec: &scenario::Client, random: Random) -> Client {
        let left = match spec.work {
            Work::Rounds { rounds, .. } => rounds,
            Work::Requests { requests, .. } => requests,
        };
        Client {
            life: Life::Absent,
            random,
            left,
            cpu: Duration::ZERO,
            jobs: VecDeque::new(),
            done: 0,
            pauses: false,
            asked: false,
            lease: None,
            running: None,
            waits: None,
            refused: false,
            holds: false,
            turn: None,
            leaves: false,
            gave_way: false,
            outrun: 0,
            passed: Passed::default(),
            due: None,
            number: 0,
            idle_since: Time(0),
            bound: Vec::new(),
            adopted: Vec::new(),
            memory: Vec::new(),
            claims: 0,
            stopped: false,
            inbox: Vec::new(),
            connected: false,
            unsure: false,
            latest: (Time(0), Time(0)),
            under_way: None,
            doing: None,
        }
    }

    /// There is something for it to do on GPUs.
    pub(super) fn has_work(&self) -> bool {
        self.running.is_some() || !self.jobs.is_empty()
    }
}

impl World<'_, '_> {
    fn spec(&self, index: usize) -> &scenario::Client {
        &self.scenario.clients[index]
    }

    pub(super) fn arrive(&mut self, index: usize) {
        if self.clients[index].life != Life::Absent {
            return; // killed before it came
        }
        self.clients[index].life = Life::Here;
        self.connect(index);
        if self.clients[index].life == Life::Here {
            self.next_work(index);
        }
    }

    /// Joins the assigner of its node, with what it holds from an earlier life of that.
    pub(super) fn connect(&mut self, index: usize) {
        let spec = self.spec(index);
        let wants_binding = spec.bound;
        let mut told = ClientSpec {
            gpus: spec.gpus,
            eligible: spec.eligible.clone(),
            priority: spec.priority,
            tenant: spec.tenant.clone(),
            queue: spec.queue.clone(),
            gang: spec.gang.clone(),
            memory_limit: spec.memory_limit,
            ..ClientSpec::default()
        };
        let node = &self.nodes[spec.node];
        if node.scheduler.is_none() {
            return; // it connects when the assigner is back
        }
        let client = &mut self.clients[index];
        client.connected = true;
        client.asked = false;
        client.adopted = client.lease.as_ref().map_or_else(Vec::new, |lease| lease.gpus.clone());
        let held = client.lease.as_ref().map_or(&client.bound, |lease| &lease.gpus);
        let room = |at: usize| client.memory.get(at).map_or(Room::default(), Paged::room);
        let bound: Vec<(Gpu, Room)> =
            held.iter().enumerate().map(|(at, gpu)| (*gpu, room(at))).collect();
        let lease = client.lease.as_ref().map(|lease| lease.epoch);
        told.held = (!bound.is_empty()).then_some(Held { bound, lease });
        if client.claims > 0 {
            client.memory.clear(); // it asks again
        }
        let is_bound = told.held.is_some();
        let client = super::node::number(index);
        self.send(index, Event::Join { client, spec: told });
        if wants_binding && !is_bound {
            self.send(index, Event::Bind { client });
        } else if is_bound {
            self.claim(index);
            self.forget_asked(index);
        }
    }

    /// Plans the next round or request.
    pub(super) fn next_work(&mut self, index: usize) {
        let work = &self.scenario.clients[index].work;
        let client = &mut self.clients[index];
        if client.left == Some(0) {
            if client.jobs.is_empty() {
                self.finish(index);
            }
            return;
        }
        if !self.may_begin(index) {
            self.clients[index].pauses = true;
            return;
        }
        let client = &mut self.clients[index];
        client.left = client.left.map(|left| left - 1);
        match work {
            Work::Rounds { cpu, .. } => {
                client.cpu = cpu.draw(&mut client.random);
                let cpu = client.cpu;
                self.doing(index, Doing::Cpu);
                self.plan(cpu, Happening::CpuOver(index));
            }
            Work::Requests { every, .. } => {
                let after = every.draw(&mut client.random);
                self.plan(after, Happening::Request(index));
            }
        }
    }

    pub(super) fn cpu_over(&mut self, index: usize) {
        if self.clients[index].life == Life::Here {
            self.want(index);
        }
    }

    pub(super) fn request(&mut self, index: usize) {
        if self.clients[index].life == Life::Here {
            self.clients[index].cpu = Duration::ZERO;
            self.want(index);
            self.next_work(index);
        }
    }

    /// There is work for the GPU.
    fn want(&mut self, index: usize) {
        let (Work::Rounds { gpu, .. } | Work::Requests { gpu, .. }) =
            &self.scenario.clients[index].work;
        let client = &mut self.clients[index];
        let total = gpu.draw(&mut client.random).max(Duration::from_nanos(1));
        let job = Job { wanted: self.now, cpu: client.cpu, total, left: total };
        client.jobs.push_back(job);
        self.drive(index);
    }

    /// Does what is to be done now: run, wait, or give back.
    pub(super) fn drive(&mut self, index: usize) {
        let client = &self.clients[index];
        if client.life != Life::Here || client.stopped || client.running.is_some() {
            return;
        }
        match (&client.lease, client.jobs.is_empty()) {
            (Some(lease), _) if lease.recalled => self.release(index),
            (Some(_), _) if client.unsure => {}
            (Some(_), false) if !self.is_resident(index) => self.doing(index, Doing::Moving),
            (Some(_), false) => self.start(index),
            (Some(_), true) => self.hold(index),
            (None, false) => self.ask(index),
            (None, true) => {}
        }
    }

    fn ask(&mut self, index: usize) {
        self.doing(index, Doing::Waiting);
        let client = &mut self.clients[index];
        if !client.connected || client.asked || self.is_claiming(index) {
            return;
        }
        let client = &mut self.clients[index];
        client.asked = true;
        let left: Duration = client.jobs.iter().map(|job| job.left).sum();
        let expected = match self.spec(index).expectation {
            Expectation::Unknown => None,
            Expectation::Times(factor) => Some(left.mul_f64(factor)),
        };
        self.send(index, Event::Acquire { client: super::node::number(index), expected });
    }

    /// The first piece of work begins, or goes on.
    fn start(&mut self, index: usize) {
        self.write_memory(index);
        let switch = self.take_gpus(index);
        self.get_ready(index, switch);
        let client = &mut self.clients[index];
        let Some(job) = client.jobs.front() else { return };
        client.number = client.number.wrapping_add(1);
        let from = self.now.after(switch);
        let running = Running { from, to: from.after(job.left) };
        client.running = Some(running);
        let number = client.number;
        self.doing(index, if switch.is_zero() { Doing::Gpu } else { Doing::Moving });
        self.plan_at(running.to, Happening::RunOver(index, number));
    }

    /// All that a lease needs is on its GPUs, or will be when the switch is over.
    fn get_ready(&mut self, index: usize, switch: Duration) {
        let now = self.now;
        let Some(lease) = &mut self.clients[index].lease else { return };
        if std::mem::replace(&mut lease.ready, true) {
            return;
        }
        let epoch = lease.epoch;
        let (gpus, ready) = (lease.gpus.clone(), now.after(switch));
        self.outcome.switching.push((index, gpus, lease.granted, ready));
        match switch.is_zero() {
            true => self.ready(index, epoch),
            false => self.plan(switch, Happening::Ready(index, epoch)),
        }
    }

    /// Its quantum begins.
    pub(super) fn ready(&mut self, index: usize, epoch: Epoch) {
        if self.lease_mut(index, epoch).is_some() {
            self.send(index, Event::Ready { client: super::node::number(index), epoch });
        }
    }

    pub(super) fn run_over(&mut self, index: usize, number: u32) {
        if self.clients[index].number != number || self.clients[index].running.is_none() {
            return;
        }
        self.halt(index);
        let client = &mut self.clients[index];
        let Some(job) = client.jobs.pop_front() else { return };
        let done = Done {
            client: index,
            wanted: job.wanted,
            done: self.now,
            cpu: job.cpu,
            gpu: job.total,
        };
        self.outcome.done.push(done);
        if self.clients[index].life != Life::Here {
            return;
        }
        match self.spec(index).work {
            Work::Rounds { .. } => {
                self.clients[index].done += 1;
                self.next_work(index);
                self.move_gang(index);
            }
            Work::Requests { .. } => {
                let client = &self.clients[index];
                if client.left == Some(0) && client.jobs.is_empty() {
                    self.finish(index);
                }
            }
        }
        self.drive(index);
    }

    /// It has been asked to stop, and is between two kernels.
    pub(super) fn boundary(&mut self, index: usize, number: u32) {
        if self.clients[index].number != number || self.clients[index].running.is_none() {
            return;
        }
        self.halt(index);
        self.outcome.preemptions += 1;
        self.drive(index);
    }

    /// Its work ends or pauses.
    pub(super) fn halt(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let Some(running) = client.running.take() else { return };
        client.number = client.number.wrapping_add(1);
        client.idle_since = self.now;
        let from = running.from.min(self.now); // it may be told before the switch is over
        let worked = self.now.since(from);
        if let Some(job) = client.jobs.front_mut() {
            job.left = job.left.saturating_sub(worked);
        }
        if let Some(lease) = &mut client.lease {
            lease.busy += worked;
        }
        self.outcome.busy.push((index, from, self.now));
        self.leave_gpus(index);
        self.pump_all(index);
        if self.watch.spans {
            let gpus = self.clients[index].lease.as_ref().map(|lease| lease.gpus.clone());
            self.outcome.held.extend(gpus.map(|gpus| (index, gpus, from, self.now)));
            self.close(index);
            if let Some(span) = self.outcome.spans.last_mut() {
                // A switch is drawn as what it is.
                if span.client == index && span.doing == Doing::Moving && from > span.from {
                    span.to = from;
                    let span = Span { client: index, from, to: self.now, doing: Doing::Gpu };
                    self.outcome.spans.push(span);
                }
            }
        }
    }

    /// It holds a lease without work for it.
    fn hold(&mut self, index: usize) {
        match self.spec(index).release {
            Release::AfterPhase => self.release(index),
            Release::WhenWanted(idle) => {
                let client = &self.clients[index];
                let wanted = client.lease.as_ref().is_some_and(|lease| lease.wanted);
                let number = client.number;
                let at = client.idle_since.after(idle);
                if wanted {
                    self.plan_at(at.max(self.now), Happening::Idle(index, number));
                }
            }
        }
    }

    pub(super) fn idle(&mut self, index: usize, number: u32) {
        let client = &self.clients[index];
        let waits = client.number == number && client.running.is_none() && client.jobs.is_empty();
        if waits && client.life == Life::Here && !client.stopped {
            self.release(index);
        }
    }

    fn release(&mut self, index: usize) {
        let Some(lease) = self.clients[index].lease.take() else { return };
        self.clients[index].number = self.clients[index].number.wrapping_add(1);
        let client = super::node::number(index);
        let release = Event::Release { client, epoch: lease.epoch, busy: Some(lease.busy) };
        self.send(index, release);
        self.drive(index);
    }

    pub(super) fn finish(&mut self, index: usize) {
        self.close(index);
        self.outcome.finished[index] = Some(self.now);
        self.over(index);
        self.send(index, Event::Leave { client: super::node::number(index) });
    }

    /// A client is no more.
    pub(super) fn over(&mut self, index: usize) {
        let client = &mut self.clients[index];
        client.life = Life::Over;
        client.lease = None;
        client.jobs.clear();
        client.memory.clear();
        self.unfinished -= 1;
        self.move_gang(index);
    }

    /// What the assigner says.
    pub(super) fn hear(&mut self, index: usize, action: Action) {
        match action {
            Action::Grant { epoch, gpus, .. } => {
                let client = &mut self.clients[index];
                client.asked = false;
                client.idle_since = self.now;
                client.lease = Some(Lease::new(epoch, gpus, self.now));
                self.drive(index);
            }
            Action::Wanted { epoch, .. } => {
                if let Some(lease) = self.lease_mut(index, epoch) {
                    lease.wanted = true;
                    self.drive(index);
                }
            }
            Action::Recall { epoch, .. } => {
                let kernel = self.spec(index).kernel;
                if let Some(lease) = self.lease_mut(index, epoch) {
                    (lease.wanted, lease.recalled) = (true, true);
                    self.stop_after_kernel(index, kernel);
                    self.drive(index);
                }
            }
            Action::Overtaken { epoch, .. } => {
                if self.lease_mut(index, epoch).is_some() {
                    self.clients[index].lease = None;
                    self.drive(index);
                }
            }
            Action::Bound { gpus, .. } => {
                self.clients[index].bound = gpus;
                self.claim(index);
                self.drive(index);
            }
            Action::Room { seq, verdict, .. } => self.claimed(index, seq, &verdict),
            Action::Credit { gpu, bytes, .. } => {
                self.credited(index, gpu, bytes);
                self.drive(index);
            }
            Action::Evict { gpu, bytes, .. } => self.evict(index, gpu, bytes),
            Action::Withdraw { gpu, .. } => self.withdraw(index, gpu),
            Action::Stay { gpu, .. } => self.stay(index, gpu),
            // Pinned host memory is there at once.
            Action::Arena { .. } | Action::Blocked { .. } | Action::GangReport(_) => {}
            Action::Refused { reason, .. } => {
                self.outcome.refused[index] = Some(reason.to_string());
                self.close(index);
                self.halt(index);
                self.over(index);
                self.send(index, Event::Leave { client: super::node::number(index) });
                self.fail_gang(index);
            }
        }
    }

    fn lease_mut(&mut self, index: usize, epoch: Epoch) -> Option<&mut Lease> {
        self.clients[index].lease.as_mut().filter(|lease| lease.epoch == epoch)
    }

    /// What runs is stopped at the end of the kernel that runs now.
    pub(super) fn stop_after_kernel(&mut self, index: usize, kernel: Duration) {
        let client = &self.clients[index];
        let (Some(running), number) = (client.running, client.number) else { return };
        let at = end_of_kernel(running, self.now, kernel);
        if at < running.to {
            self.plan_at(at, Happening::Boundary(index, number));
        }
    }

    /// A new stretch of the picture begins.
    fn doing(&mut self, index: usize, doing: Doing) {
        if self.watch.spans && self.clients[index].doing.is_none_or(|(now, _)| now != doing) {
            self.close(index);
            self.clients[index].doing = Some((doing, self.now));
        }
    }

    /// Ends the present stretch of the picture.
    pub(super) fn close(&mut self, index: usize) {
        if let Some((doing, from)) = self.clients[index].doing.take()
            && from < self.now
        {
            self.outcome.spans.push(Span { client: index, from, to: self.now, doing });
        }
    }
}

/// The first moment from `now` on at which no kernel runs.
pub(super) fn end_of_kernel(running: Running, now: Time, kernel: Duration) -> Time {
    let done = now.since(running.from).as_nanos();
    let kernel = kernel.as_nanos();
    if kernel == 0 || done == 0 {
        return now; // also while memory is still moved for it
    }
    let whole = done.div_ceil(kernel) * kernel;
    running
        .from
        .after(Duration::from_nanos(u64::try_from(whole).unwrap_or(u64::MAX)))
        .min(running.to)
}

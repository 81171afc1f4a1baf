//! Two or three clients, a GPU, an assigner that begins anew, a client that dies, a connection that breaks: every order of events
//! (stateright).
//!
//! Real: the scheduler, with its clock. What is on its way to somebody arrives in its order, as late as may be, and is lost with the
//! assigner, or with the connection. A timer fires at any moment, and then it is as late as it says; so a quantum, a drain and the time after a restart can be
//! over before anything else happens. What an assigner knows of its earlier life was written when a client came or went, or just now.
//!
//! Checked in every state: the scheduler's own invariants; at most one client computes, and none under a lease after which another
//! one was used; epochs grow; no more is on the GPU than fits; nobody is refused, and who comes back in time has its lease still. And
//! of every state that it leads to the end ([`graph`](crate::graph)), in which all clients are gone.
//!
//! Left out, for two states to be the same: all that is statistics, how the clock stands (deadlines count from now), and how many
//! epochs there were (their order counts). Of the scheduler what a snapshot shows is compared, with what is due next; not who has
//! moved memory too late before. Assumed, as the design does: who does not come back within the settle time after a restart runs no
//! kernel any more by then, and asks before the next one.

mod same;

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use acb_core::{Action, ClientId, ClientSpec, Epoch, Event, Held, Rest, Scheduler, Time};
use stateright::{Model, Property};

use crate::assigner::{Assigner, GPU};
use crate::client::{Client, Flaw, Life, Memory, Said, Says};
use crate::graph::{Ends, Trap, explore};

#[derive(Clone, Debug, Default)]
struct Setup {
    /// How often each client needs the GPU.
    phases: Vec<u8>,
    /// Memory of the GPU and what each client claims, in chunks.
    memory: (u64, u64),
    restarts: u8,
    deaths: u8,
    /// Connections that break while the assigner lives on.
    breaks: u8,
    flaw: Option<Flaw>,
    /// The assigner does not say again what may have been lost.
    mute: bool,
    /// What clients have heard, to see that it happens at all.
    heard: Arc<Mutex<BTreeSet<String>>>,
}

#[derive(Clone, Debug)]
struct State {
    assigner: Assigner,
    now: Time,
    world: World,
}

/// All that is not the scheduler's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    clients: Vec<Client>,
    to: Vec<VecDeque<Said>>,
    from: Vec<VecDeque<Says>>,
    /// The latest lease that was granted, and that was used.
    granted: Epoch,
    used: Epoch,
    /// Whose lease has to outlive the restart.
    keeps: Vec<Option<Epoch>>,
    restarts: u8,
    deaths: u8,
    breaks: u8,
    mute: bool,
    /// Whose connection is broken: what is said to it is lost.
    broken: Vec<bool>,
    wrong: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Begin(usize),
    Run(usize),
    Stop(usize),
    Done(usize),
    GiveBack(usize),
    Move(usize),
    Hear(usize),
    Reach(usize),
    Timer,
    Exit(usize),
    Kill(usize),
    Gone(usize),
    Break(usize),
    /// Whether what it knows is written down.
    Restart(bool),
    Back,
    Reconnect(usize),
}

impl Model for Setup {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let (chunks, claimed) = self.memory;
        let count = self.phases.len();
        let clients = self.phases.iter().map(|phases| Client::new(*phases, claimed, self.flaw));
        vec![State {
            assigner: Assigner::new(chunks.max(1), &vec![claimed; count]),
            now: Time(0),
            world: World {
                clients: clients.collect(),
                to: vec![VecDeque::new(); count],
                from: vec![VecDeque::new(); count],
                granted: Epoch(0),
                used: Epoch(0),
                keeps: vec![None; count],
                restarts: self.restarts,
                deaths: self.deaths,
                breaks: self.breaks,
                mute: self.mute,
                broken: vec![false; count],
                wrong: None,
            },
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        let World { clients, to, from, restarts, deaths, breaks, .. } = &state.world;
        let is_up = state.assigner.scheduler.is_some();
        for (at, client) in clients.iter().enumerate() {
            let mut may = |can: bool, step: Step| steps.extend(can.then_some(step));
            let here = client.life == Life::Here;
            may(client.may_begin(), Step::Begin(at));
            may(client.may_run(), Step::Run(at));
            may(client.may_stop(), Step::Stop(at));
            may(client.may_be_done(), Step::Done(at));
            may(client.may_give_back(), Step::GiveBack(at));
            may(client.may_move(), Step::Move(at));
            may(!to[at].is_empty(), Step::Hear(at));
            may(!from[at].is_empty(), Step::Reach(at));
            may(client.may_exit(), Step::Exit(at));
            may(here && *deaths > 0, Step::Kill(at));
            may(client.life == Life::Dying && client.runs.is_none(), Step::Gone(at));
            may(here && is_up && !client.connected, Step::Reconnect(at));
            may(here && is_up && client.connected && *breaks > 0, Step::Break(at));
        }
        if let Some(due) = state.assigner.scheduler.as_ref().and_then(Scheduler::poll_deadline) {
            let late =
                if state.assigner.settles_by(due) { state.assigner.awaits() } else { vec![] };
            if late.iter().all(|at| clients[*at].runs.is_none()) {
                steps.push(Step::Timer);
            }
        }
        if is_up && *restarts > 0 {
            steps.extend([Step::Restart(false), Step::Restart(true)]);
        }
        if !is_up {
            steps.push(Step::Back);
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        if let Step::Hear(at) = step {
            let said = format!("{:?}", last.world.to[at][0]);
            let name = said.split('(').next().unwrap_or_default().to_owned();
            self.heard.lock().expect("nobody panicked with it").insert(name);
        }
        let mut state = last.clone();
        state.take(step);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("nothing is wrong", |_, state: &State| {
            state.world.wrong.iter().for_each(|wrong| eprintln!("{wrong}"));
            state.world.wrong.is_none()
        })]
    }
}

impl Ends for Setup {
    fn is_done(&self, state: &State) -> bool {
        state.world.clients.iter().all(|client| client.life == Life::Gone)
    }
}

impl State {
    fn take(&mut self, step: Step) {
        let World { clients, to, from, used, .. } = &mut self.world;
        match step {
            Step::Begin(at) => clients[at].begin(&mut from[at]),
            Step::Run(at) => {
                clients[at].run();
                self.check_run(at);
            }
            Step::Stop(at) => clients[at].stop(&mut from[at]),
            Step::Done(at) => clients[at].done(&mut from[at]),
            Step::GiveBack(at) => clients[at].give_back(&mut from[at]),
            Step::Move(at) => clients[at].move_chunk(&mut from[at]),
            Step::Hear(at) => {
                let said = to[at].pop_front().expect("something is said");
                clients[at].hear(said, Some(*used), &mut from[at]);
            }
            Step::Reach(at) => {
                let says = from[at].pop_front().expect("something is said");
                self.reach(at, says);
            }
            Step::Timer => self.fire(),
            Step::Exit(at) => self.die(at),
            Step::Kill(at) => {
                self.world.deaths -= 1;
                self.die(at);
            }
            Step::Gone(at) => {
                clients[at].life = Life::Gone;
                clients[at].lease = None;
                clients[at].memory = Default::default();
                from[at].clear();
                self.tell(Event::Leave { client: ClientId(at as u64) });
            }
            Step::Break(at) => {
                // What has not arrived by now is lost; that it is over arrives in any case.
                clients[at].lose();
                to[at].clear();
                from[at].clear();
                from[at].push_back(Says::Lost);
                self.world.breaks -= 1;
                self.world.broken[at] = true;
            }
            Step::Restart(is_written) => self.restart(is_written),
            Step::Back => {
                self.assigner.begin(self.now);
                for at in 0..self.world.clients.len() {
                    if self.world.clients[at].life == Life::Gone {
                        self.tell(Event::Leave { client: ClientId(at as u64) });
                    }
                }
                self.tell(Event::Timer);
            }
            Step::Reconnect(at) => clients[at].reconnect(&mut from[at]),
        }
        let on_gpu: u64 = self.world.clients.iter().map(|client| client.memory.on_gpu()).sum();
        if on_gpu > self.assigner.chunks {
            self.world.wrong = Some(format!("{on_gpu} chunks are on the GPU"));
        }
    }

    /// Killed, or at its end: it says and hears nothing any more.
    fn die(&mut self, at: usize) {
        self.world.clients[at].life = Life::Dying;
        self.world.to[at].clear();
    }

    fn restart(&mut self, is_written: bool) {
        self.world.restarts -= 1;
        if is_written {
            self.assigner.write_all();
        }
        let snapshot = self.assigner.scheduler.take().map(|it| it.snapshot());
        for known in snapshot.into_iter().flat_map(|it| it.clients) {
            let at = known.client.0 as usize;
            let client = &self.world.clients[at];
            let has = client.lease.map(|lease| lease.epoch);
            self.world.keeps[at] = has.filter(|epoch| Some(*epoch) == known.epoch);
        }
        for (at, client) in self.world.clients.iter_mut().enumerate() {
            client.lose();
            self.world.broken[at] = false;
            self.world.to[at].clear();
            self.world.from[at].clear();
        }
    }

    /// Something is due: it is so late.
    fn fire(&mut self) {
        let due = self.assigner.scheduler.as_ref().and_then(Scheduler::poll_deadline);
        let due = due.expect("something is due");
        if self.assigner.settles_by(due) {
            for at in self.assigner.awaits() {
                self.world.clients[at].unsure = true;
                self.world.keeps[at] = None;
            }
        }
        self.now = self.now.max(due);
        self.tell(Event::Timer);
    }

    /// What a client says reaches the assigner.
    fn reach(&mut self, at: usize, says: Says) {
        let client = ClientId(at as u64);
        self.world.broken[at] &= !matches!(says, Says::Join(..));
        let event = match says {
            Says::Lost => Event::Away { client },
            Says::Join(memory, lease) if self.has(client) => {
                self.agree_on_memory(client, memory);
                if self.world.mute {
                    return self.world.to[at].push_back(Said::Welcome);
                }
                Event::Back { client, lease }
            }
            Says::Join(memory, lease) => {
                let held = Some(Held { bound: vec![(GPU, memory.room())], lease });
                Event::Join { client, spec: ClientSpec { held, ..ClientSpec::default() } }
            }
            Says::Acquire => Event::Acquire { client, expected: None },
            Says::Release(epoch) => Event::Release { client, epoch, busy: None },
            Says::Ready(epoch) => Event::Ready { client, epoch },
            Says::Evicted(bytes) => Event::Evicted { client, gpu: GPU, bytes, rest: Rest::Comes },
            Says::Return(resident) => Event::ClaimReturn { client, gpu: GPU, bytes: 0, resident },
        };
        self.tell(event);
        if let Says::Join(_, lease) = says {
            if self.world.clients[at].life == Life::Here {
                self.world.to[at].push_back(Said::Welcome);
            }
            let kept = self.world.keeps[at].take();
            if kept.is_some() && kept == lease && self.holds(client) != kept {
                self.world.wrong = Some(format!("{client} has lost its lease by the restart"));
            }
        }
    }

    fn has(&self, client: ClientId) -> bool {
        let snapshot = self.assigner.scheduler.as_ref().map(Scheduler::snapshot);
        snapshot.is_some_and(|snapshot| snapshot.clients.iter().any(|it| it.client == client))
    }

    /// Who is back says what it has; what the assigner counts beyond that was on its way when the connection broke.
    fn agree_on_memory(&mut self, client: ClientId, memory: Memory) {
        let scheduler = self.assigner.scheduler.as_ref().expect("a message has reached it");
        let (ours, theirs) = (scheduler.room(client, GPU), memory.room());
        let bytes = ours.claimed.saturating_sub(theirs.claimed);
        let resident = ours.resident.saturating_sub(theirs.resident);
        if bytes > 0 || resident > 0 {
            self.tell(Event::ClaimReturn { client, gpu: GPU, bytes, resident });
        }
    }

    fn holds(&self, client: ClientId) -> Option<Epoch> {
        let snapshot = self.assigner.scheduler.as_ref()?.snapshot();
        snapshot.clients.iter().find(|it| it.client == client)?.epoch
    }

    fn tell(&mut self, event: Event) {
        for action in self.assigner.tell(event, self.now) {
            self.act(action);
        }
        let sane = self.assigner.scheduler.as_ref().map(Scheduler::sanity_check);
        if let Some(Err(error)) = sane {
            self.world.wrong = Some(error.to_string());
        }
    }

    fn act(&mut self, action: Action) {
        let (client, said) = match action {
            Action::Grant { client, epoch, is_ready, .. } => {
                if epoch <= self.world.granted {
                    self.world.wrong = Some(format!("{epoch} is not new"));
                }
                self.world.granted = epoch;
                (client, Said::Grant(epoch, is_ready))
            }
            Action::Wanted { client, epoch } => (client, Said::Wanted(epoch)),
            Action::Recall { client, epoch } => (client, Said::Recall(epoch)),
            Action::Overtaken { client, epoch } => (client, Said::Overtaken(epoch)),
            Action::Credit { client, bytes, .. } => (client, Said::Credit(bytes)),
            Action::Evict { client, bytes, .. } => (client, Said::Evict(bytes)),
            Action::Withdraw { client, .. } => (client, Said::Withdraw),
            Action::Stay { client, .. } => (client, Said::Stay),
            Action::Arena { .. } | Action::Blocked { .. } => return,
            other => {
                self.world.wrong = Some(format!("{other:?}"));
                return;
            }
        };
        let at = client.0 as usize;
        if self.world.clients[at].life == Life::Here && !self.world.broken[at] {
            self.world.to[at].push_back(said);
        }
    }

    /// A client submits something.
    fn check_run(&mut self, at: usize) {
        let client = &self.world.clients[at];
        let (Some(lease), Some(epoch)) = (client.lease, client.runs) else { return };
        let mut others = (0..).zip(&self.world.clients).filter(|(other, _)| *other != at);
        if let Some((other, _)) = others.find(|(_, other)| other.runs.is_some()) {
            self.world.wrong = Some(format!("{at} and {other} compute at a time"));
        }
        if lease.renewed.max(Some(epoch)) < Some(self.world.used) {
            let used = self.world.used;
            self.world.wrong = Some(format!("{at} submits under {epoch}, after {used}"));
        }
        self.world.used = self.world.used.max(epoch);
    }
}

/// Visits every state; their number, and what the clients heard in some of them.
fn check(setup: Setup) -> (usize, BTreeSet<String>) {
    let heard = setup.heard.clone();
    let found = explore(setup);
    let states = found.unwrap_or_else(|Trap { states: (trapped, all), path }| {
        panic!("{trapped} of {all} states do not lead to the end; such a one:\n{path}")
    });
    let heard = heard.lock().expect("nobody panicked with it").clone();
    (states, heard)
}

#[test]
fn three_clients_take_turns_and_one_dies() {
    let (states, heard) = check(Setup { phases: vec![2, 2, 1], deaths: 1, ..Setup::default() });
    assert!(states > 20_000, "{states}");
    assert!(["Wanted", "Recall"].iter().all(|said| heard.contains(*said)), "{heard:?}");
}

#[test]
fn a_client_dies_and_the_assigner_begins_anew() {
    let setup = Setup { phases: vec![1, 1], restarts: 1, deaths: 1, ..Setup::default() };
    let (states, heard) = check(setup);
    assert!(states > 50_000, "{states}");
    assert!(heard.contains("Overtaken"), "{heard:?}");
}

#[test]
fn a_connection_breaks_and_is_restored() {
    let setup = Setup { phases: vec![2, 2], breaks: 2, ..Setup::default() };
    let (states, heard) = check(setup);
    assert!(states > 10_000, "{states}");
    assert!(["Wanted", "Recall", "Welcome"].iter().all(|said| heard.contains(*said)), "{heard:?}");
}

#[test]
fn a_connection_breaks_and_the_assigner_begins_anew() {
    let setup = Setup { phases: vec![1, 1], breaks: 1, restarts: 1, ..Setup::default() };
    let (states, heard) = check(setup);
    assert!(states > 10_000, "{states}");
    assert!(heard.contains("Overtaken"), "{heard:?}");
}

#[test]
fn memory_through_a_broken_connection() {
    let setup = Setup { phases: vec![1, 1], memory: (1, 1), breaks: 1, ..Setup::default() };
    let (states, _) = check(setup);
    assert!(states > 10_000, "{states}");
}

/// A recall may be lost with its connection.
#[test]
fn an_assigner_that_does_not_say_again_what_was_lost_is_found() {
    let setup = Setup { phases: vec![2, 1], breaks: 1, mute: true, ..Setup::default() };
    let trap = explore(setup).expect_err("somebody waits for ever");
    assert!(trap.path.contains("Break("), "{}", trap.path);
    let (trapped, all) = trap.states;
    assert!(0 < trapped && trapped < all, "{trapped} of {all}");
}

#[test]
fn memory_that_does_not_fit_together() {
    let (states, heard) = check(Setup { phases: vec![2, 2], memory: (2, 2), ..Setup::default() });
    assert!(states > 100_000, "{states}");
    let all = ["Credit", "Evict", "Withdraw", "Stay"];
    assert!(all.iter().all(|said| heard.contains(*said)), "{heard:?}");
}

#[test]
fn memory_through_death_and_restart() {
    let setup =
        Setup { phases: vec![1, 1], memory: (1, 1), restarts: 1, deaths: 1, ..Setup::default() };
    let (states, _) = check(setup);
    assert!(states > 300_000, "{states}");
}

/// Without this and the next one, nobody would know that anything is found.
#[test]
fn a_client_that_does_not_ask_again_is_found() {
    let flaw = Some(Flaw::AsksOnce);
    let setup = Setup { phases: vec![1, 1], restarts: 1, flaw, ..Setup::default() };
    let trap = explore(setup).expect_err("it waits for ever");
    assert!(trap.path.contains("Restart("), "{}", trap.path);
    let (trapped, all) = trap.states;
    assert!(0 < trapped && trapped < all, "{trapped} of {all}");
}

#[test]
#[should_panic(expected = "counterexample")]
fn a_client_that_does_not_drain_is_found() {
    let flaw = Some(Flaw::DoesNotDrain);
    check(Setup { phases: vec![1, 1], flaw, ..Setup::default() });
}

//! Every order of events, for small setups, with the real machines (stateright).
//!
//! The GPUs are those of [`Yard`]. Of what is on its way to somebody, the latest messages can arrive, in any order
//! and as late as may be; earlier ones are lost. Every client asks once. Time
//! stands still but for timers: one may fire at any moment, with everything that its machine waits for, and it is late then; as often as the setup allows. When nothing else can happen any more, what is due comes in any case (`quiet`), as in life.
//!
//! Checked in every state: one holder, all or none. And of every state that it leads to the end, in which all have had their lease
//! ([`graph`](crate::graph)).

use std::collections::BTreeMap;
use std::time::Duration;

use acb_core::gang::{
    Controller, ControllerAction, ControllerEvent, GangName, GangSpec, NodeConfig, NodeEvent,
    NodeId, Order, Report, Round, Session, Timing,
};
use acb_core::{ClientId, Time};
use stateright::{Model, Property};

use crate::graph::{Ends, Trap, explore};
use crate::yard::{Claim, Yard};

/// Sessions of nodes that begin anew.
const SECOND_LIFE: u64 = 11;
/// How much later it is when a timer has fired: whatever was to wait has waited.
const LONG: Duration = Duration::from_nanos(1 << 40);
const TIMING: Timing = Timing {
    slack: Duration::from_nanos(1),
    patience: Duration::from_nanos(1),
    pause: Duration::ZERO,
    lost: Duration::from_nanos(1),
    retry: Duration::from_nanos(1),
};

#[derive(Default)]
struct Small {
    /// GPUs of each node.
    nodes: Vec<u32>,
    gangs: Vec<Vec<(usize, usize)>>,
    /// Of each gang; 0 where it is not said.
    priorities: Vec<i32>,
    /// GPUs of each member, from the one that its place names; 0 counts as 1.
    width: usize,
    singles: Vec<(usize, usize)>,
    /// Messages on one way that can still arrive: the latest so many, in any order.
    on_the_way: usize,
    timers: u32,
    crashes: u32,
    /// Messages that get lost though no later one comes.
    losses: u32,
    /// Who waits may also have a lease recalled before its gang has had its turn.
    takes: bool,
    /// When members have had their turn is left open; else they have as soon as they hold.
    turns: bool,
    /// What is wrong with it on purpose.
    flaw: Option<Flaw>,
}

/// So often what is due comes when nothing else can happen, before a setup counts as stuck.
const QUIET: u32 = 6;

/// Faults of a controller or a node, to see that they are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// It does not listen to a node that begins anew.
    ForgetsNewcomers,
    /// A node says that it has a member's GPUs when it has the first.
    LooksAtOne,
}

/// To the controller from a node, or the other way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Way {
    From(usize),
    To(usize),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    nodes: Vec<Yard>,
    controller: Controller,
    network: BTreeMap<Way, Vec<Packet>>,
    /// Who has not asked yet.
    fresh: Vec<(usize, ClientId)>,
    /// Members for which a round had GPUs.
    kept: BTreeMap<(GangName, Round), BTreeMap<usize, u32>>,
    is_partial: bool,
    /// The same for the controller and all nodes.
    now: Time,
    timers: u32,
    /// What is left of `QUIET`.
    quiet: u32,
    crashes: u32,
    losses: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Packet {
    Report(Report),
    Order(Order),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Step {
    Deliver(Way, usize),
    Lose(Way, usize),
    Acquire(usize, ClientId),
    Release(usize, ClientId),
    Expire(usize, usize),
    Take(usize, usize),
    Serve(usize, GangName),
    NodeIsLate(usize),
    ControllerIsLate,
    Crash(usize),
}

impl Small {
    fn gang(number: usize) -> GangName {
        GangName::from(format!("g{number}").as_str())
    }

    fn join(&self, node: usize, yard: &mut Yard, now: Time) {
        let mut number = 0;
        for (gang, places) in self.gangs.iter().enumerate() {
            for (at, gpu) in places {
                number += 1;
                if *at == node {
                    let size = places.len() as u32;
                    let spec = GangSpec { name: Small::gang(gang), size };
                    let priority = self.priorities.get(gang).copied().unwrap_or_default();
                    let gpus = (*gpu, self.width.max(1));
                    yard.join_gang(ClientId(number), gpus, spec, priority, now);
                }
            }
        }
        for (at, gpu) in &self.singles {
            number += 1;
            if *at == node {
                yard.join(ClientId(number), *gpu, None, now);
            }
        }
    }

    fn node(&self, node: usize, session: u64, now: Time) -> Yard {
        let mut yard = Yard::new(NodeConfig {
            gpus: self.nodes[node],
            exclusive: true,
            alone: false,
            timing: TIMING,
        });
        yard.looks_at_one = self.flaw == Some(Flaw::LooksAtOne);
        self.join(node, &mut yard, now);
        yard.tell(NodeEvent::Connected(Session(session)), now);
        yard
    }
}

impl State {
    fn send(&mut self, way: Way, packet: Packet, on_the_way: usize) {
        let sent = self.network.entry(way).or_default();
        if !sent.contains(&packet) {
            sent.push(packet);
            if sent.len() > on_the_way {
                sent.remove(0);
            }
        }
    }

    /// Takes up what the machines have said and reached.
    fn collect(&mut self, model: &Small) {
        for node in self.nodes.iter_mut().filter(|_| !model.turns) {
            for gang in node.unserved() {
                node.serve(gang, self.now);
            }
        }
        for at in 0..self.nodes.len() {
            for report in std::mem::take(&mut self.nodes[at].reports) {
                self.send(Way::From(at), Packet::Report(report), model.on_the_way);
            }
            let node = &mut self.nodes[at];
            for (gang, round, members) in node.kept.drain(..) {
                self.kept.entry((gang, round)).or_default().insert(at, members);
            }
        }
        while let Some(ControllerAction::Send { node, order }) = self.controller.poll_action() {
            self.send(Way::To(node.0 as usize), Packet::Order(order), model.on_the_way);
        }
        for node in &mut self.nodes {
            for (gang, round) in node.granted.drain(..) {
                let members: u32 = self.kept[&(gang.clone(), round)].values().sum();
                let number = (0..).find(|number| Small::gang(*number) == gang).expect("is there");
                self.is_partial |= members != model.gangs[number].len() as u32;
            }
        }
        // A round that is over everywhere is of no interest any more.
        let nodes = &self.nodes;
        self.kept.retain(|(gang, round), _| {
            nodes.iter().any(|node| node.stage(gang).is_some_and(|(latest, _)| latest <= *round))
        });
    }

    /// What goes on by itself.
    fn moves(&self, model: &Small, actions: &mut Vec<Step>) {
        for (way, sent) in &self.network {
            actions.extend((0..sent.len()).map(|which| Step::Deliver(*way, which)));
        }
        actions.extend(self.fresh.iter().map(|(node, client)| Step::Acquire(*node, *client)));
        for (at, node) in self.nodes.iter().enumerate() {
            for (client, it) in &node.clients {
                if matches!(it.state, Claim::Holds { .. }) {
                    actions.push(Step::Release(at, *client));
                }
            }
            let contended = (0..node.holders.len()).filter(|gpu| node.is_contended(*gpu));
            for gpu in contended {
                actions.push(Step::Expire(at, gpu));
                if model.takes {
                    actions.push(Step::Take(at, gpu));
                }
            }
            actions.extend(node.unserved().into_iter().map(|gang| Step::Serve(at, gang)));
        }
    }

    fn what_is_due(&self, actions: &mut Vec<Step>) {
        let is_due = |due: Option<Time>| due.is_some_and(|due| due <= self.now.after(LONG));
        let nodes = self.nodes.iter().enumerate();
        let late = nodes.filter(|(_, node)| is_due(node.node.poll_deadline()));
        actions.extend(late.map(|(at, _)| Step::NodeIsLate(at)));
        if is_due(self.controller.poll_deadline()) {
            actions.push(Step::ControllerIsLate);
        }
    }

    fn faults(&self, actions: &mut Vec<Step>) {
        if self.losses > 0 {
            for (way, sent) in &self.network {
                actions.extend((0..sent.len()).map(|which| Step::Lose(*way, which)));
            }
        }
        if self.crashes > 0 {
            actions.extend((0..self.nodes.len()).map(Step::Crash));
        }
    }

    /// A timer fires.
    fn grow_late(&mut self) {
        self.now = self.now.after(LONG);
        match self.timers {
            0 => self.quiet -= 1,
            _ => self.timers -= 1,
        }
    }

    fn is_waiting(&self) -> bool {
        let waits = |yard: &Yard| yard.clients.values().any(|it| it.state == Claim::Waits);
        self.nodes.iter().any(waits)
    }
}

impl Model for Small {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let nodes: Vec<Yard> =
            (0..self.nodes.len()).map(|node| self.node(node, node as u64 + 1, Time(0))).collect();
        let fresh = nodes.iter().enumerate().flat_map(|(at, node)| {
            node.clients.keys().map(move |client| (at, *client)).collect::<Vec<_>>()
        });
        let mut state = State {
            fresh: fresh.collect(),
            controller: Controller::new(self.nodes.len() as u32, TIMING, Time(0)),
            network: BTreeMap::new(),
            kept: BTreeMap::new(),
            is_partial: false,
            now: Time(0),
            timers: self.timers,
            quiet: QUIET,
            crashes: self.crashes,
            losses: self.losses,
            nodes,
        };
        state.collect(self);
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Step>) {
        state.moves(self, actions);
        if state.timers > 0 || actions.is_empty() && state.quiet > 0 {
            state.what_is_due(actions);
        }
        state.faults(actions);
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Deliver(way, which) => {
                let sent = state.network.get_mut(&way)?;
                let packet = sent.remove(which);
                if sent.is_empty() {
                    state.network.remove(&way);
                }
                match (way, packet) {
                    (Way::From(_), Packet::Report(report))
                        if self.flaw == Some(Flaw::ForgetsNewcomers)
                            && report.session >= Session(SECOND_LIFE) => {}
                    (Way::From(node), Packet::Report(report)) => {
                        let node = NodeId(node as u32);
                        state
                            .controller
                            .handle(ControllerEvent::Report { node, report }, state.now);
                    }
                    (Way::To(node), Packet::Order(order)) => {
                        state.nodes[node].tell(NodeEvent::Order(order), state.now);
                    }
                    (way, packet) => unreachable!("{packet:?} on {way:?}"),
                }
            }
            Step::Lose(way, which) => {
                state.losses -= 1;
                let sent = state.network.get_mut(&way)?;
                sent.remove(which);
                if sent.is_empty() {
                    state.network.remove(&way);
                }
            }
            Step::Acquire(node, client) => {
                state.fresh.retain(|it| *it != (node, client));
                state.nodes[node].acquire(client, state.now);
            }
            Step::Release(node, client) => state.nodes[node].release(client, state.now),
            Step::Expire(node, gpu) => state.nodes[node].expire(gpu, state.now),
            Step::Take(node, gpu) => state.nodes[node].recall_at_once(gpu, state.now),
            Step::Serve(node, gang) => state.nodes[node].serve(gang, state.now),
            Step::NodeIsLate(node) => {
                state.grow_late();
                state.nodes[node].tell(NodeEvent::Timer, state.now);
            }
            Step::ControllerIsLate => {
                state.grow_late();
                state.controller.handle(ControllerEvent::Timer, state.now);
            }
            Step::Crash(node) => {
                state.crashes -= 1;
                let session = Session(node as u64 + 1);
                let number = NodeId(node as u32);
                let lost = ControllerEvent::Disconnected { node: number, session };
                state.controller.handle(lost, state.now);
                state.fresh.retain(|(at, _)| *at != node);
                state.nodes[node] = self.node(node, node as u64 + SECOND_LIFE, state.now);
                let clients: Vec<ClientId> = state.nodes[node].clients.keys().copied().collect();
                for client in clients {
                    state.nodes[node].acquire(client, state.now);
                }
            }
        }
        state.collect(self);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "a GPU has one holder, and members hold in a round",
                |_, state: &State| {
                    if state.nodes.iter().any(|yard| yard.is_taken_twice) {
                        return false;
                    }
                    state.nodes.iter().for_each(Yard::check);
                    true
                },
            ),
            Property::always(
                "a gang holds only in a round that all its nodes kept",
                |_, state: &State| !state.is_partial,
            ),
        ]
    }
}

impl Ends for Small {
    fn is_done(&self, state: &State) -> bool {
        state.fresh.is_empty() && !state.is_waiting()
    }
}

/// Visits every state; their number.
fn check(model: Small) -> usize {
    let found = explore(model);
    found.unwrap_or_else(|Trap { states: (trapped, all), path }| {
        panic!("{trapped} of {all} states do not lead to the end; such a one:\n{path}")
    })
}

#[test]
fn a_gang_on_two_nodes_and_a_rival() {
    let gangs = vec![vec![(0, 0), (1, 0)]];
    let (nodes, singles) = (vec![1, 1], vec![(0, 0)]);
    let states = check(Small {
        nodes,
        gangs,
        singles,
        on_the_way: 1,
        takes: true,
        turns: true,
        ..Small::default()
    });
    assert!(states > 10_000, "{states}");
}

#[test]
fn two_gangs_that_want_the_same() {
    let gangs = vec![vec![(0, 0), (1, 0)], vec![(1, 0), (0, 0)]];
    let (nodes, singles) = (vec![1, 1], vec![]);
    let states = check(Small { nodes, gangs, singles, on_the_way: 1, ..Small::default() });
    assert!(states > 10_000, "{states}");
}

#[test]
fn a_gang_on_two_nodes_of_which_one_crashes() {
    let gangs = vec![vec![(0, 0), (1, 0)]];
    let (nodes, singles) = (vec![1, 1], vec![]);
    let states = check(Small {
        nodes,
        gangs,
        singles,
        on_the_way: 1,
        timers: 1,
        crashes: 1,
        ..Small::default()
    });
    assert!(states > 10_000, "{states}");
}

/// A gang has two GPUs of one node at a moment or none, and one of another node; a rival is in the way of one of the two.
/// The higher one is called first, whenever it comes.
#[test]
fn a_gang_of_a_higher_level() {
    let gangs = vec![vec![(0, 0), (1, 0)], vec![(0, 0), (1, 1)]];
    let (nodes, priorities) = (vec![1, 2], vec![0, 1]);
    let states = check(Small { nodes, gangs, priorities, on_the_way: 1, ..Small::default() });
    assert!(states > 10_000, "{states}");
}

/// Without this, nobody would know that `check` finds anything: the gang can still hold if its nodes live on.
#[test]
fn a_controller_that_forgets_who_begins_anew_is_found() {
    let model = Small {
        nodes: vec![1, 1],
        gangs: vec![vec![(0, 0), (1, 0)]],
        on_the_way: 1,
        crashes: 1,
        flaw: Some(Flaw::ForgetsNewcomers),
        ..Small::default()
    };
    let trap = explore(model).expect_err("a gang waits for ever");
    assert!(trap.path.contains("Crash("), "{}", trap.path);
    let (trapped, all) = trap.states;
    assert!(0 < trapped && trapped < all, "{trapped} of {all}");
}

/// Each member wants two GPUs of its node at once; a rival is in the way of the second of one of them.
fn of_two_gpus_each() -> Small {
    Small {
        nodes: vec![2, 2],
        gangs: vec![vec![(0, 0), (1, 0)]],
        width: 2,
        singles: vec![(0, 1)],
        on_the_way: 1,
        takes: true,
        turns: true,
        ..Small::default()
    }
}

#[test]
fn members_of_two_gpus_each() {
    let states = check(of_two_gpus_each());
    assert!(states > 10_000, "{states}");
}

#[test]
#[should_panic(expected = "counterexample")]
fn a_node_that_looks_at_one_of_two_gpus_is_found() {
    check(Small { flaw: Some(Flaw::LooksAtOne), ..of_two_gpus_each() });
}

#[test]
fn two_gpus_on_a_node() {
    let gangs = vec![vec![(0, 0), (0, 1), (1, 0)]];
    let (nodes, singles) = (vec![2, 1], vec![(0, 1)]);
    let states = check(Small { nodes, gangs, singles, on_the_way: 1, ..Small::default() });
    assert!(states > 10_000, "{states}");
}

#[test]
fn messages_that_overtake_each_other() {
    let gangs = vec![vec![(0, 0), (1, 0)]];
    let (nodes, singles) = (vec![1, 1], vec![]);
    let states = check(Small { nodes, gangs, singles, on_the_way: 2, ..Small::default() });
    assert!(states > 10_000, "{states}");
}

#[test]
fn messages_that_get_lost() {
    let gangs = vec![vec![(0, 0), (1, 0)]];
    let (nodes, singles) = (vec![1, 1], vec![]);
    let model =
        Small { nodes, gangs, singles, on_the_way: 1, timers: 1, losses: 1, ..Small::default() };
    let states = check(model);
    assert!(states > 10_000, "{states}");
}

#[test]
fn a_gang_on_three_nodes() {
    let gangs = vec![vec![(0, 0), (1, 0), (2, 0)]];
    let (nodes, singles) = (vec![1, 1, 1], vec![]);
    let model = Small { nodes, gangs, singles, on_the_way: 1, turns: true, ..Small::default() };
    let states = check(model);
    assert!(states > 5_000, "{states}");
}

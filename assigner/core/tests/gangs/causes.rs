//! What has kept gangs from their turn, or parted them, once: each cause as a story of its own.
//!
//! Found by random histories; those need hundreds of steps to get there, and show it only as long as nothing else changes.

use acb_core::gang::{
    Controller, ControllerAction, ControllerEvent, GangName, GangRefusal, GangSpec, Newcomer, Node,
    NodeAction, NodeConfig, NodeEvent, NodeId, Session, Stage,
};
use acb_core::{ClientId, Gpu, Time};

use crate::world::TIMING;
use crate::yard::{Claim, Yard};

const NOW: Time = Time(0);
const MEMBERS: [ClientId; 2] = [ClientId(1), ClientId(2)];

fn spec(name: &str) -> GangSpec {
    GangSpec { name: GangName::from(name), size: 2 }
}

fn config(alone: bool) -> NodeConfig {
    NodeConfig { gpus: 1, exclusive: true, alone, timing: TIMING }
}

/// Two nodes of a GPU, and a controller that talks to both.
struct Pair {
    nodes: [Yard; 2],
    controller: Controller,
    sessions: u64,
}

impl Pair {
    fn new() -> Pair {
        let nodes = [Yard::new(config(false)), Yard::new(config(false))];
        let mut pair = Pair { nodes, controller: Controller::new(2, TIMING, NOW), sessions: 0 };
        pair.connect();
        pair
    }

    /// One member on each node.
    fn with_gang() -> Pair {
        let mut pair = Pair::new();
        for (node, client) in pair.nodes.iter_mut().zip(MEMBERS) {
            node.join(client, 0, Some(spec("g")), NOW);
        }
        pair
    }

    fn connect(&mut self) {
        for node in &mut self.nodes {
            self.sessions += 1;
            node.tell(NodeEvent::Connected(Session(self.sessions)), NOW);
        }
    }

    /// The controller dies, and another begins that knows nothing.
    fn replace_controller(&mut self) {
        for node in &mut self.nodes {
            node.tell(NodeEvent::Disconnected, NOW);
            node.reports.clear();
        }
        self.controller = Controller::new(2, TIMING, NOW);
        self.connect();
    }

    /// What a node has said reaches the controller, and what that says the nodes that `hears` lets hear it.
    fn report(&mut self, from: usize, hears: impl Fn(usize, &Yard) -> bool) -> bool {
        let reports = std::mem::take(&mut self.nodes[from].reports);
        let said_something = !reports.is_empty();
        for report in reports {
            let node = NodeId(from as u32);
            self.controller.handle(ControllerEvent::Report { node, report }, NOW);
        }
        while let Some(ControllerAction::Send { node, order }) = self.controller.poll_action() {
            let node = node.0 as usize;
            if hears(node, &self.nodes[node]) {
                self.nodes[node].tell(NodeEvent::Order(order), NOW);
            }
        }
        said_something
    }

    /// Until nobody has anything to say.
    fn talk(&mut self, hears: impl Fn(usize, &Yard) -> bool) {
        while self.report(0, &hears) | self.report(1, &hears) {
            self.nodes.iter().for_each(Yard::check);
        }
    }

    fn stage(&self, node: usize) -> Option<Stage> {
        self.nodes[node].stage(&spec("g").name).map(|(_, stage)| stage)
    }

    fn holds(&self, node: usize) -> bool {
        let member = self.nodes[node].clients.get(&MEMBERS[node]);
        member.is_some_and(|it| matches!(it.state, Claim::Holds { recalled: false, .. }))
    }
}

/// A round that one node holds goes on for a controller that hears of the other node first, which Go has not reached.
#[test]
fn a_new_controller_adopts_a_round_that_go_has_reached_in_part() {
    for first in [0, 1] {
        let mut pair = Pair::with_gang();
        for (node, client) in MEMBERS.into_iter().enumerate() {
            pair.nodes[node].acquire(client, NOW);
        }
        let is_kept = |yard: &Yard| {
            yard.stage(&spec("g").name).is_some_and(|(_, stage)| stage == Stage::Kept)
        };
        pair.talk(|node, yard| node == 0 || !is_kept(yard));
        assert_eq!((pair.holds(0), pair.stage(1)), (true, Some(Stage::Kept)));
        let round = pair.nodes[0].stage(&spec("g").name).map(|(round, _)| round);

        pair.replace_controller();
        pair.report(first, |_, _| true);
        pair.talk(|_, _| true);
        assert!(pair.holds(0) && pair.holds(1), "{first} first: {:?}", pair.stage(1));
        assert_eq!(pair.nodes[1].stage(&spec("g").name).map(|(round, _)| round), round);
    }
}

/// Why a gang is impossible is known on all nodes, to those who come later, and for a controller that begins anew.
#[test]
fn a_refusal_outlives_the_controller_and_reaches_who_comes_later() {
    let mut pair = Pair::new();
    let reason = GangRefusal::Member("it wants more GPUs than there are".into());
    pair.nodes[0].tell(NodeEvent::Refused(spec("g"), reason), NOW);
    pair.talk(|_, _| true);
    pair.replace_controller();
    pair.talk(|_, _| true);
    pair.nodes[1].join(MEMBERS[1], 0, Some(spec("g")), NOW);
    pair.talk(|_, _| true);
    assert!(pair.nodes[1].refused.contains(&MEMBERS[1]), "it would wait for ever");
    assert!(pair.nodes[1].clients.is_empty());
}

/// A node whose member was turned away has no member any more, and still tells the others why.
#[test]
fn who_was_refused_with_its_gang_is_not_waited_for() {
    let mut pair = Pair::with_gang();
    pair.nodes[0].acquire(MEMBERS[0], NOW);
    pair.talk(|_, _| true);
    let reason = GangRefusal::Member("it names a queue that is not there".into());
    pair.nodes[1].tell(NodeEvent::Refused(spec("g"), reason), NOW);
    pair.talk(|_, _| true);
    for (node, client) in pair.nodes.iter().zip(MEMBERS) {
        assert!(node.refused.contains(&client), "{client} waits for one that was refused");
    }
}

/// A gang of two, of which one has gone, and the other may come back from before a restart: until it is clear whether it
/// does, the gang is remembered; then it holds without the one that has gone.
#[test]
fn a_member_that_is_away_keeps_what_is_known_of_its_gang() {
    let join = || Newcomer {
        client: MEMBERS[0],
        gang: spec("g"),
        width: 1,
        gpus: [Gpu(0)].into(),
        priority: 0,
        limits: Vec::new(),
        returns: true,
        holds: false,
    };
    let keeps = |node: &mut Node| {
        let actions = std::iter::from_fn(|| node.poll_action());
        actions.filter(|action| matches!(action, NodeAction::Keep { .. })).count()
    };
    let restarted = || {
        let mut node = Node::new(config(true));
        node.restore(&spec("g"), 1);
        node.expect(&spec("g"));
        node.handle(NodeEvent::Timer, NOW);
        node
    };
    let mut node = restarted();
    assert_eq!(node.departed(), [(spec("g"), 1)], "nobody is here, but somebody may come");
    node.handle(NodeEvent::Join(join()), NOW);
    node.handle(NodeEvent::Awaited(spec("g")), NOW);
    node.handle(NodeEvent::Waits(MEMBERS[0]), NOW);
    assert_eq!(keeps(&mut node), 1, "it does not wait for the one that has gone");

    // It does not come back: two others may take the name.
    let mut node = restarted();
    node.handle(NodeEvent::Gone(spec("g")), NOW);
    node.handle(NodeEvent::Awaited(spec("g")), NOW);
    assert_eq!(node.departed(), [], "all of them have gone");
}

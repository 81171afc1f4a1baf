//! Gangs: the real controller, the network between it and the nodes, and what members wait for among themselves.
//!
//! ```text
//!            Connect                cut, or an end is gone           noticed, each end in its own time
//!  none ───────────────► through ───────────────────────► severed ─────────────────────────────────► none
//!                messages pass: late, in                messages are lost
//!                any order, some not, some twice
//! ```
//!
//! Does not own: what must be true of gangs (`apart`).

use std::collections::BTreeMap;
use std::time::Duration;

use acb_core::gang::{
    Controller, ControllerAction, ControllerEvent, GangName, NodeId, Order, Report, Session,
};
use acb_core::{Event, Time};

use super::apart::Watched;
use super::client::Life;
use super::{Happening, World};
use crate::random::Random;
use crate::scenario::Scenario;

/// All that gangs need.
pub(super) struct Gangs {
    /// Their members, by position.
    pub(super) members: BTreeMap<GangName, Vec<usize>>,
    /// `None` while it is down, or there is no gang.
    pub(super) controller: Option<Controller>,
    /// What is planned for its deadline.
    planned: Option<Time>,
    /// The way between each node and the controller.
    ways: Vec<Way>,
    next_session: u64,
    random: Random,
    pub(super) watched: Watched,
}

/// The way between a node and the controller.
#[derive(Clone, Debug, Default)]
struct Way {
    /// The connection as the node knows it.
    session: Option<Session>,
    /// The connection on which messages pass.
    through: Option<Session>,
    /// Until then nothing passes.
    cut: Time,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Node,
    Controller,
}

impl Gangs {
    pub(super) fn new(scenario: &Scenario) -> Gangs {
        let mut members: BTreeMap<GangName, Vec<usize>> = BTreeMap::new();
        for (index, client) in scenario.clients.iter().enumerate() {
            if let Some(gang) = &client.gang {
                members.entry(gang.name.clone()).or_default().push(index);
            }
        }
        Gangs {
            members,
            controller: None,
            planned: None,
            ways: vec![Way::default(); scenario.nodes.len()],
            next_session: 1,
            random: Random::new(scenario.seed, u64::MAX / 3),
            watched: Watched::default(),
        }
    }
}

impl World<'_, '_> {
    /// There are gangs on several nodes: they need a controller.
    pub(super) fn has_controller(&self) -> bool {
        !self.gangs.members.is_empty() && self.nodes.len() > 1
    }

    pub(super) fn start_controller(&mut self) {
        if !self.has_controller() || self.gangs.controller.is_some() {
            return;
        }
        self.log(|_| "the controller begins".to_owned());
        let nodes = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let timing = self.scenario.nodes[0].config.gangs.timing;
        self.gangs.controller = Some(Controller::new(nodes, timing, self.now));
        for node in 0..self.nodes.len() {
            self.plan(Duration::ZERO, Happening::GangConnect(node));
        }
    }

    /// The controller dies; its connections break.
    pub(super) fn stop_controller(&mut self) {
        if self.gangs.controller.take().is_none() {
            return;
        }
        self.log(|_| "the controller is down".to_owned());
        self.gangs.planned = None;
        for node in 0..self.nodes.len() {
            self.sever(node, Duration::ZERO);
        }
    }

    /// Nothing passes between a node and the controller for a while.
    pub(super) fn cut(&mut self, node: usize, lasts: Duration) {
        self.log(|scenario| format!("{} is cut off", scenario.nodes[node].name));
        let way = &mut self.gangs.ways[node];
        way.cut = way.cut.max(self.now.after(lasts));
        let detect = self.scenario.costs.detect;
        if lasts >= detect {
            self.sever(node, detect);
        }
        let until = self.gangs.ways[node].cut;
        self.plan_at(until, Happening::GangConnect(node));
    }

    /// A connection breaks; each end notices within so long.
    pub(super) fn sever(&mut self, node: usize, within: Duration) {
        let Some(session) = self.gangs.ways[node].through.take() else { return };
        for end in [End::Node, End::Controller] {
            let share = self.gangs.random.share();
            let after = within.mul_f64(share) + self.network_delay();
            self.plan(after, Happening::GangLost(node, session, end));
        }
    }

    /// One end notices that a connection is lost.
    pub(super) fn gang_lost(&mut self, node: usize, session: Session, end: End) {
        match end {
            End::Node if self.gangs.ways[node].session == Some(session) => {
                self.gangs.ways[node].session = None;
                self.tell(node, Event::GangDisconnected);
            }
            End::Node => {}
            End::Controller => {
                let node = node_id(node);
                self.tell_controller(ControllerEvent::Disconnected { node, session });
            }
        }
    }

    /// A node connects to the controller, if both are there and nothing is between them.
    pub(super) fn gang_connect(&mut self, node: usize) {
        let way = &self.gangs.ways[node];
        let is_there = self.nodes[node].scheduler.is_some() && self.gangs.controller.is_some();
        if !is_there || way.through.is_some() || way.cut > self.now {
            return;
        }
        let session = Session(self.gangs.next_session);
        self.gangs.next_session += 1;
        let way = &mut self.gangs.ways[node];
        (way.through, way.session) = (Some(session), Some(session));
        self.tell(node, Event::GangConnected(session));
    }

    /// The assigner of a node is gone: its end of the connection knows nothing any more.
    pub(super) fn gang_node_down(&mut self, node: usize, within: Duration) {
        self.gangs.ways[node].session = None;
        self.sever(node, within);
        self.forget_watched(node);
    }

    /// A node has something to say.
    pub(super) fn send_report(&mut self, node: usize, report: Report) {
        for after in self.arrivals(node, report.session) {
            self.plan(after, Happening::ToController(node, report.clone()));
        }
    }

    pub(super) fn reach_controller(&mut self, node: usize, report: Report) {
        if self.gangs.ways[node].through == Some(report.session) {
            let node = node_id(node);
            self.tell_controller(ControllerEvent::Report { node, report });
        }
    }

    pub(super) fn reach_node(&mut self, node: usize, order: Order) {
        if self.gangs.ways[node].through == Some(order.session) {
            self.tell(node, Event::GangOrder(order));
        }
    }

    pub(super) fn controller_due(&mut self) {
        if self.gangs.planned == Some(self.now) {
            self.gangs.planned = None;
            self.tell_controller(ControllerEvent::Timer);
        }
    }

    fn tell_controller(&mut self, event: ControllerEvent) {
        self.log(|_| format!("controller < {event:?}"));
        let now = self.now;
        let Some(controller) = &mut self.gangs.controller else { return };
        controller.handle(event, now);
        let actions: Vec<ControllerAction> =
            std::iter::from_fn(|| controller.poll_action()).collect();
        let deadline = controller.poll_deadline();
        for ControllerAction::Send { node, order } in actions {
            self.log(|_| format!("controller > {order:?} for {node:?}"));
            let node = node.0 as usize;
            for after in self.arrivals(node, order.session) {
                self.plan(after, Happening::ToNode(node, order.clone()));
            }
        }
        if let Some(at) = deadline
            && self.gangs.planned != deadline
        {
            if at < now {
                self.violated("a deadline of the controller stays due");
            }
            self.gangs.planned = deadline;
            self.plan_at(at, Happening::ControllerDeadline);
        }
    }

    /// How long the copies of a message that arrive take.
    fn arrivals(&mut self, node: usize, session: Session) -> Vec<Duration> {
        let way = &self.gangs.ways[node];
        if way.through != Some(session) || way.cut > self.now {
            return Vec::new();
        }
        let loss = self.scenario.costs.network_loss;
        let copies = match () {
            () if loss == 0.0 => 1,
            () if self.gangs.random.chance(loss) => 0,
            () if self.gangs.random.chance(loss) => 2,
            () => 1,
        };
        (0..copies).map(|_| self.network_delay()).collect()
    }

    fn network_delay(&mut self) -> Duration {
        self.scenario.costs.network.draw(&mut self.gangs.random)
    }

    /// A member may begin its next round: all others that are there have done as many.
    pub(super) fn may_begin(&self, index: usize) -> bool {
        let Some(gang) = &self.scenario.clients[index].gang else { return true };
        let done = self.clients[index].done;
        self.gangs.members[&gang.name].iter().all(|other| {
            let other = &self.clients[*other];
            !matches!(other.life, Life::Absent | Life::Here) || other.done >= done
        })
    }

    /// A member has done a round, or is gone: others may have waited for it.
    pub(super) fn move_gang(&mut self, index: usize) {
        let Some(gang) = &self.scenario.clients[index].gang else { return };
        for other in self.gangs.members[&gang.name].clone() {
            if self.clients[other].pauses && self.may_begin(other) {
                self.clients[other].pauses = false;
                self.next_work(other);
            }
        }
    }
}

/// The number of a node for the controller.
fn node_id(node: usize) -> NodeId {
    NodeId(u32::try_from(node).unwrap_or(u32::MAX))
}

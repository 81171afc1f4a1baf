//! The controller of a job's nodes: what it hears of gangs, and what it tells the nodes.
//!
//! Owns the connections' states. Decides nothing: [`Arbiter`] does. Keeps nothing that must survive
//! it: a new one goes on with what the nodes report.

use std::collections::{BTreeMap, VecDeque};

use super::Timing;
use super::arbiter::{Arbiter, Scope};
use super::link::Link;
use super::message::{GangName, NodeId, Order, Orders, Report, Session, Site, Standing};
use crate::ids::Time;

/// What happens to a controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ControllerEvent {
    /// A node says something. Its first message makes the connection; a later session replaces an
    /// earlier one.
    Report {
        /// The node.
        node: NodeId,
        /// What it says.
        report: Report,
    },
    /// A connection is lost. What the node said last counts until [`Timing::lost`] is over.
    Disconnected {
        /// The node.
        node: NodeId,
        /// The connection; ignored when there is a later one.
        session: Session,
    },
    /// The deadline of [`Controller::poll_deadline`] has come.
    Timer,
}

/// What the caller has to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ControllerAction {
    /// Send to a node, by the connection that `order.session` names.
    Send {
        /// The node.
        node: NodeId,
        /// The message.
        order: Order,
    },
}

/// The controller. See the module's documentation for the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Controller {
    timing: Timing,
    arbiter: Arbiter,
    peers: BTreeMap<NodeId, Peer>,
    actions: VecDeque<ControllerAction>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Peer {
    link: Link<Orders, Site>,
    /// When a lost connection counts as a lost node.
    lost_at: Option<Time>,
}

impl Controller {
    /// A controller for a job of `nodes` nodes, that begins at `now`.
    #[must_use]
    pub fn new(nodes: u32, timing: Timing, now: Time) -> Controller {
        Controller {
            timing,
            arbiter: Arbiter::new(Scope::Job { nodes }, timing, now.after(timing.lost)),
            peers: BTreeMap::new(),
            actions: VecDeque::new(),
        }
    }

    /// Applies an event.
    pub fn handle(&mut self, event: ControllerEvent, now: Time) {
        match event {
            ControllerEvent::Report { node, report } => self.hear(node, report, now),
            ControllerEvent::Disconnected { node, session } => {
                let peer = self.peers.get_mut(&node);
                if let Some(peer) = peer.filter(|peer| peer.link.session() == session) {
                    peer.lost_at = Some(now.after(self.timing.lost));
                }
            }
            ControllerEvent::Timer => {}
        }
        let is_lost = |peer: &Peer| peer.lost_at.is_some_and(|at| at <= now);
        let lost: Vec<NodeId> =
            self.peers.iter().filter(|(_, peer)| is_lost(peer)).map(|(node, _)| *node).collect();
        for node in lost {
            self.peers.remove(&node);
            self.arbiter.forget(node);
        }
        self.arbiter.decide(now);
        while let Some((node, orders)) = self.arbiter.poll_orders() {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.link.set(orders, now);
            }
        }
        for (node, peer) in &mut self.peers {
            if peer.lost_at.is_none()
                && let Some(order) = peer.link.poll(now, self.timing.retry)
            {
                self.actions.push_back(ControllerAction::Send { node: *node, order });
            }
        }
    }

    /// The next thing to do; `None` when all is done.
    pub fn poll_action(&mut self) -> Option<ControllerAction> {
        self.actions.pop_front()
    }

    /// When to send [`ControllerEvent::Timer`], if nothing else happens before.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Time> {
        let peers = self.peers.values().filter_map(|peer| match peer.lost_at {
            Some(at) => Some(at),
            None => peer.link.deadline(),
        });
        peers.chain(self.arbiter.deadline()).min()
    }

    /// The gangs that the nodes have reported, and how they stand on each.
    pub fn gangs(&self) -> impl Iterator<Item = (&GangName, &BTreeMap<NodeId, Standing>)> {
        self.arbiter.gangs()
    }

    fn hear(&mut self, node: NodeId, report: Report, now: Time) {
        let session = report.session;
        let known = self.peers.get(&node).map(|peer| peer.link.session());
        if known.is_some_and(|known| known > session) {
            return; // of a connection that has been replaced
        }
        if known != Some(session) {
            let orders = Orders::new();
            let link = Link::new(session, orders, now);
            self.peers.insert(node, Peer { link, lost_at: None });
        }
        let peer = self.peers.get_mut(&node).expect("it was just put there");
        if !peer.link.receive(report) {
            return;
        }
        if let Some(site) = peer.link.theirs() {
            self.arbiter.hear(node, site);
        }
        if known != Some(session) {
            // What the arbiter has said already is unknown on the new connection.
            self.arbiter.say_again(node);
        }
    }
}

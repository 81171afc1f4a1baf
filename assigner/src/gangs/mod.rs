//! Gangs between the nodes: the task that owns the controller's state machine, and this node's way to it.
//!
//! Owns the connections' bookkeeping. Does not own decisions ([`acb_core::gang`]) nor the transport
//! ([`crate::controller`], [`crate::executor`]).
//!
//! ```text
//!   broker ──reports──► own node, by a channel ──────► hub: gang::Controller
//!      ▲                or executor ══gRPC══► service ────┘   │
//!      └──Command::Gang── orders ◄────────────────────────────┘
//! ```

pub mod wire;

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use acb_core::Time;
use acb_core::gang::{
    Controller, ControllerAction, ControllerEvent, NodeId, Order, Report, Session, Timing,
};
use tokio::sync::mpsc;

use crate::commands::Command;

/// The connection of the controller's own node.
const OWN: u64 = u64::MAX;

/// What the broker is told.
#[derive(Debug)]
pub enum GangNews {
    /// There is a connection to the controller.
    Connected(Session),
    /// It is lost.
    Disconnected,
    /// The controller says something.
    Order(Order),
}

/// The way to the task that owns the controller's state.
#[derive(Clone)]
pub struct Hub {
    calls: mpsc::UnboundedSender<Call>,
}

/// What that task waits for.
pub struct Calls(mpsc::UnboundedReceiver<Call>);

enum Call {
    Report { node: String, connection: u64, report: Report, orders: mpsc::UnboundedSender<Order> },
    Disconnected { connection: u64 },
}

/// A hub, and what [`run`] needs.
pub fn hub() -> (Hub, Calls) {
    let (calls, called) = mpsc::unbounded_channel();
    (Hub { calls }, Calls(called))
}

impl Hub {
    /// A node says something; the answers go to `orders`.
    pub fn report(
        &self,
        node: String,
        connection: u64,
        report: Report,
        orders: mpsc::UnboundedSender<Order>,
    ) {
        let _ = self.calls.send(Call::Report { node, connection, report, orders });
    }

    /// A connection is lost.
    pub fn disconnected(&self, connection: u64) {
        let _ = self.calls.send(Call::Disconnected { connection });
    }
}

/// A session that begins now: later ones of this node have higher numbers, also after a restart.
pub fn new_session() -> Session {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Session(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// One node's latest connection.
struct Peer {
    connection: u64,
    session: Session,
    orders: mpsc::UnboundedSender<Order>,
}

/// Runs the controller of a job of `nodes` nodes, for ever.
pub async fn run(nodes: u32, Calls(mut calls): Calls) {
    let origin = Instant::now();
    let now = || Time(u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX));
    let mut controller = Controller::new(nodes, Timing::default(), now());
    let mut numbers: BTreeMap<String, NodeId> = BTreeMap::new();
    let mut peers: BTreeMap<NodeId, Peer> = BTreeMap::new();
    loop {
        let deadline = controller.poll_deadline();
        let deadline = deadline.map(|at| origin + std::time::Duration::from_nanos(at.0));
        let due = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            call = calls.recv() => match call {
                None => return,
                Some(Call::Report { node, connection, report, orders }) => {
                    let next = NodeId(u32::try_from(numbers.len()).unwrap_or(u32::MAX));
                    let node = *numbers.entry(node).or_insert(next);
                    peers.insert(node, Peer { connection, session: report.session, orders });
                    ControllerEvent::Report { node, report }
                }
                Some(Call::Disconnected { connection }) => {
                    let lost = peers.iter().find(|(_, peer)| peer.connection == connection);
                    let Some((node, session)) = lost.map(|(node, peer)| (*node, peer.session))
                    else {
                        continue;
                    };
                    peers.remove(&node);
                    ControllerEvent::Disconnected { node, session }
                }
            },
            () = due => ControllerEvent::Timer,
        };
        controller.handle(event, now());
        while let Some(ControllerAction::Send { node, order }) = controller.poll_action() {
            // A node without a connection hears everything again when it is back.
            if let Some(peer) = peers.get(&node) {
                let _ = peer.orders.send(order);
            }
        }
    }
}

/// Connects the controller's own node.
pub async fn serve_own(
    hub: Hub,
    node: String,
    broker: mpsc::Sender<Command>,
    mut reports: mpsc::UnboundedReceiver<Report>,
) {
    let (orders, mut ordered) = mpsc::unbounded_channel();
    let mut news = GangNews::Connected(new_session());
    loop {
        if broker.send(Command::Gang(news)).await.is_err() {
            return;
        }
        news = loop {
            tokio::select! {
                report = reports.recv() => match report {
                    Some(report) => hub.report(node.clone(), OWN, report, orders.clone()),
                    None => return,
                },
                Some(order) = ordered.recv() => break GangNews::Order(order),
            }
        };
    }
}

//! Nodes, a controller and a network that loses, doubles, delays and reorders.
//!
//! Owns virtual time and the faults; checks after every step that all members of a gang hold or none.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use acb_core::gang::{
    Controller, ControllerAction, ControllerEvent, GangName, GangSpec, NodeConfig, NodeEvent,
    NodeId, Order, Report, Round, Session, Timing,
};
use acb_core::{ClientId, Time};

use crate::yard::{Claim, Yard};

pub(crate) const TIMING: Timing = Timing {
    slack: Duration::from_nanos(10),
    patience: Duration::from_nanos(2000),
    pause: Duration::from_nanos(10),
    lost: Duration::from_nanos(100),
    retry: Duration::from_nanos(20),
};

/// What is there at the start.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// GPUs of each node.
    pub(crate) nodes: Vec<u32>,
    /// For each gang the places (node, GPU) of its members.
    pub(crate) gangs: Vec<Vec<(usize, usize)>>,
    /// Places of clients without a gang.
    pub(crate) singles: Vec<(usize, usize)>,
}

#[derive(Clone, Debug)]
enum Packet {
    Report(usize, Report),
    Order(usize, Order),
}

pub(crate) struct World {
    now: Time,
    pub(crate) nodes: Vec<Yard>,
    controller: Option<Controller>,
    network: Vec<Packet>,
    /// The connection of each node, as the node knows it.
    sessions: Vec<Option<Session>>,
    next_session: u64,
    next_client: u64,
    sizes: BTreeMap<GangName, u32>,
    /// Nodes on which a round had all its GPUs, with the members there; and the number of the first client that came later.
    kept: BTreeMap<(GangName, Round), (u64, BTreeMap<usize, u32>)>,
    pub(crate) served: BTreeSet<(usize, ClientId)>,
    configs: Vec<NodeConfig>,
}

impl World {
    pub(crate) fn new(setup: &Setup) -> World {
        let count = setup.nodes.len();
        let config = |gpus: &u32| NodeConfig {
            gpus: *gpus,
            exclusive: true,
            alone: count == 1,
            timing: TIMING,
        };
        let configs: Vec<NodeConfig> = setup.nodes.iter().map(config).collect();
        let mut world = World {
            now: Time(0),
            nodes: configs.iter().map(|config| Yard::new(*config)).collect(),
            controller: None,
            network: Vec::new(),
            sessions: vec![None; count],
            next_session: 1,
            next_client: 1,
            sizes: BTreeMap::new(),
            kept: BTreeMap::new(),
            served: BTreeSet::new(),
            configs,
        };
        world.start_controller();
        for (number, places) in setup.gangs.iter().enumerate() {
            let name = GangName::from(format!("g{number}").as_str());
            world.sizes.insert(name.clone(), places.len() as u32);
            for (node, gpu) in places {
                world.join(*node, *gpu, Some(name.clone()));
            }
        }
        for (node, gpu) in &setup.singles {
            world.join(*node, *gpu, None);
        }
        world
    }

    /// One random step: something that can happen now, faults among it if `faults`.
    pub(crate) fn step(&mut self, choice: u32, faults: bool) {
        let which = choice as usize / 64;
        match choice % 64 {
            0..12 => self.deliver(which),
            12..20 => self.deliver(0),
            20..36 => self.acquire(which),
            36..44 => self.release(which, !faults),
            44..48 => self.expire(which),
            48..50 => self.serve(which),
            50..56 => self.wait(),
            56 if faults => drop(self.take(which)),
            57 if faults => {
                let copy = self.network.get(which % self.network.len().max(1)).cloned();
                self.network.extend(copy);
            }
            58 if faults => self.disconnect(which % self.nodes.len()),
            59 => self.connect(which % self.nodes.len()),
            60 if faults => self.replace(which),
            61 if faults && which.is_multiple_of(4) => self.stop_controller(),
            62 if self.controller.is_none() => self.start_controller(),
            63 if faults && which.is_multiple_of(4) => self.restart_node(which % self.nodes.len()),
            _ => self.wait(),
        }
        self.collect();
        self.check();
    }

    /// Everybody behaves and nothing is lost: every client must get its turn.
    pub(crate) fn calm_down(&mut self) {
        if self.controller.is_none() {
            self.start_controller();
        }
        for node in 0..self.nodes.len() {
            if self.sessions[node].is_none() {
                self.connect(node);
            }
        }
        self.served.clear();
        let mut releases = 0;
        for turn in 0..4_000 {
            if self.all_are_served() {
                return;
            }
            self.collect();
            if !self.network.is_empty() {
                self.deliver(0);
            } else {
                for which in 0..self.client_count() {
                    self.acquire_this(which);
                }
                self.collect();
                if turn % 3 == 0 {
                    releases += 1;
                    self.release(releases, true);
                }
                if turn % 7 == 0 {
                    for which in 0..10 {
                        self.serve(which);
                        self.expire(which);
                    }
                }
                self.pass(Time(self.now.0 + 5));
            }
            self.collect();
            self.check();
        }
        let stages: Vec<_> = self.nodes.iter().map(Yard::gangs).collect();
        panic!("not all are served: {:?} of {:?}; {stages:?}", self.served, self.sizes);
    }

    fn all_are_served(&self) -> bool {
        self.clients().iter().all(|client| self.served.contains(client))
    }

    fn join(&mut self, node: usize, gpu: usize, gang: Option<GangName>) {
        let client = ClientId(self.next_client);
        self.next_client += 1;
        let spec = gang.map(|name| GangSpec { size: self.sizes[&name], name });
        self.nodes[node].join(client, gpu, spec, self.now);
    }

    fn clients(&self) -> Vec<(usize, ClientId)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.flat_map(|(at, node)| node.clients.keys().map(move |client| (at, *client))).collect()
    }

    fn client_count(&self) -> usize {
        self.nodes.iter().map(|node| node.clients.len()).sum()
    }

    fn acquire(&mut self, which: usize) {
        let clients = self.clients();
        let idle = |(node, client): &&(usize, ClientId)| {
            self.nodes[*node].clients[client].state == Claim::Idle
        };
        let idle: Vec<_> = clients.iter().filter(idle).collect();
        if let Some((node, client)) = idle.get(which % idle.len().max(1)) {
            self.nodes[*node].acquire(*client, self.now);
        }
    }

    fn acquire_this(&mut self, which: usize) {
        let clients = self.clients();
        let Some((node, client)) = clients.get(which) else { return };
        if self.nodes[*node].clients[client].state == Claim::Idle {
            self.nodes[*node].acquire(*client, self.now);
        }
    }

    /// A holder stops; those that have been recalled first, if `politely`.
    fn release(&mut self, which: usize, politely: bool) {
        let clients = self.clients();
        let state = |(node, client): &(usize, ClientId)| self.nodes[*node].clients[client].state;
        let holds = |at: &&(usize, ClientId)| matches!(state(at), Claim::Holds { .. });
        let recalled =
            |at: &&(usize, ClientId)| matches!(state(at), Claim::Holds { recalled: true, .. });
        let mut holders: Vec<_> = clients.iter().filter(holds).collect();
        if politely && clients.iter().any(|at| recalled(&at)) {
            holders = clients.iter().filter(recalled).collect();
        }
        if let Some((node, client)) = holders.get(which % holders.len().max(1)) {
            self.nodes[*node].release(*client, self.now);
        }
    }

    fn expire(&mut self, which: usize) {
        let gpus = self.nodes.iter().enumerate().flat_map(|(at, node)| {
            (0..node.holders.len()).filter(|gpu| node.is_contended(*gpu)).map(move |gpu| (at, gpu))
        });
        let gpus: Vec<_> = gpus.collect();
        if let Some((node, gpu)) = gpus.get(which % gpus.len().max(1)) {
            self.nodes[*node].expire(*gpu, self.now);
        }
    }

    /// The members of a gang on some node have had their turn.
    fn serve(&mut self, which: usize) {
        let nodes = self.nodes.iter().enumerate();
        let unserved: Vec<(usize, GangName)> = nodes
            .flat_map(|(at, node)| node.unserved().into_iter().map(move |gang| (at, gang)))
            .collect();
        if let Some((node, gang)) = unserved.get(which % unserved.len().max(1)) {
            self.nodes[*node].serve(gang.clone(), self.now);
        }
    }

    /// A client dies, and another comes in its place.
    fn replace(&mut self, which: usize) {
        let clients = self.clients();
        let Some((node, client)) = clients.get(which % clients.len().max(1)) else { return };
        let it = self.nodes[*node].clients[client].clone();
        self.nodes[*node].die(*client, self.now);
        self.collect();
        self.join(*node, it.gpu, it.gang);
    }

    /// Time passes until somebody's deadline.
    fn wait(&mut self) {
        let nodes = self.nodes.iter().filter_map(|node| node.node.poll_deadline());
        let controller = self.controller.as_ref().and_then(Controller::poll_deadline);
        if let Some(next) = nodes.chain(controller).min() {
            self.pass(next);
        }
    }

    fn pass(&mut self, until: Time) {
        self.now = self.now.max(until);
        let now = self.now;
        for node in &mut self.nodes {
            if node.node.poll_deadline().is_some_and(|at| at <= now) {
                node.tell(NodeEvent::Timer, now);
                let rest = node.node.poll_deadline();
                assert!(rest.is_none_or(|at| at > now), "a deadline that stays due: {rest:?}");
            }
        }
        let due = |it: &Controller| it.poll_deadline().is_some_and(|at| at <= now);
        if let Some(controller) = self.controller.as_mut().filter(|it| due(it)) {
            controller.handle(ControllerEvent::Timer, now);
            let rest = controller.poll_deadline();
            assert!(rest.is_none_or(|at| at > now), "a deadline that stays due: {rest:?}");
        }
    }

    fn take(&mut self, which: usize) -> Option<Packet> {
        let count = self.network.len();
        (count > 0).then(|| self.network.remove(which % count))
    }

    fn deliver(&mut self, which: usize) {
        match self.take(which) {
            Some(Packet::Report(node, report)) => {
                if let Some(controller) = &mut self.controller {
                    let node = NodeId(node as u32);
                    controller.handle(ControllerEvent::Report { node, report }, self.now);
                }
            }
            Some(Packet::Order(node, order)) => {
                self.nodes[node].tell(NodeEvent::Order(order), self.now);
            }
            None => {}
        }
    }

    fn connect(&mut self, node: usize) {
        if self.controller.is_some() {
            let session = Session(self.next_session);
            self.next_session += 1;
            self.sessions[node] = Some(session);
            self.nodes[node].tell(NodeEvent::Connected(session), self.now);
        }
    }

    fn disconnect(&mut self, node: usize) {
        let Some(session) = self.sessions[node].take() else { return };
        self.nodes[node].tell(NodeEvent::Disconnected, self.now);
        if let Some(controller) = &mut self.controller {
            let node = NodeId(node as u32);
            controller.handle(ControllerEvent::Disconnected { node, session }, self.now);
        }
    }

    fn stop_controller(&mut self) {
        self.controller = None;
        for node in 0..self.nodes.len() {
            self.disconnect(node);
        }
    }

    fn start_controller(&mut self) {
        let count = self.nodes.len() as u32;
        self.controller = Some(Controller::new(count, TIMING, self.now));
        for node in 0..self.nodes.len() {
            self.connect(node);
        }
    }

    /// The assigner of a node dies with its clients, and others come.
    fn restart_node(&mut self, node: usize) {
        self.disconnect(node);
        let places: Vec<_> = self.nodes[node].clients.values().cloned().collect();
        self.nodes[node] = Yard::new(self.configs[node]);
        for client in places {
            self.join(node, client.gpu, client.gang);
        }
        self.connect(node);
    }

    /// Takes up what the machines want sent, and notes what they have reached.
    fn collect(&mut self) {
        for (at, node) in self.nodes.iter_mut().enumerate() {
            let reports = node.reports.drain(..).map(|report| Packet::Report(at, report));
            self.network.extend(reports);
        }
        while let Some(action) = self.controller.as_mut().and_then(Controller::poll_action) {
            let ControllerAction::Send { node, order } = action;
            self.network.push(Packet::Order(node.0 as usize, order));
        }
        for (at, node) in self.nodes.iter_mut().enumerate() {
            for (gang, round, members) in node.kept.drain(..) {
                let later = self.next_client;
                let kept = self.kept.entry((gang, round)).or_insert((later, BTreeMap::new()));
                kept.1.insert(at, members);
            }
        }
        let here = |gang: &GangName, before: u64| {
            let clients = self.nodes.iter().flat_map(|node| &node.clients);
            let member = |(id, it): &(&ClientId, &crate::yard::Client)| {
                it.gang.as_ref() == Some(gang) && id.0 < before
            };
            clients.filter(member).count()
        };
        for (gang, round) in self.nodes.iter().flat_map(|node| &node.granted) {
            // Who has died is not waited for, and who has come since is in the next round.
            let (later, members) = &self.kept[&(gang.clone(), *round)];
            let members = members.values().sum::<u32>() as usize;
            assert!(members >= here(gang, *later), "{gang} holds in part in {round:?}");
        }
        for (at, node) in self.nodes.iter_mut().enumerate() {
            node.granted.clear();
            let holds = |state: Claim| matches!(state, Claim::Holds { .. });
            let holding = node.clients.iter().filter(|(_, it)| holds(it.state));
            self.served.extend(holding.map(|(client, _)| (at, *client)));
        }
    }

    fn check(&self) {
        for node in &self.nodes {
            node.check();
            assert!(node.refused.is_empty(), "refused: {:?}", node.refused);
        }
    }
}

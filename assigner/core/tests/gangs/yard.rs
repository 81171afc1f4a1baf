//! The least scheduler that gangs can stand on: each client has its GPUs, one or several side by side; waiting is first come, first
//! served.
//!
//! The real [`Node`] decides about gangs; this only has the GPUs. It is small, and can be compared and hashed, so that
//! every state can be visited.

use std::collections::{BTreeMap, BTreeSet};

use acb_core::gang::{
    GangName, GangSnapshot, GangSpec, Newcomer, Node, NodeAction, NodeConfig, NodeEvent, Report,
    Round, Stage,
};
use acb_core::{ClientId, Gpu, Time};

/// A node: its GPUs, who waits for them, and the real machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Yard {
    pub(crate) node: Node,
    /// Who holds each GPU.
    pub(crate) holders: Vec<Option<ClientId>>,
    pub(crate) clients: BTreeMap<ClientId, Client>,
    /// Who waits for GPUs, first come first.
    line: Vec<Waits>,
    seats: BTreeMap<GangName, Seats>,
    /// Rounds that began to hold since somebody last looked.
    pub(crate) granted: Vec<(GangName, Round)>,
    /// Rounds that had all GPUs of so many members here, since somebody last looked.
    pub(crate) kept: Vec<(GangName, Round, u32)>,
    pub(crate) reports: Vec<Report>,
    pub(crate) refused: BTreeSet<ClientId>,
    /// On purpose: of a member's GPUs it looks at the first alone.
    pub(crate) looks_at_one: bool,
    /// A GPU was given to somebody while another had it.
    pub(crate) is_taken_twice: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Client {
    /// Its GPU, the first of so many.
    pub(crate) gpu: usize,
    pub(crate) width: usize,
    pub(crate) gang: Option<GangName>,
    pub(crate) state: Claim,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Claim {
    Idle,
    Waits,
    /// `lent`: on a GPU that is kept for a gang.
    Holds {
        lent: bool,
        recalled: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Waits {
    Single(ClientId),
    Gang(GangName),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Seats {
    Keeping { firm: bool, said: Said },
    Granted { wanted: bool },
    Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Said {
    Nothing,
    Reachable,
    Kept,
}

impl Client {
    fn gpus(&self) -> std::ops::Range<usize> {
        self.gpu..self.gpu + self.width
    }
}

impl Yard {
    pub(crate) fn new(config: NodeConfig) -> Yard {
        Yard {
            node: Node::new(config),
            holders: vec![None; config.gpus as usize],
            clients: BTreeMap::new(),
            line: Vec::new(),
            seats: BTreeMap::new(),
            granted: Vec::new(),
            kept: Vec::new(),
            reports: Vec::new(),
            refused: BTreeSet::new(),
            looks_at_one: false,
            is_taken_twice: false,
        }
    }

    pub(crate) fn join(&mut self, client: ClientId, gpu: usize, gang: Option<GangSpec>, now: Time) {
        match gang {
            Some(gang) => self.join_gang(client, (gpu, 1), gang, 0, now),
            None => {
                let single = Client { gpu, width: 1, gang: None, state: Claim::Idle };
                self.clients.insert(client, single);
            }
        }
    }

    /// A member comes that has a level of its own.
    pub(crate) fn join_gang(
        &mut self,
        client: ClientId,
        (gpu, width): (usize, usize),
        gang: GangSpec,
        priority: i32,
        now: Time,
    ) {
        let name = Some(gang.name.clone());
        let member = Client { gpu, width, gang: name, state: Claim::Idle };
        let gpus = member.gpus().map(|gpu| Gpu(gpu as u32)).collect();
        self.clients.insert(client, member);
        let newcomer = Newcomer {
            client,
            gang,
            width: width as u32,
            gpus,
            priority,
            limits: Vec::new(),
            returns: false,
            holds: false,
        };
        self.tell(NodeEvent::Join(newcomer), now);
    }

    /// A client wants its GPU.
    pub(crate) fn acquire(&mut self, client: ClientId, now: Time) {
        let it = self.clients.get_mut(&client).unwrap();
        assert_eq!(it.state, Claim::Idle);
        it.state = Claim::Waits;
        match it.gang.clone() {
            None => self.line.push(Waits::Single(client)),
            Some(gang) => {
                self.tell(NodeEvent::Waits(client), now);
                let granted = matches!(self.seats.get(&gang), Some(Seats::Granted { .. }));
                if granted && self.clients[&client].state == Claim::Waits {
                    self.grant(client, false, now);
                }
            }
        }
        self.plan(now);
    }

    /// A holder gives its GPU back.
    pub(crate) fn release(&mut self, client: ClientId, now: Time) {
        self.vacate(client);
        self.clients.get_mut(&client).unwrap().state = Claim::Idle;
        self.tell(NodeEvent::Idle(client), now);
        self.freed(now);
        self.plan(now);
    }

    pub(crate) fn die(&mut self, client: ClientId, now: Time) {
        self.remove(client);
        self.tell(NodeEvent::Leave(client), now);
        self.freed(now);
        self.plan(now);
    }

    /// The quantum of whoever holds or keeps a GPU that others wait for is over.
    pub(crate) fn expire(&mut self, gpu: usize, now: Time) {
        let single = self.holders[gpu].filter(|client| self.clients[client].gang.is_none());
        if let Some(client) = single {
            self.recall(client);
        } else if let Some(gang) = self.granted_on(gpu) {
            self.tell(NodeEvent::Due(gang), now);
        }
    }

    /// A lease of the gang that has a GPU is recalled for somebody who may have that at once.
    pub(crate) fn recall_at_once(&mut self, gpu: usize, now: Time) {
        if let Some(gang) = self.granted_on(gpu) {
            self.tell(NodeEvent::Recalled(gang), now);
        }
    }

    /// Gangs that hold here, of which not all members have had their turn.
    pub(crate) fn unserved(&self) -> Vec<GangName> {
        let unserved =
            |gang: &GangSnapshot| matches!(gang.stage, Stage::Holding { served: false, .. });
        self.gangs().into_iter().filter(unserved).map(|gang| gang.name).collect()
    }

    /// All members of a gang here have had their turn.
    pub(crate) fn serve(&mut self, gang: GangName, now: Time) {
        self.tell(NodeEvent::Turn(gang, now), now);
    }

    /// True if somebody waits for a GPU that another has.
    pub(crate) fn is_contended(&self, gpu: usize) -> bool {
        let has = self.holders[gpu].is_some() || self.granted_on(gpu).is_some();
        has && self.line.iter().any(|waits| match waits {
            Waits::Single(client) => self.clients[client].gpu == gpu,
            Waits::Gang(gang) => self.gpus(gang).contains(&gpu),
        })
    }

    /// Gives the real machine an event and does what it says.
    pub(crate) fn tell(&mut self, event: NodeEvent, now: Time) {
        self.node.handle(event, now);
        while let Some(action) = self.node.poll_action() {
            self.act(action, now);
        }
        self.plan(now);
    }

    /// How a gang stands here.
    pub(crate) fn stage(&self, gang: &GangName) -> Option<(Round, Stage)> {
        let all = self.node.snapshot();
        all.into_iter().find(|it| it.name == *gang).map(|it| (it.round, it.stage))
    }

    pub(crate) fn gangs(&self) -> Vec<GangSnapshot> {
        self.node.snapshot()
    }

    pub(crate) fn check(&self) {
        for (gpu, holder) in self.holders.iter().enumerate() {
            let here =
                |it: &Client| matches!(it.state, Claim::Holds { .. }) && it.gpus().contains(&gpu);
            let holders: Vec<_> = self.clients.iter().filter(|(_, it)| here(it)).collect();
            assert!(holders.len() <= 1, "GPU {gpu} is held twice: {holders:?}");
            assert_eq!(holders.first().map(|(client, _)| **client), *holder);
        }
        for client in self.clients.values() {
            let Some(gang) = &client.gang else { continue };
            if matches!(client.state, Claim::Holds { .. }) {
                let stage = self.stage(gang).map(|(_, stage)| stage);
                let stage = stage.expect("the gang of a member is known");
                assert!(matches!(stage, Stage::Holding { .. } | Stage::Ending), "{stage:?}");
            }
        }
    }

    fn act(&mut self, action: NodeAction, now: Time) {
        match action {
            NodeAction::Send(report) => self.reports.push(report),
            NodeAction::Keep { gang, .. } => {
                let seats = Seats::Keeping { firm: false, said: Said::Nothing };
                assert_eq!(self.seats.insert(gang.clone(), seats), None);
                self.line.push(Waits::Gang(gang));
            }
            NodeAction::Firm(gang) => {
                let Some(Seats::Keeping { firm, .. }) = self.seats.get_mut(&gang) else {
                    panic!("{gang} is not kept for")
                };
                *firm = true;
                for gpu in self.gpus(&gang) {
                    if let Some(holder) = self.holders[gpu] {
                        self.recall(holder);
                    }
                }
            }
            NodeAction::Grant(gang) => {
                let said = Seats::Keeping { firm: true, said: Said::Kept };
                assert_eq!(
                    self.seats.insert(gang.clone(), Seats::Granted { wanted: false }),
                    Some(said)
                );
                self.line.retain(|waits| *waits != Waits::Gang(gang.clone()));
                let round = self.stage(&gang).expect("it is known").0;
                self.granted.push((gang.clone(), round));
                for client in self.members(&gang) {
                    if self.clients[&client].state == Claim::Waits {
                        self.grant(client, false, now);
                    }
                }
            }
            NodeAction::Want(gang) => {
                let granted = matches!(self.seats.get(&gang), Some(Seats::Granted { .. }));
                assert!(granted, "{gang} holds nothing that could be wanted");
                self.seats.insert(gang, Seats::Granted { wanted: true });
            }
            NodeAction::End(gang) => {
                self.line.retain(|waits| *waits != Waits::Gang(gang.clone()));
                self.seats.insert(gang.clone(), Seats::Ending);
                for client in self.members(&gang) {
                    self.recall(client);
                }
                self.freed(now);
            }
            NodeAction::Refuse { client, .. } => {
                self.refused.insert(client);
                self.remove(client);
                self.freed(now);
            }
        }
    }

    fn plan(&mut self, now: Time) {
        let mut taken = BTreeSet::new();
        for waits in self.line.clone() {
            match waits {
                Waits::Single(client) => {
                    let gpu = self.clients[&client].gpu;
                    let keeper = self.gang_on(gpu).map(|gang| self.seats[&gang]);
                    let lendable = matches!(keeper, Some(Seats::Keeping { firm: false, .. }));
                    let is_free = self.holders[gpu].is_none();
                    if is_free && (lendable || keeper.is_none() && !taken.contains(&gpu)) {
                        self.line.retain(|other| *other != Waits::Single(client));
                        self.grant(client, lendable, now);
                    } else {
                        taken.insert(gpu);
                        if self.want(gpu, now) {
                            return self.plan(now);
                        }
                    }
                }
                Waits::Gang(gang) => {
                    let gpus = self.gpus(&gang);
                    let Some(Seats::Keeping { firm, said }) = self.seats.get(&gang).copied() else {
                        continue; // it ended while the line was walked
                    };
                    let is_lent = |client: &ClientId| {
                        matches!(self.clients[client].state, Claim::Holds { lent: true, .. })
                    };
                    let own = |gpu: &usize| self.gang_on(*gpu).is_none_or(|other| other == gang);
                    let first = gpus.iter().all(|gpu| !taken.contains(gpu) && own(gpu));
                    let members = self.members(&gang);
                    let begins =
                        |gpu: &usize| members.iter().any(|it| self.clients[it].gpu == *gpu);
                    let overlooked = |gpu: &usize| self.looks_at_one && !begins(gpu);
                    let is_free = |gpu: &usize| self.holders[*gpu].is_none() || overlooked(gpu);
                    let free = first && gpus.iter().all(is_free);
                    let near = first
                        && gpus.iter().all(|gpu| self.holders[*gpu].as_ref().is_none_or(is_lent));
                    taken.extend(&gpus);
                    let says = match (firm && free, near, said) {
                        (true, _, Said::Nothing | Said::Reachable) => Said::Kept,
                        (_, true, Said::Nothing) => Said::Reachable,
                        _ => {
                            if !near && gpus.iter().any(|gpu| self.want(*gpu, now)) {
                                return self.plan(now);
                            }
                            continue;
                        }
                    };
                    self.seats.insert(gang.clone(), Seats::Keeping { firm, said: says });
                    let event = match says {
                        Said::Kept => {
                            let round = self.stage(&gang).expect("it is known").0;
                            let members = self.members(&gang).len() as u32;
                            self.kept.push((gang.clone(), round, members));
                            NodeEvent::Kept(gang)
                        }
                        _ => NodeEvent::Reachable(gang),
                    };
                    return self.tell(event, now); // which plans again
                }
            }
        }
    }

    /// Somebody waits for a GPU; true if that was news to the gang that has it.
    fn want(&mut self, gpu: usize, now: Time) -> bool {
        let gang = self.gang_on(gpu);
        let news = gang.filter(|gang| self.seats[gang] == (Seats::Granted { wanted: false }));
        let Some(gang) = news else { return false };
        self.node.handle(NodeEvent::Wanted(gang), now);
        while let Some(action) = self.node.poll_action() {
            self.act(action, now);
        }
        true
    }

    /// The gang that has a GPU or keeps it.
    fn gang_on(&self, gpu: usize) -> Option<GangName> {
        let holds = |seats: &Seats| match seats {
            Seats::Keeping { said, .. } => *said != Said::Nothing,
            Seats::Granted { .. } => true,
            Seats::Ending => false,
        };
        let mut seated = self.seats.iter().filter(|(_, seats)| holds(seats));
        seated.find(|(gang, _)| self.gpus(gang).contains(&gpu)).map(|(gang, _)| gang.clone())
    }

    fn granted_on(&self, gpu: usize) -> Option<GangName> {
        let granted = |gang: &GangName| matches!(self.seats[gang], Seats::Granted { .. });
        self.gang_on(gpu).filter(granted)
    }

    fn grant(&mut self, client: ClientId, lent: bool, now: Time) {
        let it = self.clients.get_mut(&client).unwrap();
        for gpu in it.gpus() {
            self.is_taken_twice |= self.holders[gpu].replace(client).is_some();
        }
        assert!(self.looks_at_one || !self.is_taken_twice, "a GPU of {client} is taken");
        it.state = Claim::Holds { lent, recalled: false };
        if it.gang.is_some() {
            self.tell(NodeEvent::Granted(client), now);
        }
    }

    fn recall(&mut self, client: ClientId) {
        let it = self.clients.get_mut(&client).unwrap();
        if let Claim::Holds { recalled, .. } = &mut it.state {
            *recalled = true;
        }
    }

    fn vacate(&mut self, client: ClientId) {
        let it = &self.clients[&client];
        if matches!(it.state, Claim::Holds { .. }) {
            it.gpus().for_each(|gpu| self.holders[gpu] = None);
        }
    }

    fn remove(&mut self, client: ClientId) {
        self.vacate(client);
        self.line.retain(|waits| *waits != Waits::Single(client));
        self.clients.remove(&client);
    }

    fn freed(&mut self, now: Time) {
        let over: Vec<GangName> = self
            .seats
            .iter()
            .filter(|(gang, seats)| {
                let held = |client| matches!(self.clients[&client].state, Claim::Holds { .. });
                **seats == Seats::Ending && !self.members(gang).into_iter().any(held)
            })
            .map(|(gang, _)| gang.clone())
            .collect();
        for gang in over {
            self.seats.remove(&gang);
            self.tell(NodeEvent::Freed(gang), now);
        }
    }

    fn members(&self, gang: &GangName) -> Vec<ClientId> {
        let mine = |it: &Client| it.gang.as_ref() == Some(gang);
        self.clients.iter().filter(|(_, it)| mine(it)).map(|(client, _)| *client).collect()
    }

    fn gpus(&self, gang: &GangName) -> BTreeSet<usize> {
        self.members(gang).iter().flat_map(|client| self.clients[client].gpus()).collect()
    }
}

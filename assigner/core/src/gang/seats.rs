//! Gangs on the scheduler's GPUs: how a round keeps, grants and ends.
//!
//! Owns the seats: what a member has of a round. Does not own the rounds ([`Node`] does), nor who goes first (`plan`),
//! nor whether there is enough for all members (`room`).
//!
//! ```text
//!           Keep                  Firm, all of the gang's GPUs free       Grant
//!   Out ───────────► Keeping ───────────────────────────────► Kept ───────────► Holding
//!    ▲               in line, keeps GPUs,                      a lease that      told, if it asks; what it gives
//!    │               but does not start                        nobody is told    back stays its gang's
//!    └────────────────────────────────────── End ──────────────────────────────────┘
//! ```
//!
//! While a gang keeps, its members stand in line as if they asked, each with its own place, but only
//! reserve. A reservation is for all GPUs of a client or none, and the gang takes its leases at one
//! moment, for all of its members here or none: so nobody holds a part while waiting for the rest.
//! Others may have the kept GPUs until the round is firm; then they are recalled.

mod room;

use room::{Bounded, Had};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::node::placed;
use super::{
    GangName, GangRefusal, GangSnapshot, GangSpec, Limit, LimitOf, Newcomer, Node, NodeAction,
    NodeConfig, NodeEvent,
};
use crate::config::Config;
use crate::event::{Action, Cause, Eligible, Refusal};
use crate::ids::{ClientId, Gpu, Time};
use crate::order::Level;
use crate::queue::QueueId;
use crate::recall::{Claim, Claimant};
use crate::scheduler::{Client, GaveWay, Lease, Scheduler, Ticket, Waiter};
use crate::tenant::TenantId;

/// A client's part in its gang.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) gang: GangName,
    /// It has asked for a lease that it has not been told of.
    pub(crate) asks: bool,
    pub(crate) seat: Seat,
    /// Its own level; that of its lane can be its gang's.
    level: Level,
}

/// How far its gang's round is for a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seat {
    Out,
    Keeping,
    Firm,
    Kept,
    Holding,
    Ending,
}

/// The gangs of a scheduler.
#[derive(Clone, Debug)]
pub(crate) struct Gangs {
    pub(crate) node: Node,
    /// What has happened that the node's part does not know yet.
    pub(crate) news: VecDeque<NodeEvent>,
    /// Gangs that are to reach something.
    open: BTreeMap<GangName, Open>,
    /// Limits that keep a gang from starting, with the request of a member that is under each.
    pressing: Vec<(Bounded, Ticket)>,
}

/// What a gang is to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Reachable,
    /// That has been said; now it is to become firm.
    Firm,
    Kept,
    Freed,
}

impl Gangs {
    pub(crate) fn new(config: &Config) -> Gangs {
        let node = Node::new(NodeConfig {
            gpus: u32::try_from(config.gpus.len()).unwrap_or(u32::MAX),
            // Also where a GPU has several holders, a gang needs a GPU for each of its members: a GPU is reserved for
            // one client at a time.
            exclusive: true,
            alone: config.gangs.alone,
            timing: config.gangs.timing,
        });
        Gangs { node, news: VecDeque::new(), open: BTreeMap::new(), pressing: Vec::new() }
    }

    /// What members said of a gang.
    pub(crate) fn spec(&self, gang: &GangName) -> Option<GangSpec> {
        self.node.spec(gang)
    }
}

impl Member {
    pub(crate) fn new(gang: &GangSpec, level: Level) -> Member {
        Member { gang: gang.name.clone(), asks: false, seat: Seat::Out, level }
    }

    /// It stands in line, but only keeps GPUs.
    pub(crate) fn keeps(&self) -> bool {
        matches!(self.seat, Seat::Keeping | Seat::Firm)
    }
}

impl Scheduler {
    /// The gangs with members here.
    #[must_use]
    pub fn gangs(&self) -> Vec<GangSnapshot> {
        self.gangs.node.snapshot()
    }

    /// A new client that is a member tells its gang.
    pub(crate) fn join_gang(&mut self, id: ClientId, spec: &GangSpec, returns: bool) {
        let client = &self.clients[&id];
        let gpus: Vec<Gpu> = match (&client.bound[..], &client.eligible) {
            ([], Eligible::All) => (0..).map(Gpu).take(self.gpus.len()).collect(),
            ([], Eligible::Only(gpus)) => gpus.clone(),
            (bound, _) => bound.to_vec(),
        };
        let tenant = self.tenants.of(client.tenant);
        let queue = self.queues.of(client.queue);
        let limit = |of, name: &str, most: Option<u32>| {
            most.map(|most| Limit { of, name: name.into(), most })
        };
        let limits = [
            limit(LimitOf::Tenant, &tenant.name, tenant.limit),
            limit(LimitOf::Queue, &queue.name, queue.max_gpus),
        ];
        self.gangs.news.push_back(NodeEvent::Join(Newcomer {
            client: id,
            gang: spec.clone(),
            width: client.width,
            gpus: gpus.into_iter().collect(),
            priority: client.level.number(),
            limits: limits.into_iter().flatten().collect(),
            returns,
            holds: client.lease.is_some(),
        }));
    }

    /// Who would have been a member was refused: the others would wait for it for ever.
    pub(crate) fn refuse_gang(&mut self, spec: &GangSpec, reason: &Refusal) {
        let can_come_again = matches!(
            reason,
            Refusal::HeldByAnother { .. }
                | Refusal::HeldRoom { .. }
                | Refusal::HeldEpoch(_)
                | Refusal::HeldInvalid { .. }
        );
        if !can_come_again {
            let reason = GangRefusal::Member(reason.to_string().into());
            self.gangs.news.push_back(NodeEvent::Refused(spec.clone(), reason));
        }
    }

    /// A member asks for a lease. True if that is all there is to do: its gang's round has a place for it.
    pub(crate) fn ask_in_gang(&mut self, id: ClientId) -> bool {
        let client = self.clients.get_mut(&id).expect("the caller has looked the client up");
        let Some(member) = &mut client.member else { return false };
        if client.lease.as_ref().is_some_and(|lease| lease.is_told) || member.asks {
            return false;
        }
        member.asks = true;
        client.since = self.now;
        let (seat, is_seated) = (member.seat, client.lease.is_some());
        self.gangs.news.push_back(NodeEvent::Waits(id));
        if is_seated && seat == Seat::Holding {
            self.tell_seat(id);
        }
        is_seated || client_waits(self, id)
    }

    /// A member asks no more. True if its place stays: its gang's round needs it.
    pub(crate) fn withdraw_in_gang(&mut self, id: ClientId) -> bool {
        let Some(client) = self.clients.get_mut(&id) else { return false };
        let Some(member) = client.member.as_mut().filter(|member| member.asks) else {
            return client.member.as_ref().is_some_and(|member| member.seat != Seat::Out);
        };
        member.asks = false;
        let stays = member.keeps() || client.lease.is_some();
        self.gangs.news.push_back(NodeEvent::Idle(id));
        stays
    }

    /// A member has given its lease back: while its round lasts, its gang has the GPUs still.
    pub(crate) fn reseat(&mut self, id: ClientId, before: &Lease) {
        let Some(member) = &self.clients[&id].member else { return };
        self.gangs.news.push_back(NodeEvent::Idle(id));
        if member.seat != Seat::Holding || before.recalled.is_some() {
            return;
        }
        let mut lease = self.seat_lease(before.gpus.to_vec(), None);
        lease.started = before.started;
        lease.least = before.least;
        lease.spent = before.spent;
        lease.ticket = before.ticket;
        lease.made_way.clone_from(&before.made_way);
        lease.wanted = before.wanted;
        lease.is_again = true;
        let gang = self.clients[&id].member.as_ref().map(|member| member.gang.clone());
        self.install(id, lease);
        if let Some(gang) = gang {
            self.tell_turn(gang);
        }
    }

    /// Says when all members of a gang that hold here will have had their turn. A gang is not stopped by its time before
    /// that: who is first to be ready would end it again and again, while the memory of another is on its way.
    pub(crate) fn tell_turn(&mut self, gang: GangName) {
        let members = self.members_of(&gang);
        let leases = members.iter().filter_map(|id| self.clients[id].known_lease());
        let turns = leases.filter(|lease| lease.recalled.is_none());
        let until = turns.map(|lease| lease.latest_recall(&self.config)).max();
        self.gangs.news.push_back(NodeEvent::Turn(gang, until.unwrap_or(self.now)));
    }

    /// The time of a member's lease is over. Its gang stops as a whole.
    pub(crate) fn expire_seat(&mut self, id: ClientId) {
        let client = self.clients.get_mut(&id).expect("a holder is known");
        if let Some(lease) = &mut client.lease {
            lease.is_due = true;
        }
        self.tell_gang(id, NodeEvent::Due);
    }

    /// It holds as a part of its gang.
    pub(crate) fn is_seated(&self, id: ClientId) -> bool {
        self.clients[&id].member.as_ref().is_some_and(|member| member.seat == Seat::Holding)
    }

    /// The deadline of the gangs.
    pub(crate) fn gang_deadline(&self) -> Option<Time> {
        self.gangs.node.poll_deadline()
    }

    /// Does what follows from what has happened; true if something has to be planned again.
    pub(crate) fn follow_gangs(&mut self) -> bool {
        if self.gangs.node.poll_deadline().is_some_and(|at| at <= self.now) {
            let over = self.gangs.node.turns_over(self.now).cloned();
            for gang in over.collect::<Vec<GangName>>() {
                self.tell_turn(gang);
            }
            self.gangs.news.push_back(NodeEvent::Timer);
        }
        loop {
            if let Some(event) = self.gangs.news.pop_front() {
                self.gangs.node.handle(event, self.now);
            } else if let Some(action) = self.gangs.node.poll_action() {
                self.act_for_gang(action);
            } else if !self.dirty.is_empty() {
                return true;
            } else if let Some(event) = self.reached() {
                self.gangs.news.push_back(event);
            } else {
                return false;
            }
        }
    }

    /// What a gang has reached.
    fn reached(&mut self) -> Option<NodeEvent> {
        if self.press_for_gangs() {
            return None;
        }
        let (name, open) = self.gangs.open.iter().find_map(|(name, open)| {
            let members = self.members_of(name);
            let has = match open {
                Open::Reachable => self.can_have(&members, Had::OrLent),
                Open::Firm => false,
                Open::Kept => {
                    self.can_have(&members, Had::Free)
                        && self.gang_excess(&members).iter().all(|(_, excess)| *excess == 0)
                }
                Open::Freed => members.iter().all(|id| self.clients[id].lease.is_none()),
            };
            has.then(|| (name.clone(), *open))
        })?;
        self.gangs.open.remove(&name);
        let members = self.members_of(&name);
        Some(match open {
            Open::Reachable | Open::Firm => {
                self.gangs.open.insert(name.clone(), Open::Firm);
                NodeEvent::Reachable(name)
            }
            Open::Kept => {
                self.take_seats(&members);
                NodeEvent::Kept(name)
            }
            Open::Freed => {
                for id in members {
                    self.seat(id, Seat::Out);
                }
                NodeEvent::Freed(name)
            }
        })
    }

    /// Gives every member the lease that is kept for it, without telling anybody yet.
    fn take_seats(&mut self, members: &[ClientId]) {
        for id in members {
            let client = &self.clients[id];
            let ticket = client.waiting.expect("a member that keeps stands in line");
            let kept = |gpu: &Gpu| self.gpus[gpu.index()].reserved == Some(ticket);
            let gpus = match client.bound.is_empty() {
                true => self.candidates(client).filter(kept).collect(),
                false => client.bound.to_vec(),
            };
            for gpu in &gpus {
                self.gpus[gpu.index()].reserved = None;
            }
            let waiter = self.unqueue(*id);
            let mut lease = self.seat_lease(gpus, Some(ticket));
            // A gang that has to give way goes on where it was, like everybody else.
            (lease.spent, lease.made_way) = (waiter.spent, waiter.made_way);
            self.install(*id, lease);
            self.seat(*id, Seat::Kept);
        }
    }

    fn seat_lease(&mut self, gpus: Vec<Gpu>, ticket: Option<Ticket>) -> Lease {
        let epoch = self.next_epoch;
        self.next_epoch = epoch.next();
        self.dirty.gpus.extend(&gpus);
        let mut lease = Lease::new(epoch, &gpus, self.now);
        lease.ticket = ticket;
        lease.is_told = false;
        lease
    }

    fn act_for_gang(&mut self, action: NodeAction) {
        match action {
            NodeAction::Send(report) => self.actions.push_back(Action::GangReport(report)),
            NodeAction::Keep { gang, priority } => {
                let level = Level::of_number(priority);
                for id in self.members_of(&gang) {
                    self.inherit(id, level);
                    self.seat(id, Seat::Keeping);
                    if self.clients[&id].waiting.is_none() {
                        self.stand_in_line(id, None);
                    }
                    self.let_go(id);
                }
                self.gangs.open.insert(gang, Open::Reachable);
            }
            NodeAction::Firm(gang) => {
                for id in self.members_of(&gang) {
                    self.seat(id, Seat::Firm);
                    self.mark(id);
                }
                self.gangs.open.insert(gang, Open::Kept);
            }
            NodeAction::Grant(gang) => {
                for id in self.members_of(&gang) {
                    self.seat(id, Seat::Holding);
                    let now = self.now;
                    let client = self.clients.get_mut(&id).expect("a member is known");
                    let asks = client.member.as_ref().is_some_and(|member| member.asks);
                    let Some(lease) = &mut client.lease else { continue };
                    (lease.granted, lease.started, lease.wanted) = (now, now, false);
                    self.dirty.gpus.extend(lease.gpus.iter().copied());
                    if asks {
                        self.tell_seat(id);
                    }
                }
            }
            NodeAction::Want(gang) => {
                for id in self.members_of(&gang) {
                    if self.clients[&id].lease.is_some() {
                        self.tell_wanted(id);
                    }
                }
            }
            NodeAction::End(gang) => {
                for id in self.members_of(&gang) {
                    self.leave_seat(id);
                }
                self.gangs.open.insert(gang, Open::Freed);
            }
            NodeAction::Refuse { client, reason } => {
                self.turn_away(client);
                let reason = Refusal::Gang(reason);
                self.actions.push_back(Action::Refused { client, reason });
            }
        }
    }

    /// A client cannot be a member, and gets nothing any more. What it has stays counted until it leaves: its process does
    /// not end by being told, nor does what that has on the GPUs.
    fn turn_away(&mut self, id: ClientId) {
        self.leave_seat(id);
        if self.clients[&id].waiting.is_some() {
            self.cancel(id);
        }
        let client = self.clients.get_mut(&id).expect("a member is known");
        client.member = None;
        client.is_refused = true;
    }

    /// Tells a member of the lease that it has had already.
    fn tell_seat(&mut self, id: ClientId) {
        let client = self.clients.get_mut(&id).expect("a member is known");
        client.grants += 1;
        client.waited += self.now.since(client.since);
        client.since = self.now;
        if let Some(member) = &mut client.member {
            member.asks = false;
        }
        let gpus = client.lease.as_ref().map_or(Vec::new(), |lease| lease.gpus.to_vec());
        let is_ready = !self.memory.pages(id, &gpus);
        let client = self.clients.get_mut(&id).expect("a member is known");
        let lease = client.lease.as_mut().expect("the caller knows that it has a seat");
        (lease.is_told, lease.is_ready, lease.progress) = (true, is_ready, self.now);
        let (epoch, gpus, wanted) = (lease.epoch, lease.gpus.to_vec(), lease.wanted);
        for gpu in &gpus {
            self.gpus[gpu.index()].grants += 1;
        }
        self.actions.push_back(Action::Grant { client: id, epoch, gpus, is_ready });
        if wanted {
            self.actions.push_back(Action::Wanted { client: id, epoch });
        }
        self.gangs.news.push_back(NodeEvent::Granted(id));
        let gang = self.clients[&id].member.as_ref().map(|member| member.gang.clone());
        self.tell_turn(gang.expect("only members have seats"));
    }

    /// Ends the round for a member: what it holds is recalled, what is kept for it is let go.
    fn leave_seat(&mut self, id: ClientId) {
        let now = self.now;
        let client = self.clients.get_mut(&id).expect("a member is known");
        let member = client.member.as_ref().expect("the caller knows that it is a member");
        let (asks, own, seat) = (member.asks, member.level, member.seat);
        match &mut client.lease {
            Some(lease) if lease.is_told && lease.recalled.is_some() => {}
            Some(lease) if lease.is_told => self.recall(id, Cause::Gang),
            Some(lease) => {
                if seat == Seat::Kept {
                    lease.started = now; // its quantum would have begun with the round
                }
                let (epoch, ticket) = (lease.epoch, lease.ticket);
                if asks {
                    client.waited += now.since(client.since);
                }
                self.seat(id, Seat::Ending);
                // What nobody was told of tells nothing about phases.
                self.release(id, epoch, Some(Duration::ZERO));
                if asks {
                    self.stand_in_line(id, ticket);
                }
            }
            None => {}
        }
        self.seat(id, Seat::Ending);
        self.hold_back(id);
        if !asks && client_waits(self, id) {
            let ticket = self.clients[&id].waiting.expect("it was just looked at");
            let waiter = self.unqueue(id);
            let bypass = waiter.bypass();
            let Waiter { spent, made_way, .. } = waiter;
            let client = self.clients.get_mut(&id).expect("a member is known");
            let request = GaveWay { ticket, at: now, spent, made_way, bypass };
            client.gave_way = Some(Box::new(request));
        }
        self.inherit(id, own);
    }

    /// A member waits with its gang's level: with the highest of all members, on whatever node and in whatever queue.
    fn inherit(&mut self, id: ClientId, level: Level) {
        let waits = client_waits(self, id);
        if waits {
            self.step_out(id);
        }
        self.clients.get_mut(&id).expect("a member is known").level = level;
        if waits {
            self.step_in(id);
        }
    }

    fn seat(&mut self, id: ClientId, seat: Seat) {
        let client = self.clients.get_mut(&id).expect("a member is known");
        if let Some(member) = &mut client.member {
            member.seat = seat;
        }
    }

    fn members_of(&self, gang: &GangName) -> Vec<ClientId> {
        self.gangs.node.members(gang).collect()
    }

    /// A lease that somebody waits for, or whose time is over, is its gang's as a whole.
    pub(crate) fn tell_gang(&mut self, id: ClientId, event: fn(GangName) -> NodeEvent) {
        if let Some(member) = &self.clients[&id].member {
            self.gangs.news.push_back(event(member.gang.clone()));
        }
    }

    /// Members of the same gang that are bound to a GPU: they could never hold it at the same time.
    pub(crate) fn siblings(&self, client: &crate::scheduler::Client, gpu: Gpu) -> usize {
        let Some(member) = &client.member else { return 0 };
        let bound = self.gpus[gpu.index()].bound.iter().filter_map(|id| self.clients.get(id));
        bound.filter(|other| other.member.as_ref().is_some_and(|it| it.gang == member.gang)).count()
    }
}

fn client_waits(scheduler: &Scheduler, id: ClientId) -> bool {
    scheduler.clients[&id].waiting.is_some()
}

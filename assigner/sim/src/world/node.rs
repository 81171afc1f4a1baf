//! A node: its scheduler, the messages to and from it, and the truth about its GPUs.
//!
//! Does not own: what its clients do with the answers (`client`), what must be true (`check`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use acb_core::{Action, ClientId, ConfigError, Epoch, Event, Gpu, Scheduler, Time};

use super::{Happening, World};
use crate::scenario;
use crate::world::check::{Shares, Starves};
use crate::world::client::Life;
use crate::world::memory::LinkTruth;
use crate::world::recalls::Moment;
use crate::world::written::Writer;

/// A GPU as it is, whatever the scheduler believes.
#[derive(Clone, Debug, Default)]
pub(super) struct GpuTruth {
    /// Who computes on it.
    pub(super) running: Vec<usize>,
    /// Who did so last.
    pub(super) latest: Option<usize>,
    /// The latest lease that was granted on it.
    pub(super) granted: Option<Epoch>,
    /// The latest lease under which something ran.
    pub(super) epoch: Option<Epoch>,
    /// The latest of one that shares with nobody.
    pub(super) alone: Option<Epoch>,
    /// Since when nobody has had work for it; `None` while somebody has.
    pub(super) idle: Option<Time>,
    /// For whom it is kept, and since when.
    pub(super) kept: Option<(ClientId, Time)>,
    /// Bytes that programs have which nobody knows.
    pub(super) outside: u64,
}

pub(super) struct Node {
    /// `None` while the assigner is down.
    pub(super) scheduler: Option<Scheduler>,
    /// Counts the lives of the assigner: messages of an earlier one are lost.
    pub(super) life: u32,
    /// What is planned for its deadline.
    planned: Option<Time>,
    pub(super) gpus: Vec<GpuTruth>,
    /// Those on which memory is missing, and somebody looks after it.
    pub(super) looked_after: BTreeSet<Gpu>,
    /// The links to the GPUs, by number.
    pub(super) links: BTreeMap<u32, LinkTruth>,
    /// The epoch of the latest grant, over all lives.
    pub(super) latest_epoch: Option<Epoch>,
    /// What the assigner writes down for its next life.
    pub(super) writer: Writer,
    /// Until when nothing can be promised, since something went wrong.
    pub(super) excused: Time,
    /// The longest kernel of its clients.
    pub(super) kernel: Duration,
    /// It is gone for good.
    pub(super) is_dead: bool,
    /// What was recalled at this moment.
    pub(super) moment: Moment,
    /// Who waits in vain, unless something happens before.
    pub(super) starves: Option<Starves>,
    /// What its clients have used of its GPU, where that has a bound.
    pub(super) shares: Option<Shares>,
}

impl Node {
    pub(super) fn new(node: &scenario::Node) -> Result<Node, ConfigError> {
        Ok(Node {
            scheduler: Some(Scheduler::new(node.config.clone())?),
            life: 0,
            planned: None,
            gpus: vec![GpuTruth::default(); node.config.gpus.len()],
            looked_after: BTreeSet::new(),
            links: BTreeMap::new(),
            latest_epoch: None,
            writer: Writer::default(),
            excused: Time(0),
            kernel: Duration::ZERO,
            is_dead: false,
            moment: Moment::default(),
            starves: None,
            shares: None,
        })
    }
}

/// The number of a client for the scheduler.
pub(super) fn number(index: usize) -> ClientId {
    ClientId(index as u64)
}

pub(super) fn index(client: ClientId) -> usize {
    usize::try_from(client.0).expect("clients are numbered by their position")
}

impl World<'_, '_> {
    /// A message's way takes so long.
    fn delay(&mut self) -> Duration {
        self.scenario.costs.message.draw(&mut self.random)
    }

    /// A client sends a message to its assigner.
    pub(super) fn send(&mut self, from: usize, event: Event) {
        let node = self.scenario.clients[from].node;
        let life = self.nodes[node].life;
        if !self.clients[from].connected {
            return;
        }
        let at = self.now.after(self.delay()).max(self.clients[from].latest.0);
        self.clients[from].latest.0 = at;
        // An earlier one may arrive at this very moment, and not have been looked at yet.
        if at == self.now && self.clients[from].under_way != Some(self.now) {
            self.reach_assigner(from, life, event);
        } else {
            self.clients[from].under_way = Some(at);
            self.plan_at(at, Happening::ToAssigner(from, life, event));
        }
    }

    pub(super) fn reach_assigner(&mut self, from: usize, life: u32, event: Event) {
        let node = self.scenario.clients[from].node;
        if self.nodes[node].life != life {
            return;
        }
        let joins = match &event {
            Event::Join { client, .. } => Some(index(*client)),
            _ => None,
        };
        let short = match &event {
            Event::Short { gpu, .. } => Some(*gpu),
            _ => None,
        };
        self.tell(node, event);
        if let Some(gpu) = short {
            self.look_after(node, gpu);
        }
        if let Some(client) = joins {
            let at = self.way_to(client);
            self.plan_at(at, Happening::Welcome(client, life));
        }
    }

    /// When what is said to a client now arrives.
    fn way_to(&mut self, client: usize) -> Time {
        let at = self.now.after(self.delay()).max(self.clients[client].latest.1);
        self.clients[client].latest.1 = at;
        at
    }

    /// A client knows that it has joined, and that what it holds is its own, unless it was told otherwise before.
    pub(super) fn welcome(&mut self, client: usize, life: u32) {
        let node = self.scenario.clients[client].node;
        if self.nodes[node].life == life && self.clients[client].life == Life::Here {
            self.clients[client].unsure = false;
            // A lease that nobody had missed is its own again, also after later ones.
            if let Some(lease) = &mut self.clients[client].lease {
                let gpus = lease.gpus.iter().map(|gpu| &self.nodes[node].gpus[gpu.0 as usize]);
                lease.renewed = gpus.filter_map(|truth| truth.epoch).max();
            }
            self.pump_all(client);
            self.drive(client);
        }
    }

    pub(super) fn deadline(&mut self, node: usize) {
        if self.nodes[node].planned == Some(self.now) {
            self.nodes[node].planned = None;
            self.tell(node, Event::Timer);
        }
    }

    /// Gives a scheduler an event, checks it, and sends out what it says.
    pub(super) fn tell(&mut self, index_of_node: usize, event: Event) {
        self.log(|scenario| format!("{} < {event:?}", scenario.nodes[index_of_node].name));
        self.note(&event);
        self.note_moment(index_of_node, &event);
        self.write_in_time(index_of_node);
        let now = self.now;
        let node = &mut self.nodes[index_of_node];
        let Some(scheduler) = &mut node.scheduler else { return };
        scheduler.handle(event.clone(), now);
        self.outcome.events += 1;
        if self.watch.check
            && let Err(error) = scheduler.sanity_check()
        {
            self.violated(error.to_string());
        }
        self.watch_gangs(index_of_node);
        while let Some(action) = self.poll(index_of_node) {
            self.log(|scenario| format!("{} > {action:?}", scenario.nodes[index_of_node].name));
            self.answer(index_of_node, action);
        }
        self.note_seats(index_of_node);
        self.write_after(index_of_node, &event);
        self.check_kept(index_of_node, &event);
        self.note_turns(index_of_node);
        let node = &mut self.nodes[index_of_node];
        let deadline = node.scheduler.as_ref().and_then(Scheduler::poll_deadline);
        if let Some(at) = deadline
            && node.planned != deadline
        {
            node.planned = deadline;
            if at <= now {
                self.violated("a deadline of the scheduler stays due");
            }
            self.plan_at(at.max(now), Happening::Deadline(index_of_node));
        }
    }

    fn poll(&mut self, node: usize) -> Option<Action> {
        self.nodes[node].scheduler.as_mut()?.poll_action()
    }

    fn answer(&mut self, node: usize, action: Action) {
        let client = match &action {
            Action::Grant { client, epoch, gpus, is_ready } => {
                self.outcome.grants += 1;
                self.begin_turn(index(*client), *epoch, gpus.clone(), *is_ready);
                let gpus: Vec<usize> = gpus.iter().map(|gpu| gpu.0 as usize).collect();
                self.check_grant(node, index(*client), *epoch, &gpus);
                self.check_member_grant(node, index(*client));
                self.note_begun(node, index(*client));
                if !self.scenario.clients[index(*client)].bound {
                    self.write_before_telling(node);
                }
                *client
            }
            Action::Overtaken { client, .. } => {
                self.clients[index(*client)].holds = false;
                *client
            }
            Action::Recall { client, .. } => {
                self.outcome.recalls += 1;
                self.check_recall(node, index(*client));
                *client
            }
            Action::GangReport(report) => return self.send_report(node, report.clone()),
            Action::Room { client, .. } | Action::Credit { client, .. } => {
                if self.writes(node) {
                    self.write_before_memory(node, *client);
                }
                *client
            }
            Action::Bound { client, .. } => {
                self.write_before_telling(node);
                *client
            }
            Action::Refused { client, .. } => {
                self.clients[index(*client)].refused = true;
                *client
            }
            Action::Wanted { client, .. }
            | Action::Evict { client, .. }
            | Action::Withdraw { client, .. }
            | Action::Stay { client, .. }
            | Action::Arena { client, .. }
            | Action::Blocked { client, .. } => *client,
        };
        let to = index(client);
        let at = self.way_to(to);
        // Never at once: the scheduler says all it has to say before anybody answers.
        self.plan_at(at, Happening::ToClient(to, self.nodes[node].life, action));
    }

    pub(super) fn reach_client(&mut self, to: usize, life: u32, action: Action) {
        let node = self.scenario.clients[to].node;
        if self.nodes[node].life != life || self.clients[to].life != Life::Here {
            return;
        }
        if self.clients[to].stopped {
            self.clients[to].inbox.push(action);
        } else {
            self.hear(to, action);
        }
    }

    /// A client begins to compute; what the switch to it takes.
    pub(super) fn take_gpus(&mut self, client: usize) -> Duration {
        let Some(lease) = self.clients[client].lease.clone() else { return Duration::ZERO };
        let node = self.scenario.clients[client].node;
        self.check_start(node, client, &lease);
        let alone = self.is_alone(client).then_some(lease.epoch);
        let mut switch = Duration::ZERO;
        for gpu in &lease.gpus {
            let truth = &mut self.nodes[node].gpus[gpu.0 as usize];
            truth.running.push(client);
            truth.epoch = truth.epoch.max(Some(lease.epoch));
            truth.alone = truth.alone.max(alone);
            if truth.latest.replace(client).is_some_and(|latest| latest != client) {
                self.outcome.switches += 1;
                switch = self.scenario.nodes[node].switch;
            }
        }
        switch
    }

    /// A client does not compute any more.
    pub(super) fn leave_gpus(&mut self, client: usize) {
        let node = self.scenario.clients[client].node;
        for gpu in &mut self.nodes[node].gpus {
            gpu.running.retain(|other| *other != client);
        }
    }
}

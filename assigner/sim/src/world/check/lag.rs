//! Fairness: by how much GPU time clients that always want one GPU, and their tenants, are apart.
//!
//! Owns: what each has used, as clients and GPUs know it, and the bound of the difference: two grants between tenants, by weight, and between the
//! clients of one (docs/architecture.md, *Fairness*). Does not own: what schedulers count.

use std::time::Duration;

use acb_core::{Priority, Time};

use crate::scenario::{Client, Release, Work};
use crate::world::World;

/// How far those who should have the same are apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// The most that was seen, of GPU time that has decayed since.
    pub most: Duration,
    /// What is allowed.
    pub bound: Duration,
}

/// What the clients of a node have used that has one GPU, which all of them want all the time.
#[derive(Clone, Debug)]
pub(in crate::world) struct Shares {
    half_life: Duration,
    /// The moment that amounts are of.
    at: Time,
    clients: Vec<Sharer>,
    /// Of each tenant: its weight, and what it has used by that.
    tenants: Vec<(f64, f64)>,
    within: Lag,
    between: Lag,
}

#[derive(Clone, Debug)]
struct Sharer {
    client: usize,
    tenant: usize,
    used: f64,
    /// It has asked once.
    asked: bool,
    /// It holds the GPU since then.
    since: Option<Time>,
}

/// Something that changes what is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::world) enum Use {
    Asked,
    Begins,
    Ends,
}

impl Shares {
    fn go_to(&mut self, now: Time) {
        let half_lives = now.since(self.at).as_secs_f64() / self.half_life.as_secs_f64();
        let left = (-half_lives).exp2();
        self.at = now;
        self.clients.iter_mut().for_each(|it| it.used *= left);
        self.tenants.iter_mut().for_each(|(_, used)| *used *= left);
    }

    /// What each client has used, and each tenant by weight, leases included that are not over.
    fn totals(&self) -> (Vec<f64>, Vec<f64>) {
        let mut tenants: Vec<f64> = self.tenants.iter().map(|(_, used)| *used).collect();
        let clients = self.clients.iter().map(|it| {
            let running = it.since.map_or(0.0, |since| self.at.since(since).as_secs_f64());
            tenants[it.tenant] += running / self.tenants[it.tenant].0;
            it.used + running
        });
        (clients.collect(), tenants)
    }

    /// Who asks for the first time begins with what the least of those has used that are there already.
    fn begin(&mut self, at: usize) {
        let (clients, tenants) = self.totals();
        let own = self.clients[at].tenant;
        let there = |other: &&(usize, &Sharer)| other.1.asked;
        let all: Vec<(usize, &Sharer)> = self.clients.iter().enumerate().collect();
        let fellows = all.iter().filter(there).filter(|(_, it)| it.tenant == own);
        let least = fellows.map(|(at, _)| clients[*at]).reduce(f64::min);
        let others = all.iter().filter(there).map(|(_, it)| tenants[it.tenant]);
        let others = others.reduce(f64::min);
        match least {
            Some(least) => self.clients[at].used = least,
            None => self.tenants[own].1 = others.unwrap_or_default(),
        }
        self.clients[at].asked = true;
    }

    /// Notes how far all are apart.
    fn compare(&mut self) {
        if !self.clients.iter().all(|it| it.asked) {
            return;
        }
        let apart = |amounts: &[f64]| {
            let most = amounts.iter().copied().fold(0.0, f64::max);
            let least = amounts.iter().copied().fold(f64::INFINITY, f64::min);
            Duration::from_secs_f64((most - least).max(0.0))
        };
        let (clients, tenants) = self.totals();
        self.between.most = self.between.most.max(apart(&tenants));
        for tenant in 0..tenants.len() {
            let own = self.clients.iter().zip(&clients).filter(|(it, _)| it.tenant == tenant);
            let own: Vec<f64> = own.map(|(_, used)| *used).collect();
            self.within.most = self.within.most.max(apart(&own));
        }
    }
}

impl World<'_, '_> {
    /// What is counted on a node, if the bound is for its clients: all want its one GPU from the beginning to the end, nothing but what they have
    /// used decides between them, and nothing goes wrong.
    pub(in crate::world) fn shares(&self, node: usize) -> Option<Shares> {
        let config = &self.scenario.nodes[node].config;
        let fair = config.fair_share?;
        let own = |(at, client): (usize, &Client)| (client.node == node).then_some(at);
        let own: Vec<usize> = self.scenario.clients.iter().enumerate().filter_map(own).collect();
        let always = |at: &usize| {
            let client = &self.scenario.clients[*at];
            let works = match &client.work {
                Work::Rounds { cpu, gpu, rounds: None } => {
                    cpu.mean.is_zero() && !gpu.mean.is_zero()
                }
                _ => false,
            };
            works
                && client.arrival.is_zero()
                && client.gang.is_none()
                && client.bound
                && matches!(client.release, Release::WhenWanted(_))
                && client.memory <= config.gpus[0].memory
                && client.memory_limit.is_none()
                && self.level(*at) == (Priority::default(), Priority::default())
                && self.is_alone(*at)
                && !self.is_limited(*at)
                && !self.has_guarantee(*at)
        };
        let grant = self.keeping(node, &own) + 4 * self.message();
        let applies = config.gpus.len() == 1
            && own.len() > 1
            && self.scenario.faults.is_empty()
            && config.memory.host_budget == u64::MAX
            && config.max_bypass_time >= 3 * grant
            && config.drain > self.stopping(node)
            && config.quantum > 4 * self.message();
        if !applies || !own.iter().all(always) {
            return None;
        }
        let mut names: Vec<&str> = Vec::new();
        let clients = own.iter().map(|at| {
            let name = self.scenario.clients[*at].tenant.as_str();
            let tenant = names.iter().position(|known| *known == name).unwrap_or_else(|| {
                names.push(name);
                names.len() - 1
            });
            Sharer { client: *at, tenant, used: 0.0, asked: false, since: None }
        });
        let clients = clients.collect();
        let weight = |name: &&str| {
            let known = config.tenants.iter().find(|tenant| tenant.name == **name);
            (known.map_or(1.0, |tenant| f64::from(tenant.weight)), 0.0)
        };
        let tenants: Vec<(f64, f64)> = names.iter().map(weight).collect();
        Some(Shares {
            half_life: fair.half_life,
            at: Time(0),
            clients,
            within: Lag { bound: 2 * grant, ..Lag::default() },
            between: Lag { bound: 2 * grant, ..Lag::default() },
            tenants,
        })
    }

    /// A client asks for its GPU, begins to use it, or gives it back.
    pub(in crate::world) fn note_use(&mut self, client: usize, what: Use) {
        let (now, node) = (self.now, self.scenario.clients[client].node);
        let Some(shares) = &mut self.nodes[node].shares else { return };
        shares.go_to(now);
        let at = shares.clients.iter().position(|it| it.client == client);
        let at = at.expect("all clients of the node count");
        match what {
            Use::Asked if !shares.clients[at].asked => shares.begin(at),
            Use::Asked => {}
            Use::Begins => shares.clients[at].since = Some(now),
            Use::Ends => {
                let Some(since) = shares.clients[at].since.take() else { return };
                let (used, tenant) = (now.since(since).as_secs_f64(), shares.clients[at].tenant);
                shares.clients[at].used += used;
                let (weight, amount) = &mut shares.tenants[tenant];
                *amount += used / *weight;
            }
        }
        shares.compare();
        let (within, between) = (shares.within, shares.between);
        let is_one = shares.tenants.len() == 1;
        let has_fellows = shares.clients.len() > shares.tenants.len();
        for (lag, whose) in [(within, "the clients of a tenant"), (between, "tenants")] {
            if lag.most > lag.bound && self.watch.check {
                let (most, bound) = (lag.most.as_secs_f64(), lag.bound.as_secs_f64());
                self.violated(format!("{whose} are {most} s of GPU time apart, of {bound} s"));
            }
        }
        let worse = |known: Option<Lag>, lag: Lag| match known {
            Some(known) if known.most >= lag.most => Some(known),
            _ => Some(lag),
        };
        if has_fellows {
            self.outcome.lag_within = worse(self.outcome.lag_within, within);
        }
        if !is_one {
            self.outcome.lag_between = worse(self.outcome.lag_between, between);
        }
    }
}

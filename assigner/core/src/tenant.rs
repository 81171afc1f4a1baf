//! Tenants: whose quota and whose share of the GPUs a client counts for.
//!
//! Owns: what a tenant is told to the scheduler as, what it holds, and the GPU time that it has used. Does not own:
//! where the names come from (a Slurm account, a user, `tenant=`), and what follows from the counts (`order`, `recall`).
//!
//! Used time decays by half in every half-life. Instead of making all old amounts smaller, new ones are made larger
//! (`Shares::worth`), so that amounts of waiting clients do not change while they wait.

use std::cmp::Ordering;
use std::time::Duration;

use crate::ids::{ClientId, Time};
use crate::order::Given;
use crate::scheduler::{Lease, Scheduler, Ticket};

/// A tenant with a quota or a weight of its own. The tenant without a name (`""`) is everybody who names none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantConfig {
    /// Its name.
    pub name: String,
    /// GPUs that it gets whenever it wants them, taken back from those who borrowed them.
    pub guarantee: u32,
    /// GPUs that it holds at most, idle ones included; `None`: all.
    pub limit: Option<u32>,
    /// Its part of what is beyond the guarantees: twice the weight, twice the GPU time.
    pub weight: u32,
}

impl TenantConfig {
    /// A tenant without guarantee or limit, of weight 1.
    #[must_use]
    pub fn new(name: impl Into<String>) -> TenantConfig {
        TenantConfig { name: name.into(), guarantee: 0, limit: None, weight: 1 }
    }
}

/// How GPU time that was used counts against a tenant, and against a client within its tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FairShare {
    /// After this long, what was used counts half.
    pub half_life: Duration,
    /// GPU time that a tenant or client that comes back may be owed at most, for what it did not use meanwhile.
    pub credit: Duration,
}

impl Default for FairShare {
    fn default() -> Self {
        FairShare { half_life: Duration::from_secs(3600), credit: Duration::ZERO }
    }
}

/// A tenant, by its position in [`Tenants`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TenantId(u32);

/// GPU time that was used, in seconds at the worth of some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Used(pub(crate) f64);

impl Eq for Used {}

impl PartialOrd for Used {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Used {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// A tenant and what it holds.
#[derive(Clone, Debug)]
pub(crate) struct Tenant {
    pub(crate) name: String,
    pub(crate) guarantee: u32,
    pub(crate) limit: Option<u32>,
    pub(crate) weight: u32,
    /// GPUs of its clients' leases…
    pub(crate) held: u32,
    /// …and of those, what has been asked back.
    pub(crate) leaving: u32,
    /// Its clients that wait for or hold a lease.
    pub(crate) active: u32,
    /// What its leases that are over have used, by weight.
    pub(crate) used: Used,
    /// The first request that its limit keeps from starting, whatever GPUs come back.
    pub(crate) pressed: Option<Ticket>,
}

impl Tenant {
    /// True if what it holds decides what it may do.
    pub(crate) fn is_bounded(&self) -> bool {
        self.guarantee > 0 || self.limit.is_some()
    }

    /// True if nobody may take a GPU from it, once `taken` are taken.
    pub(crate) fn is_protected(&self, taken: u32) -> bool {
        self.guarantee > 0 && (self.held - self.leaving).saturating_sub(taken) <= self.guarantee
    }
}

/// All tenants; the one without a name is always there, and the first.
#[derive(Clone, Debug)]
pub(crate) struct Tenants {
    list: Vec<Tenant>,
    /// Somebody is guaranteed something.
    guarantees: bool,
    /// Somebody is guaranteed something, or limited.
    bounds: bool,
    /// Only the configured ones are known.
    closed: bool,
}

/// Names beyond this many are nobody in particular: they are told by clients, and kept for ever.
const MOST_NAMES: usize = 1000;

impl Tenants {
    pub(crate) fn new(configured: &[TenantConfig]) -> Tenants {
        let mut tenants = Tenants {
            list: Vec::new(),
            guarantees: configured.iter().any(|tenant| tenant.guarantee > 0),
            bounds: configured.iter().any(|tenant| tenant.guarantee > 0 || tenant.limit.is_some()),
            closed: !configured.is_empty(),
        };
        let nameless = configured.iter().find(|tenant| tenant.name.is_empty());
        tenants.add(nameless.unwrap_or(&TenantConfig::new("")));
        for tenant in configured.iter().filter(|tenant| !tenant.name.is_empty()) {
            tenants.add(tenant);
        }
        tenants
    }

    fn add(&mut self, config: &TenantConfig) -> TenantId {
        let id = TenantId(u32::try_from(self.list.len()).expect("their number is limited"));
        self.list.push(Tenant {
            name: config.name.clone(),
            guarantee: config.guarantee,
            limit: config.limit,
            weight: config.weight,
            held: 0,
            leaving: 0,
            active: 0,
            used: Used::default(),
            pressed: None,
        });
        id
    }

    /// The tenant of this name, if there is or can be one.
    pub(crate) fn find(&mut self, name: &str) -> Option<TenantId> {
        match self.list.iter().position(|tenant| tenant.name == name) {
            Some(at) => u32::try_from(at).ok().map(TenantId),
            None if self.closed => None,
            None if self.list.len() > MOST_NAMES => Some(TenantId(0)),
            None => Some(self.add(&TenantConfig::new(name))),
        }
    }

    /// True if what some tenant holds decides what it may do.
    pub(crate) fn bounds(&self) -> bool {
        self.bounds
    }

    pub(crate) fn press_nobody(&mut self) {
        if self.bounds {
            self.list.iter_mut().for_each(|tenant| tenant.pressed = None);
        }
    }

    /// True if some tenant is guaranteed something.
    pub(crate) fn guarantees(&self) -> bool {
        self.guarantees
    }

    pub(crate) fn of(&self, id: TenantId) -> &Tenant {
        &self.list[id.0 as usize]
    }

    pub(crate) fn of_mut(&mut self, id: TenantId) -> &mut Tenant {
        &mut self.list[id.0 as usize]
    }

    /// Reads what each holds (`warm`).
    pub(crate) fn warm(&self) -> u64 {
        self.list.iter().take(8).fold(0, |seen, tenant| seen ^ u64::from(tenant.held))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (TenantId, &Tenant)> {
        (0..).map(TenantId).zip(&self.list)
    }
}

/// The decay of used time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shares {
    config: FairShare,
    /// When a second was worth one.
    origin: Time,
    /// What a second is worth at the moment of the present event.
    worth: f64,
}

/// After so many half-lives all amounts are made smaller: their exponents are limited.
const REBASE: f64 = 400.0;

impl Shares {
    pub(crate) fn new(config: FairShare) -> Shares {
        Shares { config, origin: Time(0), worth: 1.0 }
    }

    /// What a second is going to be worth at a moment.
    pub(crate) fn worth_at(&self, at: Time) -> f64 {
        self.age(at).min(1000.0).exp2()
    }

    fn age(&self, now: Time) -> f64 {
        now.since(self.origin).as_secs_f64() / self.config.half_life.as_secs_f64()
    }

    /// It is `now`.
    pub(crate) fn tick(&mut self, now: Time) {
        self.worth = self.worth_at(now);
    }
}

impl Scheduler {
    /// What `span` on `gpus` GPUs counts now.
    pub(crate) fn counts(&self, span: Duration, gpus: usize) -> f64 {
        self.shares.map_or(0.0, |shares| span.as_secs_f64() * gpus as f64 * shares.worth)
    }

    /// What a lease counts on each of its GPUs if it ends then: all of it as much as its last moment.
    pub(crate) fn counts_until(&self, lease: &Lease, end: Time) -> f64 {
        let span = end.since(lease.granted).as_secs_f64();
        self.shares.map_or(0.0, |shares| span * shares.worth_at(end))
    }

    /// What a lease counts on each of its GPUs when its quantum is over, or now if it is.
    pub(crate) fn counts_with_quantum(&self, lease: &Lease) -> f64 {
        self.counts_until(lease, self.now.max(lease.granted.after(self.config.quantum)))
    }

    /// What counts against a tenant at this point of a plan: a lease that has begun, or will, counts for its quantum.
    pub(crate) fn tenant_used(&self, id: TenantId, given: &Given) -> Used {
        if self.shares.is_none() {
            return Used::default();
        }
        let tenant = self.tenants.of(id);
        let mut used = self.counts(self.config.quantum, given.to_tenant(id) as usize);
        if tenant.held > 0 {
            used += self.running(id, |lease| self.counts_with_quantum(lease));
        }
        Used(tenant.used.0 + used / f64::from(tenant.weight))
    }

    /// What the leases of a tenant that are not over count.
    fn running(&self, id: TenantId, count: impl Fn(&Lease) -> f64) -> f64 {
        let holders = self.gpus.iter().flat_map(|gpu| &gpu.holders).map(|id| &self.clients[id]);
        let leases = holders.filter(|client| client.tenant == id).filter_map(|c| c.lease.as_ref());
        leases.map(|lease| count(lease)).sum()
    }

    /// A client is going to wait: neither it nor its tenant is owed more than the credit for the time when it did not. Who had to give
    /// its lease back and asks for it again at once has waited all the time.
    pub(crate) fn come_back(&mut self, client: ClientId) -> Used {
        if let Some(shares) = self.shares {
            self.rebase(shares);
        }
        let client = &self.clients[&client];
        let (id, used) = (client.tenant, client.used);
        let Some(shares) = self.shares else { return used };
        if client.was_cut(self.now, self.config.quantum) {
            return used;
        }
        let credit = self.counts(shares.config.credit, 1);
        let is_back = self.tenants.of(id).active == 0;
        if is_back {
            let active = self.tenants.iter().filter(|(_, tenant)| tenant.active > 0);
            let least = active
                .map(|(id, tenant)| {
                    let running = self.running(id, |lease| self.counts_until(lease, self.now));
                    Used(tenant.used.0 + running / f64::from(tenant.weight))
                })
                .min();
            let tenant = self.tenants.of_mut(id);
            tenant.used =
                least.map_or(tenant.used, |least| Used(least.0 - credit).max(tenant.used));
            return used;
        }
        let waiting = std::iter::once(&self.floating).chain(self.gpus.iter().map(|gpu| &gpu.line));
        let waiting = waiting.flat_map(|line| line.heads()).filter(|(lane, _)| lane.tenant == id);
        let holders = self.gpus.iter().flat_map(|gpu| &gpu.holders).map(|id| &self.clients[id]);
        let holding = holders.filter(|client| client.tenant == id).map(|client| {
            let lease = client.lease.as_ref().expect("holders have leases");
            let running = self.counts_until(lease, self.now) * lease.gpus.len() as f64;
            Used(client.used.0 + running)
        });
        let least = waiting.map(|(_, place)| place.used).chain(holding).min();
        least.map_or(used, |least| Used(least.0 - credit).max(used))
    }

    /// Makes all amounts smaller before they become too large to be numbers.
    fn rebase(&mut self, mut shares: Shares) {
        if shares.age(self.now) < REBASE {
            return;
        }
        let factor = 1.0 / shares.worth;
        shares.origin = self.now;
        shares.worth = 1.0;
        self.shares = Some(shares);
        for tenant in &mut self.tenants.list {
            tenant.used.0 *= factor;
        }
        let mut waiting = Vec::new();
        for client in self.clients.values_mut() {
            client.used.0 *= factor;
            waiting.extend(client.waiting.map(|_| client.id));
        }
        for id in waiting {
            self.replace(id, |place| place.used.0 *= factor);
        }
    }
}

//! What a client says on its socket after Hello, and what it is told.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use acb_core::{ClientId, Epoch, Event, Gpu};
use acb_wire::v1::{self, RefusedCode, assigner_message::Kind, client_message};

use super::{Broker, Port, Refused};

impl Broker {
    /// A message of a client. An error closes its connection.
    pub fn message(&mut self, client: ClientId, kind: client_message::Kind) -> Result<(), Refused> {
        match kind {
            client_message::Kind::Hello(_) => {
                return Err(Refused::new(
                    RefusedCode::Protocol,
                    "a second Hello on one connection",
                ));
            }
            client_message::Kind::Bind(_) => self.apply(Event::Bind { client }),
            client_message::Kind::Acquire(_) => {
                if let Some(member) = self.clients.get_mut(&client) {
                    member.first_request.get_or_insert_with(SystemTime::now);
                }
                self.apply(Event::Acquire { client, expected: None });
            }
            client_message::Kind::Release(release) => {
                self.vigil.end();
                self.count_busy(client, release.busy_ns);
                let (epoch, busy) = (Epoch(release.epoch), Duration::from_nanos(release.busy_ns));
                self.apply(Event::Release { client, epoch, busy: Some(busy) });
            }
            client_message::Kind::ReleaseSoon(_) => self.release_soon(client),
            client_message::Kind::Stuck(stuck) => self.stuck(client, &stuck),
            client_message::Kind::RoomRequest(request) => self.room_request(client, &request),
            client_message::Kind::RoomReturn(back) => self.room_return(client, &back),
            client_message::Kind::Evicted(evicted) => self.evicted(client, &evicted),
            client_message::Kind::Short(short) => self.short(client, &short),
            client_message::Kind::Ready(ready) => self.ready(client, &ready),
            client_message::Kind::MemoryReport(report) => self.memory_report(client, report),
            // The scheduler's own counts are shown; the client's are for later use.
            client_message::Kind::Usage(_) => {}
        }
        Ok(())
    }

    /// Tells those who wait for a holder's GPUs what keeps them, each once for a lease.
    fn stuck(&mut self, client: ClientId, stuck: &v1::Stuck) {
        let (Some(scheduler), Some(member)) = (&self.scheduler, self.clients.get_mut(&client))
        else {
            return;
        };
        if member.stuck.0 != stuck.epoch {
            member.stuck = (stuck.epoch, BTreeSet::new());
        }
        let (leased, told) = (member.leased.clone(), &mut member.stuck.1);
        let snapshot = scheduler.snapshot();
        let waits = |other: &&acb_core::ClientSnapshot| {
            other.state == acb_core::ClientState::Waiting
                && leased.iter().any(|gpu| scheduler.may_use(other.client, *gpu))
        };
        let waiting = snapshot.clients.iter().filter(waits).map(|other| other.client);
        let waiting: Vec<ClientId> = waiting.filter(|other| told.insert(*other)).collect();
        if waiting.is_empty() {
            return;
        }
        let kernel = match stuck.kernel.as_str() {
            "" => String::new(),
            name => format!(" (launched last: {})", super::members::printable(name)),
        };
        let text = format!(
            "{} keeps the GPU: it was asked for it {} s ago, and a kernel of it does not end, or waits for that program{kernel}; \
             nothing else can run there until it has ended. End that program if it should have",
            self.who(client),
            stuck.seconds,
        );
        for client in waiting {
            tracing::warn!("{} waits: {text}", self.who(client));
            self.tell(client, Kind::Notice(v1::Notice { text: text.clone() }));
        }
    }

    /// Wakes whoever is granted next, and keeps this thread awake: to be woken takes longer than the rest of a grant.
    fn release_soon(&mut self, client: ClientId) {
        let (Some(scheduler), Some(member)) = (&self.scheduler, self.clients.get(&client)) else {
            return;
        };
        let mut next: Vec<_> =
            member.leased.iter().filter_map(|gpu| scheduler.next_in_turn(*gpu)).collect();
        next.dedup();
        for client in &next {
            self.tell(*client, Kind::GrantSoon(v1::GrantSoon {}));
        }
        if !next.is_empty() {
            self.vigil.begin();
        }
    }

    fn count_busy(&mut self, client: ClientId, busy_ns: u64) {
        let Some(member) = self.clients.get_mut(&client) else { return };
        for gpu in std::mem::take(&mut member.leased) {
            self.busy[gpu.0 as usize] += Duration::from_nanos(busy_ns);
        }
    }

    pub(super) fn gpu_of(&self, client: ClientId, device: u32) -> Option<Gpu> {
        self.clients.get(&client)?.bound.get(device as usize).copied()
    }

    pub(super) fn tell(&self, client: ClientId, kind: Kind) {
        if let Some(Port::Socket(outbox)) = self.clients.get(&client).map(|member| &member.port) {
            outbox.send(kind);
        }
    }

    pub(super) fn tell_bound(&mut self, client: ClientId, gpus: Vec<Gpu>) {
        let limit = self.clients.get(&client).and_then(|member| member.memory_limit);
        let bound = gpus.iter().map(|gpu| self.bound_gpu(*gpu, limit)).collect();
        let Some(member) = self.clients.get_mut(&client) else { return };
        member.given.extend(&gpus);
        member.bound = gpus;
        // Before the client hears of it: from then on it may hold these GPUs.
        self.save();
        self.tell(client, Kind::Bound(v1::Bound { gpus: bound }));
    }

    pub(super) fn tell_granted(
        &mut self,
        client: ClientId,
        epoch: Epoch,
        gpus: Vec<Gpu>,
        resident: bool,
    ) {
        self.tell(client, Kind::Granted(v1::Granted { epoch: epoch.0, resident }));
        tracing::debug!("{client} granted {epoch}");
        let Some(member) = self.clients.get_mut(&client) else { return };
        member.first_grant.get_or_insert_with(SystemTime::now);
        member.given.extend(&gpus);
        member.leased = gpus;
        if matches!(member.port, Port::Manual(_)) {
            self.answer_alloc(client, epoch);
        }
    }

    pub(super) fn tell_wanted(&self, client: ClientId, epoch: Epoch) {
        self.tell(client, Kind::Wanted(v1::Wanted { epoch: epoch.0 }));
    }

    /// What it submits under that lease would meet others: it drains, gives back what is not its own any more, and asks anew.
    pub(super) fn tell_overtaken(&mut self, client: ClientId, epoch: Epoch) {
        tracing::warn!(
            "{client} was away for too long: others have had its GPU since its lease, {epoch}"
        );
        if let Some(member) = self.clients.get_mut(&client) {
            member.leased.clear();
        }
        self.tell_recall(client, epoch);
    }

    pub(super) fn tell_recall(&self, client: ClientId, epoch: Epoch) {
        tracing::debug!("{client} recalled, {epoch}");
        self.tell(client, Kind::Recall(v1::Recall { epoch: epoch.0 }));
    }
}

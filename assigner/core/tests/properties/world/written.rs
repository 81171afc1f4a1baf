//! What the assigner has written down when it dies, as old as the daemon's `state.json` can be.
//!
//! It is written when a client comes, is bound, or goes, when one that nothing binds is granted or gives back, before one has
//! more memory than it says, when nobody is waited for any more, and once a second for the rest. So leases of bound clients,
//! and what has left the GPUs, are as old as that. Does not own: what the daemon itself does (`broker/report.rs`).

use acb_core::*;

use super::World;

#[derive(Clone, Debug, Default)]
pub(crate) struct Writer {
    /// No epoch from this one on was granted.
    pub(super) epoch_limit: u64,
    /// Who was there.
    pub(super) clients: Vec<Expected>,
    /// Since when that is not all.
    changed: Option<Time>,
    /// Clients of the earlier life, as they were written down then.
    earlier: Vec<Expected>,
    /// Something cannot wait for the next second.
    is_urgent: bool,
    /// They were still waited for.
    waits: bool,
}

impl World {
    /// Time has gone on: the second in which something had changed may be over.
    pub(super) fn write_in_time(&mut self) {
        let second = |time: Time| time.0 / 1_000_000_000;
        if self.written.changed.is_some_and(|changed| second(changed) < second(self.now)) {
            self.write();
        }
    }

    /// The scheduler is about to tell this.
    pub(super) fn write_before(&mut self, action: &Action) {
        match action {
            Action::Bound { .. } => self.written.is_urgent = true,
            Action::Grant { client, .. } => {
                self.written.is_urgent |= self.clients[self.slot(*client)].bound.is_empty();
            }
            Action::Room { client, .. } | Action::Credit { client, .. } => {
                let known = self.written.clients.iter().find(|it| it.client == *client);
                let known = known.map_or(&[][..], |known| &known.held.bound);
                let covers = |gpu: Gpu| {
                    let written = known.iter().find(|(on, _)| *on == gpu);
                    let written = written.map_or(Room::default(), |it| it.1);
                    written.covers(self.scheduler.room(*client, gpu))
                };
                self.written.is_urgent |= !(0..self.setup.gpus).map(Gpu).all(covers);
            }
            _ => {}
        }
    }

    /// The scheduler has handled an event; nobody has heard of that yet.
    pub(super) fn write_after(&mut self, event: &Event) {
        let waits = self.scheduler.is_settling();
        let is_settled = std::mem::replace(&mut self.written.waits, waits) && !waits;
        let is_urgent = std::mem::take(&mut self.written.is_urgent) || is_settled;
        let matters = match event {
            Event::Join { .. } | Event::Leave { .. } => true,
            Event::Release { client, .. } => {
                let mut present = self.clients.iter().filter(|it| it.present);
                present.any(|it| self.name(it.id) == *client && it.bound.is_empty())
            }
            _ => false,
        };
        if is_urgent || matters {
            self.write();
        } else {
            self.written.changed = self.written.changed.or(Some(self.now));
        }
    }

    /// The next life begins with what this one had written down, and takes that over.
    pub(super) fn write_first(&mut self) {
        self.written.earlier = std::mem::take(&mut self.written.clients);
        self.written.waits = true;
        self.write();
    }

    fn write(&mut self) {
        let snapshot = self.scheduler.snapshot();
        let writer = &mut self.written;
        let earlier = writer.earlier.iter().filter_map(|it| {
            let awaited = snapshot.expected.iter().find(|other| other.client == it.client)?;
            let lease = it.held.lease.filter(|_| awaited.held.lease.is_some());
            Some(Expected { held: Held { lease, ..it.held.clone() }, ..it.clone() })
        });
        let here = snapshot.clients.iter().filter(|client| !client.gpus.is_empty());
        let clients = here.map(ClientSnapshot::expected_back).chain(earlier).collect();
        writer.epoch_limit = snapshot.epoch_limit();
        (writer.clients, writer.changed) = (clients, None);
    }
}

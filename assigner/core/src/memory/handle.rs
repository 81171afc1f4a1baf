//! Events that concern memory: what each changes in the ledger, and what must be planned again.

use super::ledger::Anchor;
use super::{Answer, Holds};
use crate::event::{Action, Event, Rest, RoomDenied, RoomVerdict};
use crate::ids::{ClientId, Epoch, Gpu};
use crate::scheduler::Scheduler;

impl Scheduler {
    /// Applies an event of memory; others are not its own.
    pub(crate) fn handle_memory(&mut self, event: Event) {
        match event {
            Event::RoomRequest { client, seq, gpu, bytes } => {
                self.room_request(client, seq, gpu, bytes);
            }
            Event::Grown { client, seq, gpu, bytes } => self.grown(client, seq, gpu, bytes),
            Event::RoomCancel { client, seq } => {
                if let Some(state) = self.clients.get(&client) {
                    self.memory.cancel(client, seq, &state.bound);
                }
            }
            Event::RoomReturn { client, gpu, bytes } if self.is_bound(client, gpu) => {
                self.memory.give_back(client, gpu, bytes);
                self.replan_memory(gpu);
            }
            Event::Claim { client, seq, gpu, bytes } => self.claim_memory(client, seq, gpu, bytes),
            Event::ClaimReturn { client, gpu, bytes, resident } if self.is_bound(client, gpu) => {
                // What goes may be what could not be moved.
                let was_anchored = self.memory.has_anchored(gpu);
                self.memory.unclaim(client, gpu, bytes, resident);
                if was_anchored {
                    self.dirty.gpus.insert(gpu);
                }
                self.replan_memory(gpu);
            }
            Event::Evicted { client, gpu, bytes, rest } => self.evicted(client, gpu, bytes, rest),
            Event::Short { client, gpu, bytes } if self.is_bound(client, gpu) => {
                self.memory.miss(client, gpu, bytes);
                self.dirty.gpus.insert(gpu);
            }
            Event::Used { gpu, bytes } => self.in_use(gpu, bytes),
            Event::Ready { client, epoch } => self.ready(client, epoch),
            Event::Pinned { client, gpu, movable } if self.is_bound(client, gpu) => {
                let holds = if movable { Holds::No } else { Holds::Yes };
                self.memory.anchor(client, gpu, Anchor::Pinned, holds);
                self.dirty.gpus.insert(gpu);
            }
            Event::Away { client } => {
                self.cancel(client); // nobody would hear of the grant
                self.reach(client, Holds::Yes);
            }
            Event::Back { client, lease } => {
                self.agree_on_lease(client, lease);
                self.reach(client, Holds::No);
            }
            _ => {}
        }
    }

    fn room_request(&mut self, id: ClientId, seq: u64, gpu: Gpu, bytes: u64) {
        let Some(client) = self.clients.get(&id) else { return };
        if client.bound.contains(&gpu) {
            let answer = self.memory.request(id, seq, gpu, bytes, self.now);
            self.answer(answer);
        } else {
            let verdict = RoomVerdict::Denied(RoomDenied::NotBound);
            self.actions.push_back(Action::Room { client: id, seq, verdict });
        }
    }

    fn grown(&mut self, id: ClientId, seq: u64, gpu: Gpu, bytes: u64) {
        if self.is_bound(id, gpu) && self.memory.grown(id, gpu, bytes) {
            self.replan_memory(gpu);
            let (client, verdict) = (id, RoomVerdict::Granted);
            self.actions.push_back(Action::Room { client, seq, verdict });
        } else {
            self.room_request(id, seq, gpu, bytes);
        }
    }

    fn claim_memory(&mut self, id: ClientId, seq: u64, gpu: Gpu, bytes: u64) {
        let Some(client) = self.clients.get(&id) else { return };
        let claimed = match client.bound.contains(&gpu) {
            true => self.memory.claim(id, gpu, bytes),
            false => Err(RoomDenied::NotBound),
        };
        if claimed.is_ok() {
            self.replan_memory(gpu);
        }
        let verdict = claimed.map_or_else(RoomVerdict::Denied, |()| RoomVerdict::Granted);
        self.actions.push_back(Action::Room { client: id, seq, verdict });
    }

    fn evicted(&mut self, id: ClientId, gpu: Gpu, bytes: u64, rest: Rest) {
        if !self.is_bound(id, gpu) {
            return;
        }
        self.replan_memory(gpu); // before it counts as one that moves again
        self.memory.evicted(id, gpu, bytes, self.now);
        if rest == Rest::Stays {
            self.memory.anchor(id, gpu, Anchor::Failed, Holds::Yes);
            self.dirty.gpus.insert(gpu);
            self.tell_blocked(id, gpu, self.memory.of(id, gpu).resident);
        }
    }

    fn in_use(&mut self, gpu: Gpu, bytes: u64) {
        if self.memory.found(gpu, bytes) {
            self.dirty.gpus.insert(gpu);
        }
    }

    fn ready(&mut self, id: ClientId, epoch: Epoch) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let Some(lease) = client.lease.as_mut().filter(|lease| lease.epoch == epoch) else {
            return;
        };
        if std::mem::replace(&mut lease.is_ready, true) {
            return; // nothing of it had to be moved, so that it was ready from the start
        }
        let switch = self.now.since(lease.granted);
        client.switch = switch.into();
        let moved = lease.lacked / u64::from(lease.width());
        for gpu in &lease.gpus {
            let state = &mut self.gpus[gpu.index()];
            state.switching += switch;
            state.moved += moved;
            self.memory.arrived(id, *gpu);
        }
        self.begin_quantum(id, epoch, switch);
    }

    fn reach(&mut self, id: ClientId, away: Holds) {
        let Some(client) = self.clients.get(&id) else { return };
        for gpu in client.bound.iter().copied() {
            self.memory.anchor(id, gpu, Anchor::Away, away);
            self.dirty.gpus.insert(gpu);
        }
        if away == Holds::No {
            self.memory.forget_arena(id, &self.clients[&id].bound);
        }
    }

    fn is_bound(&self, id: ClientId, gpu: Gpu) -> bool {
        self.clients.get(&id).is_some_and(|client| client.bound.contains(&gpu))
    }

    /// Plans again where memory that came back may be what a waiting client needs; and where it fits no more beside who is
    /// in its way since.
    pub(crate) fn replan_memory(&mut self, gpu: Gpu) {
        let matters = self.queues.share() || self.memory.has_anchored(gpu);
        if matters && !(self.gpus[gpu.index()].waiting.is_empty() && self.floating.is_empty()) {
            self.dirty.gpus.insert(gpu);
        }
    }

    pub(crate) fn answer(&mut self, answers: impl IntoIterator<Item = Answer>) {
        self.actions.extend(answers.into_iter().map(|answer| Action::Room {
            client: answer.client,
            seq: answer.seq,
            verdict: answer.verdict,
        }));
    }
}

//! When two states are the same, so that one of them is enough. What is left out, `model` says.

use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};

use acb_core::{Epoch, Time};

use super::{State, World};
use crate::assigner::{Known, Written};
use crate::client::{Said, Says};

impl State {
    /// What a scheduler shows of itself.
    fn shown(&self) -> Option<Shown> {
        let scheduler = self.assigner.scheduler.as_ref()?;
        let snapshot = scheduler.snapshot();
        let from_now = |at: Time| at.0.saturating_sub(self.now.0);
        let clients = snapshot.clients.iter().map(|client| ShownClient {
            client: client.client.0,
            state: client.state as u8,
            epoch: client.epoch,
            wanted: client.wanted,
            cause: client.recalled_for.map(|cause| cause as u8),
            room: client.room.iter().map(|(_, room)| (room.claimed, room.resident)).collect(),
            position: client.position,
        });
        let reservations = snapshot.reservations.iter();
        Some(Shown {
            next_epoch: snapshot.next_epoch,
            clients: clients.collect(),
            promises: reservations.map(|it| (it.client.0, it.promised.map(from_now))).collect(),
            expected: snapshot.expected.iter().map(|it| (it.client.0, it.held.lease)).collect(),
            waits: scheduler.is_settling(),
            stuck: snapshot.gpus[0].stuck,
            due: scheduler.poll_deadline().map(from_now),
        })
    }

    /// What stands for this state, with epochs named by their order.
    fn canonical(&self) -> (World, Option<Shown>, Written, Vec<Known>) {
        let mut world = self.world.clone();
        let (mut shown, mut written) = (self.shown(), self.assigner.written.clone());
        let mut earlier = self.assigner.earlier.clone();
        let mut epochs = BTreeSet::new();
        each_epoch(&mut world, &mut shown, &mut written, &mut earlier, &mut |it| {
            epochs.insert(*it);
        });
        each_epoch(&mut world, &mut shown, &mut written, &mut earlier, &mut |it| {
            *it = Epoch(epochs.range(..*it).count() as u64);
        });
        // Above all others in any case.
        written.limit = 0;
        (world, shown, written, earlier)
    }
}

/// The part of a snapshot that decides what happens next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Shown {
    next_epoch: Epoch,
    clients: Vec<ShownClient>,
    promises: Vec<(u64, Option<u64>)>,
    expected: Vec<(u64, Option<Epoch>)>,
    waits: bool,
    stuck: bool,
    due: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ShownClient {
    client: u64,
    state: u8,
    epoch: Option<Epoch>,
    wanted: bool,
    cause: Option<u8>,
    room: Vec<(u64, u64)>,
    position: Option<usize>,
}

fn each_epoch(
    world: &mut World,
    shown: &mut Option<Shown>,
    written: &mut Written,
    earlier: &mut [Known],
    visit: &mut impl FnMut(&mut Epoch),
) {
    for client in &mut world.clients {
        if let Some(lease) = &mut client.lease {
            visit(&mut lease.epoch);
            lease.renewed.iter_mut().for_each(&mut *visit);
        }
        client.runs.iter_mut().for_each(&mut *visit);
    }
    for said in world.to.iter_mut().flatten() {
        match said {
            Said::Grant(epoch, _)
            | Said::Wanted(epoch)
            | Said::Recall(epoch)
            | Said::Overtaken(epoch) => visit(epoch),
            Said::Welcome | Said::Credit(_) | Said::Evict(_) | Said::Withdraw | Said::Stay => {}
        }
    }
    for says in world.from.iter_mut().flatten() {
        match says {
            Says::Release(epoch) | Says::Ready(epoch) => visit(epoch),
            Says::Join(_, lease) => lease.iter_mut().for_each(&mut *visit),
            Says::Lost | Says::Acquire | Says::Evicted(_) | Says::Return(_) => {}
        }
    }
    visit(&mut world.granted);
    visit(&mut world.used);
    world.keeps.iter_mut().flatten().for_each(&mut *visit);
    if let Some(shown) = shown {
        visit(&mut shown.next_epoch);
        shown.clients.iter_mut().filter_map(|it| it.epoch.as_mut()).for_each(&mut *visit);
        shown.expected.iter_mut().filter_map(|(_, it)| it.as_mut()).for_each(&mut *visit);
    }
    let known = written.clients.iter_mut().chain(earlier);
    known.filter_map(|known| known.lease.as_mut()).for_each(&mut *visit);
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.canonical().hash(hasher);
    }
}

impl PartialEq for State {
    fn eq(&self, other: &State) -> bool {
        self.canonical() == other.canonical()
    }
}

//! An assigner: the real scheduler, and what it writes down for its next life (the daemon's `state.json`).

use std::time::Duration;

use acb_core::{
    Action, Backfill, ClientId, Config, Epoch, Event, Expected, Gpu, GpuConfig, Held, Policy, Room,
    Scheduler, Settle, Snapshot, Time,
};

/// Epochs that the next life leaves out: so many may have been granted since it was written.
const EPOCHS_AHEAD: u64 = 1000;
const SETTLE: Duration = Duration::from_secs(2);

pub(crate) const GPU: Gpu = Gpu(0);

/// A client, as it is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Known {
    pub(crate) client: u64,
    /// Claimed, and resident at most.
    room: (u64, u64),
    pub(crate) lease: Option<Epoch>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Written {
    /// No epoch from this one on was granted.
    pub(crate) limit: u64,
    pub(crate) clients: Vec<Known>,
}

#[derive(Clone, Debug)]
pub(crate) struct Assigner {
    /// None while it is down.
    pub(crate) scheduler: Option<Scheduler>,
    pub(crate) written: Written,
    /// As it was written when this life began.
    pub(crate) earlier: Vec<Known>,
    pub(crate) chunks: u64,
    /// It waits for those who may hold from before.
    waits: bool,
    until: Time,
}

impl Assigner {
    /// With clients that are bound already, and have claimed their memory.
    pub(crate) fn new(chunks: u64, clients: &[u64]) -> Assigner {
        let mut assigner = Assigner {
            scheduler: None,
            written: Written::default(),
            earlier: Vec::new(),
            chunks,
            waits: false,
            until: Time(0),
        };
        assigner.begin(Time(0));
        for (client, bytes) in (0..).map(ClientId).zip(clients) {
            let spec = acb_core::ClientSpec::default();
            assigner.tell(Event::Join { client, spec }, Time(0));
            assigner.tell(Event::Bind { client }, Time(0));
            if *bytes > 0 {
                let claim = Event::Claim { client, seq: 0, gpu: GPU, bytes: *bytes };
                assigner.tell(claim, Time(0));
            }
        }
        assigner
    }

    /// Begins, with what an earlier life has written down.
    pub(crate) fn begin(&mut self, now: Time) {
        let mut config = Config::new(vec![GpuConfig { memory: self.chunks }], Policy::GpuAffinity);
        config.backfill = Backfill::Off; // nobody knows how long phases take
        config.first_epoch = Epoch(self.written.limit.max(1));
        let expected = self.written.clients.iter().map(|known| {
            let (claimed, resident) = known.room;
            let bound = vec![(GPU, Room { fixed: 0, claimed, resident })];
            let held = Held { bound, lease: known.lease };
            Expected { client: ClientId(known.client), held, gang: None }
        });
        let expected = expected.collect();
        self.until = now.after(SETTLE);
        config.settle = Settle { until: self.until, expected, departed: Vec::new() };
        self.scheduler = Some(Scheduler::new(config).expect("it makes sense"));
        self.earlier.clone_from(&self.written.clients);
        self.waits = true;
        self.write();
    }

    /// What it says to that.
    pub(crate) fn tell(&mut self, event: Event, now: Time) -> Vec<Action> {
        let Some(scheduler) = &mut self.scheduler else { return Vec::new() };
        let matters =
            matches!(event, Event::Join { .. } | Event::Bind { .. } | Event::Leave { .. });
        scheduler.handle(event, now);
        let actions: Vec<Action> = std::iter::from_fn(|| scheduler.poll_action()).collect();
        let waits = scheduler.is_settling();
        let is_settled = std::mem::replace(&mut self.waits, waits) && !waits;
        if matters || is_settled || self.is_more_than_written() {
            self.write();
        }
        actions
    }

    /// Whether those who may hold from before a restart have been waited for when that moment has come.
    pub(crate) fn settles_by(&self, moment: Time) -> bool {
        self.waits && self.until <= moment
    }

    /// Clients that are still expected back.
    pub(crate) fn awaits(&self) -> Vec<usize> {
        let expected = self.scheduler.iter().flat_map(|it| it.snapshot().expected);
        expected.map(|it| it.client.0 as usize).collect()
    }

    /// The second in which something has changed is over.
    pub(crate) fn write_all(&mut self) {
        self.write();
    }

    /// Whether a client has more memory than is written.
    fn is_more_than_written(&self) -> bool {
        let Some(scheduler) = &self.scheduler else { return false };
        self.written.clients.iter().any(|known| {
            let (claimed, resident) = known.room;
            let room = scheduler.room(ClientId(known.client), GPU);
            !Room { fixed: 0, claimed, resident }.covers(room)
        })
    }

    fn write(&mut self) {
        let Some(snapshot) = self.scheduler.as_ref().map(Scheduler::snapshot) else { return };
        self.written =
            Written { limit: snapshot.next_epoch.0 + EPOCHS_AHEAD, clients: self.known(&snapshot) };
    }

    fn known(&self, snapshot: &Snapshot) -> Vec<Known> {
        let bound = snapshot.clients.iter().filter(|client| client.bound);
        let here = bound.map(|client| {
            let Expected { held, .. } = client.expected_back();
            let (_, room) = held.bound[0];
            let room = (room.claimed, room.resident);
            Known { client: client.client.0, room, lease: held.lease }
        });
        let earlier = self.earlier.iter().filter_map(|known| {
            let mut expected = snapshot.expected.iter();
            let awaited = expected.find(|it| it.client.0 == known.client)?;
            Some(Known { lease: known.lease.filter(|_| awaited.held.lease.is_some()), ..*known })
        });
        here.chain(earlier).collect()
    }
}

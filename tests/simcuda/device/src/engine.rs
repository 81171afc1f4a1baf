//! Who has an engine when: first come, first served, with time slices while
//! several processes want it. Pure: the moment comes from the caller.
//!
//! ```text
//! NONE --post--> WAITING --its turn--> RUNNING --all done--> DONE --collect--> NONE
//!                   ^                     |
//!                   +---- slice over -----+
//! ```
//!
//! Time never drifts: a request starts at the moment at which it became ready or
//! the engine became free, also when that is only noticed later.

use std::sync::atomic::Ordering;

use crate::Nanos;
use crate::layout::{EngineKind, GPUS_MAX, Request, Shared};

/// A request that runs until it is ended by [`finish`].
pub const ENDLESS: Nanos = Nanos::MAX / 4;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It cannot end before this moment; look again then.
    NotBefore(Nanos),
    /// It ran from start to end, and is collected.
    Done {
        /// When it first ran.
        start: Nanos,
        /// When it ended.
        end: Nanos,
    },
}

/// Which engine of which GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EngineId {
    /// Index of the GPU.
    pub gpu: usize,
    /// Which of its engines.
    pub kind: EngineKind,
}

/// Hands in work: `length` of it, wanted since `ready`.
pub fn post(
    shared: &mut Shared,
    id: EngineId,
    entry: usize,
    ready: Nanos,
    length: Nanos,
    slice: Nanos,
    now: Nanos,
) {
    advance(shared, id, slice, now);
    let request = request(shared, id, entry);
    debug_assert_eq!(request.state, Request::NONE);
    *request = Request { state: Request::WAITING, ready, started: Nanos::MAX, left: length };
    engine(shared, id).busy.fetch_add(1, Ordering::Relaxed);
}

/// How far the entry's request is; a request that is over is collected.
pub fn collect(
    shared: &mut Shared,
    id: EngineId,
    entry: usize,
    slice: Nanos,
    now: Nanos,
) -> Progress {
    advance(shared, id, slice, now);
    let own = *request(shared, id, entry);
    match own.state {
        Request::DONE => {
            *request(shared, id, entry) = Request::EMPTY;
            Progress::Done { start: own.started, end: own.left }
        }
        Request::RUNNING => Progress::NotBefore(engine(shared, id).since.saturating_add(own.left)),
        _ => Progress::NotBefore(earliest_change(shared, id, slice).saturating_add(own.left)),
    }
}

/// Ends the entry's request now, whatever is left of it.
pub fn finish(shared: &mut Shared, id: EngineId, entry: usize, slice: Nanos, now: Nanos) {
    advance(shared, id, slice, now);
    let since = engine(shared, id).since;
    let own = request(shared, id, entry);
    match own.state {
        Request::RUNNING => own.left = now.saturating_sub(since),
        Request::WAITING => own.left = 0,
        _ => {}
    }
    advance(shared, id, slice, now);
}

/// Takes the entry's request back, in whatever state it is: its process is gone.
pub fn withdraw(shared: &mut Shared, id: EngineId, entry: usize, now: Nanos) {
    let own = *request(shared, id, entry);
    if matches!(own.state, Request::WAITING | Request::RUNNING) {
        engine(shared, id).busy.fetch_sub(1, Ordering::Relaxed);
    }
    *request(shared, id, entry) = Request::EMPTY;
    let engine = engine(shared, id);
    if engine.running == entry as u32 + 1 {
        engine.running = 0;
        engine.worked += now.saturating_sub(engine.since);
        engine.decided = engine.decided.max(now);
    }
}

/// The entry that has the engine, if any.
#[must_use]
pub fn holder(shared: &Shared, id: EngineId) -> Option<usize> {
    let running = shared.gpus[id.gpu].engines[id.kind as usize].running;
    running.checked_sub(1).map(|entry| entry as usize)
}

/// Decides everything up to `now`.
pub fn advance(shared: &mut Shared, id: EngineId, slice: Nanos, now: Nanos) {
    loop {
        let next = next_waiting(shared, id);
        let Some(holder) = holder(shared, id) else {
            let Some((entry, ready)) = next else { return };
            let start = ready.max(engine(shared, id).decided);
            if start > now {
                return;
            }
            let request = request(shared, id, entry);
            request.state = Request::RUNNING;
            request.started = request.started.min(start);
            let engine = engine(shared, id);
            engine.running = entry as u32 + 1;
            engine.since = start;
            continue;
        };
        let since = engine(shared, id).since;
        let end = since.saturating_add(request(shared, id, holder).left);
        let preempted = next.map(|(_, ready)| ready.max(since.saturating_add(slice)));
        let until = preempted.map_or(end, |preempted| preempted.min(end));
        if until > now {
            return;
        }
        let own = request(shared, id, holder);
        let over = until == end;
        if over {
            own.state = Request::DONE;
            own.left = end;
        } else {
            own.state = Request::WAITING;
            own.left -= until - since;
            own.ready = until;
        }
        let engine = engine(shared, id);
        engine.running = 0;
        engine.decided = until;
        engine.worked += until - since;
        if over {
            engine.busy.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Makes engines and requests agree again after a process was killed in the middle
/// of `advance`: what runs without its engine waits, and is counted once.
pub fn repair(shared: &mut Shared) {
    for gpu in 0..GPUS_MAX {
        for kind in EngineKind::ALL {
            let id = EngineId { gpu, kind };
            if let Some(entry) = holder(shared, id)
                && request(shared, id, entry).state != Request::RUNNING
            {
                engine(shared, id).running = 0;
            }
            let holder = holder(shared, id);
            let mut busy = 0;
            for entry in 0..shared.entries_used as usize {
                let own = request(shared, id, entry);
                if own.state == Request::RUNNING && holder != Some(entry) {
                    own.state = Request::WAITING;
                }
                busy += u32::from(matches!(own.state, Request::WAITING | Request::RUNNING));
            }
            engine(shared, id).busy.store(busy, Ordering::Relaxed);
        }
    }
}

/// The first moment at which the engine may go to another request.
fn earliest_change(shared: &mut Shared, id: EngineId, slice: Nanos) -> Nanos {
    let Some(holder) = holder(shared, id) else {
        return engine(shared, id).decided;
    };
    let since = engine(shared, id).since;
    let end = since.saturating_add(request(shared, id, holder).left);
    let ready = next_waiting(shared, id).map_or(Nanos::MAX, |(_, ready)| ready);
    end.min(ready.max(since.saturating_add(slice)))
}

/// Who waits longest, and since when; of two that wait equally long, the one that
/// has not run yet.
fn next_waiting(shared: &Shared, id: EngineId) -> Option<(usize, Nanos)> {
    (0..shared.entries_used as usize)
        .filter_map(|entry| {
            let request = &shared.processes[entry].gpus[id.gpu].requests[id.kind as usize];
            let ran = request.started != Nanos::MAX;
            (request.state == Request::WAITING).then_some((entry, request.ready, ran))
        })
        .min_by_key(|&(_, ready, ran)| (ready, ran))
        .map(|(entry, ready, _)| (entry, ready))
}

fn engine(shared: &mut Shared, id: EngineId) -> &mut crate::layout::Engine {
    &mut shared.gpus[id.gpu].engines[id.kind as usize]
}

fn request(shared: &mut Shared, id: EngineId, entry: usize) -> &mut Request {
    &mut shared.processes[entry].gpus[id.gpu].requests[id.kind as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::zeroed_shared;

    const ID: EngineId = EngineId { gpu: 0, kind: EngineKind::Compute };
    const SLICE: Nanos = 10;

    fn shared(entries: u32) -> Box<Shared> {
        let mut shared = zeroed_shared();
        shared.entries_used = entries;
        shared
    }

    fn done(start: Nanos, end: Nanos) -> Progress {
        Progress::Done { start, end }
    }

    #[test]
    fn alone_it_runs_from_ready_to_end_however_late_one_looks() {
        let mut s = shared(1);
        post(&mut s, ID, 0, 100, 5, SLICE, 130);
        assert_eq!(collect(&mut s, ID, 0, SLICE, 130), done(100, 105));
        // Ready before the last one ended: starts where that ended.
        post(&mut s, ID, 0, 101, 5, SLICE, 140);
        assert_eq!(collect(&mut s, ID, 0, SLICE, 140), done(105, 110));
        assert_eq!(s.gpus[0].engines[0].worked, 10);
    }

    #[test]
    fn it_is_not_done_before_its_time() {
        let mut s = shared(1);
        post(&mut s, ID, 0, 100, 50, SLICE, 100);
        assert_eq!(collect(&mut s, ID, 0, SLICE, 149), Progress::NotBefore(150));
        assert_eq!(collect(&mut s, ID, 0, SLICE, 150), done(100, 150));
    }

    #[test]
    fn two_share_in_slices_and_their_times_add_up() {
        let mut s = shared(2);
        post(&mut s, ID, 0, 0, 30, SLICE, 0);
        post(&mut s, ID, 1, 0, 15, SLICE, 0);
        // 0: 0-10, 1: 10-20, 0: 20-30, 1: 30-35, 0: 35-45
        assert_eq!(collect(&mut s, ID, 1, SLICE, 34), Progress::NotBefore(35));
        assert_eq!(collect(&mut s, ID, 1, SLICE, 100), done(10, 35));
        assert_eq!(collect(&mut s, ID, 0, SLICE, 100), done(0, 45));
        assert_eq!(s.gpus[0].engines[0].worked, 45);
        assert_eq!(s.gpus[0].engines[0].busy.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_newcomer_cuts_a_long_one_short() {
        let mut s = shared(2);
        post(&mut s, ID, 0, 0, ENDLESS, SLICE, 0);
        post(&mut s, ID, 1, 1000, 3, SLICE, 1000);
        assert_eq!(collect(&mut s, ID, 1, SLICE, 1000), Progress::NotBefore(1003));
        assert_eq!(collect(&mut s, ID, 1, SLICE, 1003), done(1000, 1003));
        finish(&mut s, ID, 0, SLICE, 2000);
        assert_eq!(collect(&mut s, ID, 0, SLICE, 2000), done(0, 2000));
    }

    #[test]
    fn what_a_kill_left_half_done_is_repaired() {
        let mut s = shared(2);
        post(&mut s, ID, 0, 0, 10, SLICE, 0);
        post(&mut s, ID, 1, 0, 10, SLICE, 0);
        // Killed between the two halves of giving the engine to entry 1.
        s.processes[1].gpus[0].requests[0].state = Request::RUNNING;
        s.gpus[0].engines[0].running = 0;
        s.processes[0].gpus[0].requests[0].state = Request::WAITING;
        s.gpus[0].engines[0].busy.store(7, Ordering::Relaxed);
        repair(&mut s);
        assert_eq!(s.gpus[0].engines[0].busy.load(Ordering::Relaxed), 2);
        assert_eq!(collect(&mut s, ID, 1, SLICE, 100), done(0, 10));
        assert_eq!(collect(&mut s, ID, 0, SLICE, 100), done(0, 20));
    }

    #[test]
    fn a_withdrawn_holder_leaves_the_engine() {
        let mut s = shared(2);
        post(&mut s, ID, 0, 0, 1000, SLICE, 0);
        advance(&mut s, ID, SLICE, 5);
        post(&mut s, ID, 1, 5, 4, SLICE, 5);
        withdraw(&mut s, ID, 0, 7);
        assert_eq!(collect(&mut s, ID, 1, SLICE, 7), Progress::NotBefore(11));
        assert_eq!(collect(&mut s, ID, 1, SLICE, 11), done(7, 11));
        assert_eq!(s.gpus[0].engines[0].busy.load(Ordering::Relaxed), 0);
    }
}

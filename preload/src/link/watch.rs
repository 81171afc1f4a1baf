//! When a lease goes back: the watch for idleness, and the drain after a recall.
//!
//! Owns: how often to look, how long to be idle, what to do about a GPU that does not drain.
//! Does not own: looking itself (`work`). Nothing is watched while nobody else wants the lease.

use super::starving::Threads;
use super::{LINK, Link};
use crate::gate::Snapshot;
use crate::graphs::leaving;
use crate::lease::{Lease, Reason};
use crate::log::{debug, info, warning};
use crate::pager::{Opening, PAGER};
use crate::work::{Drained, Inspector, WORK};
use acb_wire::v1::{
    Acquire, Release, ReleaseReason, ReleaseSoon, Stuck, Usage, client_message::Kind,
};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Shortest and longest pause between two looks.
const SHORTEST: Duration = Duration::from_micros(30);
const LONGEST: Duration = Duration::from_millis(1);
/// After so long behind a closed gate the program is told to be stuck; if calls of its own wait at
/// the gate, one of them may be what the GPU waits for, and the gate opens for a moment.
const STUCK: Duration = Duration::from_secs(5);
const MOMENT: Duration = Duration::from_millis(500);
/// How long a call that has heard the bell may take to come in.
const STARVED: Duration = Duration::from_secs(1);
/// Idleness must last for such a part of what the switch to this lease took: the next one may take as long.
const SWITCH_PART: u32 = 20;
/// While threads of the program wait for a processor, it is waited for them, for such a part at most.
const STARVING_PART: u32 = 4;
/// How often a gate that is open for a capture is looked at.
const CAPTURE: Duration = Duration::from_millis(1);
/// So long before the end of its idleness the release is announced, for those who must wake up for it.
const SOON: Duration = Duration::from_micros(100);
/// Counters are sent no more often than this.
const USAGE_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Watch {
    inspector: Inspector,
    /// How long the streams must be idle.
    pub(super) idle: Duration,
    /// The gate when it was last looked at.
    seen: Option<Snapshot>,
    /// Since when nothing has come and all is drained.
    quiet_since: Option<Instant>,
    /// The program's threads at that moment; looked at only if memory came in for this lease.
    threads: Threads,
    pause: Duration,
    /// When the gate was closed for a recall.
    closed_at: Option<Instant>,
    /// When the assigner asked for this lease, whatever the gate has done since.
    recalled_at: Option<Instant>,
    /// When to close it again after it was opened for a stuck program.
    close_again: Option<Instant>,
    told_stuck: Option<Instant>,
    /// The release of this lease was announced: once, for an announcement that comes to nothing has others wake up for nothing.
    announced: bool,
    /// The GPU was seen at work since the grant.
    seen_busy: bool,
    granted_at: Option<Instant>,
    /// How long it took to bring memory in for this lease.
    switch: Duration,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    submissions: u64,
    /// What the gate had counted when `submissions` was last brought up to date.
    come: u32,
    phases: u64,
    held: Duration,
    sent: Option<Instant>,
}

impl Watch {
    pub(super) fn new(idle: Duration) -> Self {
        Watch {
            inspector: Inspector::default(),
            idle,
            seen: None,
            quiet_since: None,
            threads: Threads::default(),
            pause: SHORTEST,
            closed_at: None,
            recalled_at: None,
            close_again: None,
            told_stuck: None,
            announced: false,
            seen_busy: false,
            granted_at: None,
            switch: Duration::ZERO,
            counters: Counters::default(),
        }
    }

    /// The gate has opened; `switch`: after so long in which memory came in.
    pub(super) fn granted(&mut self, at: Instant, switch: Duration) {
        *self = Watch {
            inspector: std::mem::take(&mut self.inspector),
            counters: std::mem::take(&mut self.counters),
            granted_at: Some(at),
            switch,
            ..Watch::new(self.idle)
        };
    }

    pub(super) fn recalled(&mut self) {
        debug!("the GPU is wanted back; no call passes the gate any more");
        self.closed_at = Some(Instant::now());
        self.recalled_at = self.recalled_at.or(self.closed_at);
        self.close_again = None;
        self.pause = SHORTEST;
    }

    /// Looks once, acts, and says when to look again; `None`: not before a message comes.
    pub(super) fn look(&mut self) -> Option<Duration> {
        let lease = *LINK.lease();
        match lease {
            Lease::Held { wanted: true, .. } => self.look_for_idleness(),
            Lease::Closing { .. } => self.look_for_the_end(),
            _ => None,
        }
    }

    fn look_for_idleness(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if self.close_again.is_some_and(|at| now >= at) {
            if WORK.is_capturing() {
                self.close_again = Some(now + CAPTURE);
                return Some(CAPTURE);
            }
            self.close_again = None;
            return self.close_after_moment();
        }
        let gate = LINK.gate.snapshot();
        // Calls that stood at the gate have heard the bell and are on their way in: on a busy machine that can take longer than
        // it takes to count as idle, and to give the lease back now would cost the whole switch.
        let fresh = self.granted_at.is_some_and(|at| at.elapsed() < STARVED);
        if fresh && LINK.waiting.load(Ordering::SeqCst) > 0 {
            self.quiet_since = None;
            return Some(self.longer_pause());
        }
        if gate.inside > 0 || self.seen.is_none_or(|seen| seen.come != gate.come) {
            self.seen = Some(gate);
            self.quiet_since = None;
            self.pause = SHORTEST;
            if gate.inside > 0 {
                self.seen_busy = true;
                return Some(self.idle.clamp(SHORTEST, LONGEST));
            }
        }
        let since = match self.quiet_since {
            Some(since) => since,
            None if self.inspector.drained(&WORK, gate.come) == Drained::No => {
                self.seen_busy = true;
                return Some(self.longer_pause());
            }
            None => {
                if self.idle < self.switch / STARVING_PART {
                    self.threads = Threads::now();
                }
                *self.quiet_since.insert(now)
            }
        };
        let passed = since.elapsed();
        let left = self.idle.max(self.switch / SWITCH_PART).saturating_sub(passed);
        if !left.is_zero() {
            return Some(self.announce(left));
        }
        // To give the lease back now would cost a switch, and the same to come back.
        if passed < self.switch / STARVING_PART && Threads::now().is_starving(&self.threads, passed)
        {
            return Some(LONGEST);
        }
        leaving::settle_drained(|| LINK.gate.snapshot() == gate);
        // Drained when nobody had come since `seen`, and if nobody has come until now, drained still.
        let mut lease = LINK.lease();
        if lease.begin_idle_release() {
            if LINK.gate.close_if_quiet(gate) {
                // Never seen at work: it was over before anybody looked.
                let finished = LINK.last_finished().filter(|_| !self.seen_busy);
                self.release(&mut lease, finished.map_or(since, |at| at.min(since)));
                return None;
            }
            lease.reopen();
            self.quiet_since = None;
        }
        Some(SHORTEST)
    }

    /// The lease goes back in `left`, as it seems. Says when to look again.
    fn announce(&mut self, left: Duration) -> Duration {
        match left.checked_sub(SOON) {
            _ if self.announced => left,
            Some(early) if !early.is_zero() => early,
            _ => {
                self.announced = true;
                LINK.send(Kind::ReleaseSoon(ReleaseSoon { epoch: LINK.lease().epoch() }));
                left
            }
        }
    }

    fn look_for_the_end(&mut self) -> Option<Duration> {
        let gate = LINK.gate.snapshot();
        if gate.inside == 0 && self.inspector.drained(&WORK, gate.come) == Drained::Yes {
            leaving::settle_drained(|| LINK.gate.snapshot() == gate);
            self.release(&mut LINK.lease(), Instant::now());
            return None;
        }
        // What is captured does not run, and the capture must come to its end.
        if WORK.is_capturing() && LINK.waiting.load(Ordering::SeqCst) > 0 {
            self.open_for(CAPTURE);
            return Some(CAPTURE);
        }
        let closed = *self.closed_at.get_or_insert_with(Instant::now);
        if closed.elapsed() > STUCK {
            self.stuck();
        }
        Some(self.longer_pause())
    }

    /// The lease is kept: taking it away would let two programs compute at once.
    fn stuck(&mut self) {
        if self.told_stuck.is_none_or(|at| at.elapsed() > STUCK) {
            let kernel = WORK.kernel_name().map(|name| name.to_string()).unwrap_or_default();
            let seconds = self.recalled_at.map_or(0, |at| at.elapsed().as_secs());
            if self.told_stuck.is_none() {
                let last = match kernel.as_str() {
                    "" => String::new(),
                    name => format!(" (launched last: {name})"),
                };
                warning!(
                    "the GPU has not finished {seconds} s after the assigner asked for it back: a kernel that does not end, or one \
                     that waits for this program{last}. The GPU is kept until it has, and others wait; end this program if the \
                     kernel should have ended"
                );
            }
            // Others may have come to wait since.
            LINK.send(Kind::Stuck(Stuck { epoch: LINK.lease().epoch(), seconds, kernel }));
            self.told_stuck = Some(Instant::now());
        }
        if LINK.waiting.load(Ordering::SeqCst) > 0 {
            debug!(
                "the gate opens for a moment: calls of this program may be what the GPU waits for"
            );
            self.open_for(MOMENT);
        }
    }

    /// Opens the gate of a lease that is recalled, for a while.
    fn open_for(&mut self, time: Duration) {
        let mut lease = LINK.lease();
        // Not while memory that the calls may touch is elsewhere.
        if !PAGER.open_gate(&LINK.gate, Opening::Again) {
            return;
        }
        lease.reopen();
        self.seen = None;
        self.quiet_since = None;
        self.closed_at = None;
        self.close_again = Some(Instant::now() + time);
    }

    fn close_after_moment(&mut self) -> Option<Duration> {
        let mut lease = LINK.lease();
        let epoch = lease.epoch();
        if lease.recalled(epoch) == crate::lease::Order::CloseGate {
            LINK.gate.close();
            drop(lease);
            PAGER.gate_closed();
            self.recalled();
        }
        Some(SHORTEST)
    }

    fn longer_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST);
        pause
    }

    fn release(&mut self, lease: &mut Lease, last_work: Instant) {
        let waiting = LINK.waiting.load(Ordering::SeqCst) > 0;
        let Some((epoch, reason)) = lease.drained(waiting) else { return };
        let busy =
            self.granted_at.map_or(Duration::ZERO, |at| last_work.saturating_duration_since(at));
        LINK.send(Kind::Release(Release {
            epoch,
            reason: match reason {
                Reason::Idle => ReleaseReason::Idle,
                Reason::Recalled => ReleaseReason::Recalled,
            }
            .into(),
            busy_ns: busy.as_nanos() as u64,
        }));
        if waiting {
            LINK.send(Kind::Acquire(Acquire {}));
        }
        if self.told_stuck.is_some() {
            warning!("the GPU has finished; it goes back");
        }
        info!("gave the GPU back ({reason:?}) after {:.3} s", busy.as_secs_f64());
        self.counters.phase(&LINK, self.granted_at);
        self.closed_at = None;
        self.recalled_at = None;
        self.told_stuck = None;
        self.granted_at = None;
    }
}

impl Counters {
    fn phase(&mut self, link: &Link, granted_at: Option<Instant>) {
        let come = link.gate.snapshot().come;
        self.submissions += u64::from(come.wrapping_sub(self.come));
        self.come = come;
        self.phases += 1;
        self.held += granted_at.map_or(Duration::ZERO, |at| at.elapsed());
        if self.sent.is_some_and(|at| at.elapsed() < USAGE_EVERY) {
            return;
        }
        self.sent = Some(Instant::now());
        link.send(Kind::Usage(Usage {
            submissions: self.submissions,
            phases: self.phases,
            wait_ns: link.waited_ns.load(Ordering::Relaxed),
            held_ns: self.held.as_nanos() as u64,
        }));
    }
}

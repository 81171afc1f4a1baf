//! The client's side of a lease as a pure state machine.
//!
//! Owns: what the client holds, and what it should say next. Does not own: sockets, the gate, the
//! driver, time. `link` feeds it, under one lock, and does what it answers.
//!
//! ```text
//!            want           Granted             filled         Wanted + idle, Recall
//!   None ───────────> Asked ────────> Filling ──────────> Held ──────────────────────> Closing
//!    ▲                                   │                 ▲                             │ │
//!    │                                   └── Recall ───────│──────────────────────────>  │ │
//!    │                                                     └────── somebody came ────────┘ │
//!    └───────────────────────────────── drained: Release ──────────────────────────────────┘
//!
//!   any ── no assigner any more ──> Regaining (memory comes back) ──> Free (gate open for good)
//!                               └─> Dead (every submission fails)
//! ```

/// Number of a lease.
pub(crate) type Epoch = u64;

/// Why a lease is on its way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Somebody waits, and the streams were idle.
    Idle,
    /// The assigner wants it back.
    Recalled,
}

/// What the client holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lease {
    /// Nothing, and wants nothing.
    None,
    /// Nothing, and waits for its turn.
    Asked,
    /// The lease, but memory is still on its way to the GPU.
    Filling { epoch: Epoch, wanted: bool },
    /// The lease; `wanted`: somebody waits for it.
    Held { epoch: Epoch, wanted: bool },
    /// The lease still, behind a closed gate.
    Closing { epoch: Epoch, reason: Reason },
    /// No assigner: no scheduling, as soon as all memory is back.
    Regaining,
    /// No assigner: no scheduling.
    Free,
    /// No assigner: no submissions.
    Dead,
}

/// What a call that found the gate closed has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Try the gate again.
    Retry,
    /// Send Acquire, then wait for the bell.
    AskAndWait,
    /// Wait for the bell.
    Wait,
    /// Give the program an error.
    Fail,
}

/// What a message of the assigner asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Open the gate as soon as all memory is there; then [`Lease::filled`].
    OpenGate,
    /// Watch for idleness.
    Watch,
    /// Close the gate and drain.
    CloseGate,
    /// Stale or out of turn.
    Nothing,
}

impl Lease {
    /// A call wants to submit.
    pub(crate) fn want(&mut self) -> Entry {
        match self {
            Lease::None => {
                *self = Lease::Asked;
                Entry::AskAndWait
            }
            Lease::Asked | Lease::Filling { .. } | Lease::Closing { .. } | Lease::Regaining => {
                Entry::Wait
            }
            Lease::Held { .. } | Lease::Free => Entry::Retry,
            Lease::Dead => Entry::Fail,
        }
    }

    /// Granted. One that nobody asked for is taken too: it goes back like any other.
    pub(crate) fn granted(&mut self, epoch: Epoch) -> Order {
        match self {
            Lease::None | Lease::Asked => {
                *self = Lease::Filling { epoch, wanted: false };
                Order::OpenGate
            }
            _ => Order::Nothing,
        }
    }

    /// All memory is there, and the gate opens.
    pub(crate) fn filled(&mut self) {
        match *self {
            Lease::Filling { epoch, wanted } => *self = Lease::Held { epoch, wanted },
            Lease::Regaining => *self = Lease::Free,
            _ => {}
        }
    }

    /// Wanted.
    pub(crate) fn wanted(&mut self, of: Epoch) -> Order {
        match self {
            Lease::Held { epoch, wanted } | Lease::Filling { epoch, wanted } if *epoch == of => {
                *wanted = true;
                Order::Watch
            }
            _ => Order::Nothing,
        }
    }

    /// Recall.
    pub(crate) fn recalled(&mut self, of: Epoch) -> Order {
        match self {
            Lease::Held { epoch, .. } | Lease::Filling { epoch, .. } if *epoch == of => {
                *self = Lease::Closing { epoch: of, reason: Reason::Recalled };
                Order::CloseGate
            }
            _ => Order::Nothing,
        }
    }

    /// The streams are idle while somebody waits; the gate is about to be closed.
    pub(crate) fn begin_idle_release(&mut self) -> bool {
        match *self {
            Lease::Held { epoch, wanted: true } => {
                *self = Lease::Closing { epoch, reason: Reason::Idle };
                true
            }
            _ => false,
        }
    }

    /// The gate stays open after all: a call came, or the drain takes too long.
    pub(crate) fn reopen(&mut self) {
        if let Lease::Closing { epoch, .. } = *self {
            *self = Lease::Held { epoch, wanted: true };
        }
    }

    /// Nothing runs any more. The lease to give back, if that is what was waited for; `waiting`
    /// says that calls stand at the gate, so that the client asks anew at once.
    pub(crate) fn drained(&mut self, waiting: bool) -> Option<(Epoch, Reason)> {
        let Lease::Closing { epoch, reason } = *self else { return None };
        *self = if waiting { Lease::Asked } else { Lease::None };
        Some((epoch, reason))
    }

    /// Epoch to state when the client reconnects; 0: holds nothing.
    pub(crate) fn epoch(&self) -> Epoch {
        match *self {
            Lease::Held { epoch, .. }
            | Lease::Filling { epoch, .. }
            | Lease::Closing { epoch, .. } => epoch,
            _ => 0,
        }
    }

    /// A new connection: what was asked of the old one is forgotten. True: Acquire must be sent.
    pub(crate) fn reconnected(&mut self) -> bool {
        if let Lease::Held { wanted, .. } | Lease::Filling { wanted, .. } = self {
            *wanted = false;
        }
        *self == Lease::Asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_from_start_to_end() {
        let mut lease = Lease::None;
        assert_eq!(lease.want(), Entry::AskAndWait);
        assert_eq!(lease.want(), Entry::Wait, "one Acquire is enough");
        assert_eq!(lease.granted(7), Order::OpenGate);
        assert_eq!(lease.want(), Entry::Wait, "memory is on its way");
        lease.filled();
        assert_eq!(lease.want(), Entry::Retry);
        assert!(!lease.begin_idle_release(), "nobody wants it");
        assert_eq!(lease.wanted(6), Order::Nothing, "another lease");
        assert_eq!(lease.wanted(7), Order::Watch);
        assert!(lease.begin_idle_release());
        assert_eq!(lease.want(), Entry::Wait);
        assert_eq!(lease.drained(true), Some((7, Reason::Idle)));
        assert_eq!(lease, Lease::Asked, "the call at the gate is remembered");
    }

    #[test]
    fn a_lease_may_be_wanted_and_recalled_before_its_memory_is_there() {
        let mut lease = Lease::Asked;
        assert_eq!(lease.granted(4), Order::OpenGate);
        assert_eq!(lease.wanted(4), Order::Watch);
        assert_eq!(lease.epoch(), 4);
        lease.filled();
        assert_eq!(lease, Lease::Held { epoch: 4, wanted: true });
        let mut lease = Lease::Filling { epoch: 5, wanted: false };
        assert_eq!(lease.recalled(5), Order::CloseGate);
        lease.filled();
        assert_eq!(lease, Lease::Closing { epoch: 5, reason: Reason::Recalled });
    }

    #[test]
    fn a_recall_closes_once() {
        let mut lease = Lease::Held { epoch: 3, wanted: true };
        assert_eq!(lease.recalled(3), Order::CloseGate);
        assert_eq!(lease.recalled(3), Order::Nothing);
        assert_eq!(lease.granted(4), Order::Nothing);
        assert_eq!(lease.epoch(), 3);
        assert_eq!(lease.drained(false), Some((3, Reason::Recalled)));
        assert_eq!(lease, Lease::None);
        assert_eq!(lease.drained(false), None);
    }

    #[test]
    fn a_reconnect_keeps_what_is_held_and_asks_again_for_what_is_not() {
        let mut held = Lease::Held { epoch: 9, wanted: true };
        assert!(!held.reconnected());
        assert_eq!(held, Lease::Held { epoch: 9, wanted: false });
        let mut asked = Lease::Asked;
        assert!(asked.reconnected());
        assert_eq!(asked.epoch(), 0);
    }

    #[test]
    fn without_an_assigner_calls_pass_or_fail() {
        assert_eq!({ Lease::Free }.want(), Entry::Retry);
        assert_eq!({ Lease::Dead }.want(), Entry::Fail);
        let mut regaining = Lease::Regaining;
        assert_eq!(regaining.want(), Entry::Wait);
        regaining.filled();
        assert_eq!(regaining, Lease::Free);
        let mut free = Lease::Free;
        assert_eq!(free.recalled(1), Order::Nothing);
    }
}

//! Numbers and moments: the newtypes that everything else speaks in.

use std::fmt;
use std::time::Duration;

use crate::table::Number;

/// A moment on the caller's monotonic clock: nanoseconds since an origin of the caller's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub u64);

impl Time {
    /// The moment `span` later; the end of time where that overflows.
    #[must_use]
    pub fn after(self, span: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// The time that has passed since `earlier`; zero when that is in the future.
    #[must_use]
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A GPU of this node, by its position in [`Config::gpus`](crate::Config::gpus).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpu(pub u32);

impl Gpu {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPU {}", self.0)
    }
}

/// A client, numbered by the caller; a number is never used for two clients. A client that comes
/// back to a restarted assigner keeps its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

impl Number for ClientId {
    fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {}", self.0)
    }
}

/// What goes first: the higher. From -100 to 100, 0 is usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Priority(i8);

impl Priority {
    /// The lowest.
    pub const LOWEST: Priority = Priority(-100);
    /// The highest.
    pub const HIGHEST: Priority = Priority(100);

    /// The priority of this number; `None` when it is beyond the ends.
    #[must_use]
    pub fn new(number: i32) -> Option<Priority> {
        let number = i8::try_from(number).ok()?;
        (Priority::LOWEST.0..=Priority::HIGHEST.0).contains(&number).then_some(Priority(number))
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0 as i32
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Number of a lease; grows with every grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// No life could use up half of all epochs: a number above this is garbage.
    pub(crate) const LAST_CREDIBLE: Epoch = Epoch(u64::MAX / 2);

    pub(crate) fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}", self.0)
    }
}

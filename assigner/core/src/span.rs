//! A length of time in one word: records keep many, and their size matters.

use std::ops::{AddAssign, SubAssign};
use std::time::Duration;

/// Nanoseconds, 584 years at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span(u64);

impl From<Duration> for Span {
    fn from(span: Duration) -> Span {
        Span(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl From<Span> for Duration {
    fn from(Span(ns): Span) -> Duration {
        Duration::from_nanos(ns)
    }
}

impl AddAssign<Span> for Span {
    fn add_assign(&mut self, more: Span) {
        self.0 = self.0.saturating_add(more.0);
    }
}

impl AddAssign<Duration> for Span {
    fn add_assign(&mut self, more: Duration) {
        *self += Span::from(more);
    }
}

impl SubAssign<Span> for Span {
    fn sub_assign(&mut self, less: Span) {
        self.0 = self.0.saturating_sub(less.0);
    }
}

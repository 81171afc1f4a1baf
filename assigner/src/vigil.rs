//! Staying awake for a release that is announced.
//!
//! Owns: for how long, and that others may run meanwhile. Does not own: whom else it concerns
//! ([`crate::broker`]).
//!
//! A thread that sleeps is woken within 20 to 50 µs, which is most of the way from a release to the
//! next grant. A holder says that it is about to be idle for long enough ([`ReleaseSoon`]); the worker
//! then asks for messages again and again instead of sleeping, for at most `LONGEST`.
//!
//! [`ReleaseSoon`]: acb_wire::v1::ReleaseSoon

use std::cell::Cell;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// The release comes 100 µs after its announcement, or a little later where the timer is late. This
/// is what an announcement costs at most.
const LONGEST: Duration = Duration::from_micros(200);

/// When the thread may sleep again.
#[derive(Debug)]
pub struct Vigil {
    longest: Duration,
    until: Cell<Option<Instant>>,
    begun: Notify,
}

impl Default for Vigil {
    fn default() -> Self {
        Vigil { longest: LONGEST, until: Cell::new(None), begun: Notify::new() }
    }
}

impl Vigil {
    /// From now on the thread stays awake.
    pub fn begin(&self) {
        self.until.set(Some(Instant::now() + self.longest));
        self.begun.notify_one();
    }

    /// What was announced has come.
    pub fn end(&self) {
        self.until.set(None);
    }

    /// Keeps the runtime of this thread from sleeping while there is a reason to.
    pub async fn keep(&self) {
        loop {
            self.begun.notified().await;
            while self.until.get().is_some_and(|until| Instant::now() < until) {
                std::thread::yield_now(); // who is to release may need this core
                tokio::task::yield_now().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::{Context, Wake, Waker};

    #[derive(Default)]
    struct Wakes(AtomicU32);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_thread_is_kept_awake_from_the_announcement_to_the_release_and_no_longer_than_that() {
        let vigil = Vigil { longest: Duration::from_secs(3600), ..Vigil::default() };
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let mut keeper = pin!(vigil.keep());
        let mut goes_on = || {
            let before = wakes.0.load(Ordering::Relaxed);
            assert!(keeper.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            wakes.0.load(Ordering::Relaxed) > before
        };
        assert!(!goes_on(), "nothing is announced");
        vigil.begin();
        assert!(goes_on());
        assert!(goes_on());
        vigil.end();
        assert!(!goes_on(), "the release has come");
        vigil.begin();
        assert!(goes_on(), "the next one");
    }

    #[test]
    fn nobody_is_waited_for_longer_than_was_said() {
        let vigil = Vigil { longest: Duration::ZERO, ..Vigil::default() };
        vigil.begin();
        let mut keeper = pin!(vigil.keep());
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        assert!(keeper.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
    }
}

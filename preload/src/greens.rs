//! Green contexts: parts of a GPU's processors with streams of their own, in the GPU's primary context.
//!
//! The driver gives out a context's handle for each; what is allocated under it is the primary context's. So everybody here who
//! asks for the current context is told of the primary one (`work::current_context`), and nobody works in a green one, which
//! may be current in one thread at a time only.
//!
//! Owns: which there are, and what they are parts of. Does not own: the calls (`hooks::green`), or what they take (`memory`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Green {
    pub(crate) device: i32,
    pub(crate) primary: usize,
    /// Its handle as a context; 0: nobody has asked for it.
    pub(crate) context: usize,
}

/// The register of this process.
pub(crate) static GREENS: Greens = Greens::new();

pub(crate) struct Greens {
    all: Mutex<BTreeMap<usize, Green>>,
    /// Most programs have none, and are asked often.
    any: AtomicBool,
}

impl Greens {
    const fn new() -> Self {
        Greens { all: Mutex::new(BTreeMap::new()), any: AtomicBool::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Green>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn made(&self, handle: usize, green: Green) {
        self.lock().insert(handle, green);
    }

    /// It has a handle as a context.
    pub(crate) fn named(&self, handle: usize, context: usize) {
        if let Some(green) = self.lock().get_mut(&handle) {
            green.context = context;
            self.any.store(true, Ordering::Release);
        }
    }

    pub(crate) fn remove(&self, handle: usize) -> Option<Green> {
        self.lock().remove(&handle)
    }

    /// The context in which there is what is made under a context.
    pub(crate) fn primary_of(&self, context: usize) -> usize {
        if context == 0 || !self.any.load(Ordering::Acquire) {
            return context;
        }
        let all = self.lock();
        all.values().find(|green| green.context == context).map_or(context, |green| green.primary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_a_green_context_is_the_primary_contexts() {
        let greens = Greens::new();
        let green = Green { device: 1, primary: 0x10, context: 0 };
        greens.made(0x20, green);
        assert_eq!(greens.primary_of(0x30), 0x30);
        greens.named(0x20, 0x30);
        assert_eq!((greens.primary_of(0x30), greens.primary_of(0x10)), (0x10, 0x10));
        assert_eq!(greens.primary_of(0), 0);
        assert_eq!(greens.remove(0x20), Some(Green { context: 0x30, ..green }));
        assert_eq!((greens.primary_of(0x30), greens.remove(0x20)), (0x30, None));
    }
}

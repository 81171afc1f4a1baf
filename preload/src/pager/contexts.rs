//! The program's contexts as the pager uses them: it works in them, and must not when they go. Pure.
//!
//! Owns: which contexts there are, on which device, who is working in them. Does not own: waiting until nobody is.

use std::collections::BTreeMap;

/// A context by a number of its own: handles are used again for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Carrier {
    pub(crate) handle: usize,
    pub(crate) id: u64,
}

#[derive(Clone, Copy, Debug)]
struct Context {
    id: u64,
    device: u32,
    /// Moves and calls of the pager's that are under way in it.
    users: u32,
    leaving: bool,
    /// A kernel or a copy has failed in it: nothing can be done in it any more, and what was in its memory is lost.
    broken: bool,
    /// Calls in it that have failed though it works.
    doubts: u32,
}

impl Context {
    fn is_usable(&self) -> bool {
        !self.leaving && !self.broken
    }
}

#[derive(Debug, Default)]
pub(crate) struct Contexts {
    contexts: BTreeMap<usize, Context>,
    made: u64,
}

impl Contexts {
    pub(crate) const fn new() -> Self {
        Contexts { contexts: BTreeMap::new(), made: 0 }
    }

    /// The number of a context, which is known from now on.
    pub(crate) fn note(&mut self, handle: usize, device: u32) -> u64 {
        if handle == 0 {
            return 0;
        }
        let made = &mut self.made;
        let context = self.contexts.entry(handle).or_insert_with(|| {
            *made += 1;
            Context { id: *made, device, users: 0, leaving: false, broken: false, doubts: 0 }
        });
        context.id
    }

    pub(crate) fn handle(&self, id: u64) -> Option<usize> {
        self.contexts.iter().find(|(_, context)| context.id == id).map(|(handle, _)| *handle)
    }

    pub(crate) fn device(&self, handle: usize) -> Option<u32> {
        self.contexts.get(&handle).map(|context| context.device)
    }

    pub(crate) fn knows(&self, handle: usize) -> bool {
        self.contexts.contains_key(&handle)
    }

    /// A context in which to work on a device's memory: the first of those in which the least has failed.
    pub(crate) fn carrier(&self, device: u32) -> Option<Carrier> {
        let all = self.contexts.iter().filter(|(_, c)| c.device == device && c.is_usable());
        let best = all.min_by_key(|(handle, context)| (context.doubts, **handle));
        best.map(|(handle, context)| Carrier { handle: *handle, id: context.id })
    }

    /// Something has failed in it: others are tried first.
    pub(crate) fn doubt(&mut self, carrier: Carrier) {
        if let Some(context) = self.contexts.get_mut(&carrier.handle)
            && context.id == carrier.id
        {
            context.doubts = context.doubts.saturating_add(1);
        }
    }

    /// Nothing can be done in it any more; true: that is news.
    pub(crate) fn break_down(&mut self, carrier: Carrier) -> bool {
        match self.contexts.get_mut(&carrier.handle) {
            Some(context) if context.id == carrier.id => {
                !std::mem::replace(&mut context.broken, true)
            }
            _ => false,
        }
    }

    /// Whether all contexts of a device are broken, and there are some.
    pub(crate) fn is_bereft(&self, device: u32) -> bool {
        let mut all = self.contexts.values().filter(|context| context.device == device).peekable();
        all.peek().is_some() && all.all(|context| context.broken)
    }

    /// Work in a context begins; false: it is on its way out, or gone.
    pub(crate) fn enter(&mut self, carrier: Carrier) -> bool {
        match self.contexts.get_mut(&carrier.handle) {
            Some(context) if context.id == carrier.id && !context.leaving => {
                context.users += 1;
                true
            }
            _ => false,
        }
    }

    /// True: nobody works in it any more, and somebody may wait for that.
    pub(crate) fn leave(&mut self, carrier: Carrier) -> bool {
        match self.contexts.get_mut(&carrier.handle) {
            Some(context) if context.id == carrier.id => {
                context.users -= 1;
                context.users == 0
            }
            _ => false,
        }
    }

    /// The context is about to be destroyed: no new work in it.
    pub(crate) fn retire(&mut self, handle: usize) {
        if let Some(context) = self.contexts.get_mut(&handle) {
            context.leaving = true;
        }
    }

    pub(crate) fn is_busy(&self, handle: usize) -> bool {
        self.contexts.get(&handle).is_some_and(|context| context.users > 0)
    }

    /// Whether the work under way should come to its end.
    pub(crate) fn is_leaving(&self, carrier: Carrier) -> bool {
        match self.contexts.get(&carrier.handle) {
            Some(context) => context.id != carrier.id || !context.is_usable(),
            None => true,
        }
    }

    pub(crate) fn is_worked_in(&self) -> bool {
        self.contexts.values().any(|context| context.users > 0)
    }

    /// It was not destroyed after all.
    pub(crate) fn restore(&mut self, handle: usize) {
        if let Some(context) = self.contexts.get_mut(&handle) {
            context.leaving = false;
        }
    }

    /// It is gone.
    pub(crate) fn remove(&mut self, handle: usize) -> Option<u64> {
        self.contexts.remove(&handle).map(|context| context.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_on_its_way_out_takes_no_new_work_but_ends_its_own() {
        let mut contexts = Contexts::new();
        let id = contexts.note(0x10, 0);
        let carrier = contexts.carrier(0).unwrap();
        assert_eq!(carrier, Carrier { handle: 0x10, id });
        assert!(contexts.enter(carrier));
        contexts.retire(0x10);
        assert!(contexts.carrier(0).is_none());
        assert!(!contexts.enter(carrier));
        assert!(contexts.is_leaving(carrier) && contexts.is_worked_in());
        assert!(contexts.is_busy(0x10));
        assert!(contexts.leave(carrier));
        assert!(!contexts.is_busy(0x10));
        contexts.restore(0x10);
        assert!(contexts.enter(carrier));
    }

    #[test]
    fn a_broken_context_is_not_worked_in_while_there_is_another() {
        let mut contexts = Contexts::new();
        assert!(!contexts.is_bereft(0));
        let first = Carrier { handle: 0x10, id: contexts.note(0x10, 0) };
        let second = Carrier { handle: 0x20, id: contexts.note(0x20, 0) };
        contexts.doubt(first);
        assert_eq!(contexts.carrier(0), Some(second), "something has failed in the first");
        contexts.doubt(second);
        assert_eq!(contexts.carrier(0), Some(first), "and in the second");
        assert!(contexts.break_down(first) && !contexts.break_down(first));
        assert!(contexts.is_leaving(first) && !contexts.is_leaving(second));
        assert_eq!(contexts.carrier(0), Some(second));
        assert!(!contexts.is_bereft(0));
        contexts.break_down(second);
        assert_eq!(contexts.carrier(0), None);
        assert!(contexts.is_bereft(0) && !contexts.is_bereft(1));
        contexts.remove(0x20);
        contexts.note(0x20, 0);
        assert!(!contexts.is_bereft(0), "another context under the same handle");
    }

    #[test]
    fn a_handle_used_again_is_another_context() {
        let mut contexts = Contexts::new();
        let old = Carrier { handle: 0x10, id: contexts.note(0x10, 0) };
        assert_eq!(contexts.note(0x10, 0), old.id);
        assert_eq!(contexts.remove(0x10), Some(old.id));
        assert_ne!(contexts.note(0x10, 1), old.id);
        assert!(!contexts.enter(old));
        assert!(contexts.carrier(0).is_none());
    }
}

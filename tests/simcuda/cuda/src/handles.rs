//! Handles that programs hold: numbers that say what they name and cannot be
//! mistaken for a later object's, so that a stale or foreign one is noticed.

use std::marker::PhantomData;

/// What a handle names; part of its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Tag {
    Context = 1,
    Stream,
    Event,
    Module,
    Function,
    Library,
    Kernel,
    Physical,
    Pool,
    Op,
    Graph,
    Node,
    Executable,
    Capture,
    Link,
    Array,
    Mipmap,
    Multicast,
    Texture,
    External,
}

/// A handle to a `T`.
pub(crate) struct Handle<T>(u64, PhantomData<fn() -> T>);

impl<T> Handle<T> {
    /// As a program passes it in: anything at all.
    pub(crate) fn from_bits(bits: u64) -> Handle<T> {
        Handle(bits, PhantomData)
    }

    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    fn index(self) -> usize {
        ((self.0 >> 4) & 0xff_ffff) as usize
    }
}

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Handle<T> {}
impl<T> PartialEq for Handle<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<T> Eq for Handle<T> {}
impl<T> PartialOrd for Handle<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Handle<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}
impl<T> std::hash::Hash for Handle<T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}
impl<T> std::fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Objects of one kind, by handle.
pub(crate) struct Slab<T> {
    tag: Tag,
    slots: Vec<(u64, Option<T>)>,
    free: Vec<usize>,
}

impl<T> Slab<T> {
    pub(crate) fn new(tag: Tag) -> Slab<T> {
        Slab { tag, slots: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn insert(&mut self, object: T) -> Handle<T> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() - 1
        });
        // tag | 20 bits of how often the slot was used | index | 4 zero bits
        let slot = &mut self.slots[index];
        let turn = ((slot.0 >> 28 & 0xf_ffff) + 1) & 0xf_ffff;
        let bits = (self.tag as u64) << 48 | turn << 28 | (index as u64) << 4;
        *slot = (bits, Some(object));
        Handle::from_bits(bits)
    }

    pub(crate) fn get(&self, handle: Handle<T>) -> Option<&T> {
        let (bits, object) = self.slots.get(handle.index())?;
        if *bits == handle.bits() { object.as_ref() } else { None }
    }

    pub(crate) fn get_mut(&mut self, handle: Handle<T>) -> Option<&mut T> {
        let (bits, object) = self.slots.get_mut(handle.index())?;
        if *bits == handle.bits() { object.as_mut() } else { None }
    }

    pub(crate) fn remove(&mut self, handle: Handle<T>) -> Option<T> {
        let (bits, object) = self.slots.get_mut(handle.index())?;
        if *bits != handle.bits() {
            return None;
        }
        let object = object.take()?;
        self.free.push(handle.index());
        Some(object)
    }

    /// Takes away what is not to be kept.
    pub(crate) fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        for (index, (_, object)) in self.slots.iter_mut().enumerate() {
            if object.as_ref().is_some_and(|object| !keep(object)) {
                *object = None;
                self.free.push(index);
            }
        }
    }

    pub(crate) fn contains(&self, handle: Handle<T>) -> bool {
        self.get(handle).is_some()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Handle<T>, &T)> {
        self.slots
            .iter()
            .filter_map(|(bits, object)| Some((Handle::from_bits(*bits), object.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_handle_names_nothing() {
        let mut slab = Slab::new(Tag::Event);
        let first = slab.insert('a');
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('b');
        assert_eq!(first.index(), second.index());
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&'b'));
        assert_eq!(slab.get(Handle::from_bits(0xdead_beef)), None);
    }
}

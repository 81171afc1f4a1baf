//! A list that is short nearly always: then it is kept in place, and to look at it touches no other memory.

use std::ops::Deref;

use smallvec::SmallVec;

use crate::ids::{ClientId, Gpu};

/// What a decision notes down while it is made: no memory is asked for as long as there is no more of it than a node has GPUs.
pub(crate) type Notes<T> = SmallVec<[T; 8]>;

/// GPUs in an order.
pub(crate) type GpuList = Few<Gpu, 3>;

/// What stands in places that are not used.
pub(crate) trait Blank {
    /// Any value.
    const BLANK: Self;
}

impl Blank for Gpu {
    const BLANK: Gpu = Gpu(0);
}

impl Blank for ClientId {
    const BLANK: ClientId = ClientId(0);
}

/// Values in an order, of which `N` are kept in place.
#[derive(Clone, Debug)]
pub(crate) enum Few<T, const N: usize> {
    /// Here, the first `len` of them.
    Here { len: u8, items: [T; N] },
    /// Elsewhere. (A box, as a vector of its own would make the short list longer.)
    #[allow(clippy::box_collection)]
    There(Box<Vec<T>>),
}

impl<T: Copy + Blank, const N: usize> Few<T, N> {
    pub(crate) fn push(&mut self, item: T) {
        match self {
            Few::Here { len, items } => match items.get_mut(usize::from(*len)) {
                Some(place) => {
                    *place = item;
                    *len += 1;
                }
                None => {
                    let mut all = items.to_vec();
                    all.push(item);
                    *self = Few::There(Box::new(all));
                }
            },
            Few::There(items) => items.push(item),
        }
    }

    /// Takes a value out, wherever it is.
    pub(crate) fn remove(&mut self, item: &T)
    where
        T: PartialEq,
    {
        match self {
            Few::Here { len, items } => {
                let known = &mut items[..usize::from(*len)];
                if let Some(at) = known.iter().position(|other| other == item) {
                    known.copy_within(at + 1.., at);
                    *len -= 1;
                }
            }
            Few::There(items) => items.retain(|other| other != item),
        }
        if self.is_empty() {
            *self = Few::default(); // back in place
        }
    }
}

impl<T: Copy + Blank, const N: usize> Default for Few<T, N> {
    fn default() -> Self {
        Few::Here { len: 0, items: [T::BLANK; N] }
    }
}

impl<T: Copy + Blank, const N: usize> From<&[T]> for Few<T, N> {
    fn from(list: &[T]) -> Self {
        let mut items = [T::BLANK; N];
        match items.get_mut(..list.len()) {
            Some(here) => {
                here.copy_from_slice(list);
                Few::Here { len: list.len() as u8, items }
            }
            None => Few::There(Box::new(list.to_vec())),
        }
    }
}

impl<T, const N: usize> Deref for Few<T, N> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Few::Here { len, items } => &items[..usize::from(*len)],
            Few::There(items) => items,
        }
    }
}

impl<'a, T, const N: usize> IntoIterator for &'a Few<T, N> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Blank for u32 {
        const BLANK: u32 = 0;
    }

    proptest! {
        #[test]
        fn it_is_a_list(steps in proptest::collection::vec((any::<bool>(), 0u32..6), 0..40)) {
            let (mut few, mut list) = (Few::<u32, 2>::default(), Vec::new());
            for (pushes, item) in steps {
                match pushes {
                    true if !list.contains(&item) => {
                        few.push(item);
                        list.push(item);
                    }
                    true => {}
                    false => {
                        few.remove(&item);
                        list.retain(|other| *other != item);
                    }
                }
                prop_assert_eq!(&*few, &list[..]);
                prop_assert!((&few).into_iter().eq(&list));
                prop_assert_eq!(&*Few::<u32, 2>::from(&list[..]), &list[..]);
            }
        }
    }
}

//! A list of GPUs in an order of its own. Most clients have few: then it is kept in place.

use std::ops::Deref;

use crate::ids::Gpu;

/// So many are kept in place.
const FEW: usize = 5;

/// GPUs in an order.
#[derive(Clone, Debug)]
pub(crate) enum GpuList {
    /// Here, the first `len` of them.
    Here { len: u8, gpus: [Gpu; FEW] },
    /// Elsewhere.
    There(Box<[Gpu]>),
}

impl Default for GpuList {
    fn default() -> Self {
        GpuList::Here { len: 0, gpus: [Gpu(0); FEW] }
    }
}

impl From<&[Gpu]> for GpuList {
    fn from(list: &[Gpu]) -> Self {
        let mut gpus = [Gpu(0); FEW];
        match gpus.get_mut(..list.len()) {
            Some(here) => {
                here.copy_from_slice(list);
                GpuList::Here { len: list.len() as u8, gpus }
            }
            None => GpuList::There(list.into()),
        }
    }
}

impl Deref for GpuList {
    type Target = [Gpu];

    fn deref(&self) -> &[Gpu] {
        match self {
            GpuList::Here { len, gpus } => &gpus[..usize::from(*len)],
            GpuList::There(gpus) => gpus,
        }
    }
}

impl<'a> IntoIterator for &'a GpuList {
    type Item = &'a Gpu;
    type IntoIter = std::slice::Iter<'a, Gpu>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_list_that_it_was_made_of() {
        for count in 0..12 {
            let gpus: Vec<Gpu> = (0..count).rev().map(Gpu).collect();
            let list = GpuList::from(&gpus[..]);
            assert_eq!(*list, gpus[..]);
            assert!((&list).into_iter().eq(&gpus));
        }
        assert!(GpuList::default().is_empty());
    }
}

//! What contexts take of a GPU: asked for before one is made, and set right when it is there.
//!
//! Owns: which contexts are counted, with how many bytes. Does not own: the account (`memory`), or measuring, which is the
//! assigner's: it has NVML open.
//!
//! No call of the driver tells beforehand what a context will take. So as much is asked for as was measured with earlier programs, or
//! as the cluster file says. Right after the first context of a process on a GPU has been made, NVML's bytes of the process
//! are those of the context.

use super::{Books, LEDGER, Ledger, Portion, size};
use crate::log::{info, warning};
use crate::pager::PAGER;
use acb_wire::v1::RoomKind;

impl Ledger {
    /// Room for a context; false: there is none, and the reason has been told.
    pub(crate) fn reserve_context(&self, call: &str, device: i32) -> bool {
        let bytes = self.books().context();
        match self.ask(device as u32, bytes, RoomKind::Context, Portion::Exact) {
            Ok(()) => true,
            Err(reason) => {
                warning!(
                    "{call}: {} for a context on GPU {device} refused, CUDA_ERROR_OUT_OF_MEMORY is returned: {reason}",
                    size(bytes)
                );
                false
            }
        }
    }

    pub(crate) fn return_context(&self, device: i32) {
        let mut books = self.books();
        let bytes = books.context();
        self.give_back(&mut books, device as u32, bytes, Portion::Exact);
    }

    pub(crate) fn context_made(&self, context: usize, device: i32) {
        let mut books = self.books();
        let bytes = books.context();
        books.contexts.insert(context, (device as u32, bytes));
    }

    /// False: it is in the books already.
    pub(crate) fn primary_made(&self, context: usize, device: i32) -> bool {
        let mut books = self.books();
        books.primaries.insert(device as u32, context);
        let bytes = books.context();
        let new = !books.contexts.contains_key(&context);
        books.contexts.entry(context).or_insert((device as u32, bytes));
        new
    }

    pub(crate) fn primary(&self, device: i32) -> Option<usize> {
        self.books().primaries.get(&(device as u32)).copied()
    }

    /// All contexts that are counted, with their devices.
    pub(crate) fn contexts(&self) -> Vec<(usize, i32)> {
        self.books()
            .contexts
            .iter()
            .map(|(context, (device, _))| (*context, *device as i32))
            .collect()
    }

    /// A context is destroyed, and all memory that was allocated in it.
    pub(crate) fn context_gone(&self, context: usize) {
        let mut books = self.books();
        books.primaries.retain(|_, primary| *primary != context);
        let mut returns = Vec::new();
        if let Some((device, bytes)) = books.contexts.remove(&context) {
            returns.push((device, bytes, Portion::Exact));
            self.driver_gone(&mut books, device);
        }
        books.holdings.retain(|_, holding| {
            let goes = holding.context == context;
            if goes {
                returns.push((holding.device, holding.bytes, holding.portion));
            }
            !goes
        });
        for (device, bytes, portion) in returns {
            self.give_back(&mut books, device, bytes, portion);
        }
    }

    /// The context that has just been made is counted with what it takes in truth, where that can be told.
    pub(crate) fn measure_context(&self, context: usize, device: i32) {
        let device = device as u32;
        if PAGER.used(device) > 0 {
            return; // NVML would count that too
        }
        let Some((counted, measured)) = self.ask_size(context, device) else { return };
        let mut books = self.books();
        let bytes = measured + books.overhead;
        books.context_bytes = measured;
        let Some((_, entry)) = books.contexts.get_mut(&context) else { return };
        info!("a context takes {} of GPU {device}; {} were set aside", size(bytes), size(counted));
        if bytes <= counted {
            *entry = bytes;
            return self.give_back(&mut books, device, counted - bytes, Portion::Exact);
        }
        drop(books);
        match LEDGER.ask(device, bytes - counted, RoomKind::Taken, Portion::Exact) {
            Ok(()) => match self.books().contexts.get_mut(&context) {
                Some((_, entry)) => *entry = bytes,
                // It was destroyed meanwhile.
                None => {
                    self.give_back(&mut self.books(), device, bytes - counted, Portion::Exact);
                }
            },
            Err(reason) => warning!(
                "a context takes {} of GPU {device}, more than the {} that were set aside, and there is no room for the rest: {reason}",
                size(bytes),
                size(counted)
            ),
        }
    }

    /// With what the context is counted, and what it takes without the pager's part. `None`: nobody can tell.
    fn ask_size(&self, context: usize, device: u32) -> Option<(u64, u64)> {
        let books = self.books();
        let counted = books.contexts.get(&context)?.1;
        let alone = books.devices.get(device as usize)?.used == counted;
        if !alone || counted == 0 {
            return None;
        }
        drop(books);
        let answer = self.ask_bytes(device, RoomKind::ContextSize)?;
        let alone = self.books().devices.get(device as usize)?.used == counted;
        alone.then_some((counted, answer))
    }
}

impl Books {
    /// What is asked for a context, with the pager's part.
    fn context(&self) -> u64 {
        if self.context_bytes == 0 { 0 } else { self.context_bytes + self.overhead }
    }
}

//! Code that comes to the GPU: with `load_waits`, a driver waits for what runs in its context first, and lets nobody in meanwhile.
//!
//! Owns: that wait, and the door. Does not own: modules (`loaded`), or the functions in them (`calls::launch`).

use std::cell::Cell;
use std::sync::{Condvar, Mutex, PoisonError};

use crate::driver::{Driver, Locked};
use crate::handles::Handle;
use crate::objects::Context;

/// Threads that are loading.
static LOADERS: Mutex<u32> = Mutex::new(0);
static OVER: Condvar = Condvar::new();

thread_local! {
    static IS_LOADER: Cell<bool> = const { Cell::new(false) };
}

/// Every call comes through here.
pub(crate) fn enter() {
    if IS_LOADER.get() {
        return;
    }
    let mut loaders = LOADERS.lock().unwrap_or_else(PoisonError::into_inner);
    while *loaders > 0 {
        loaders = OVER.wait(loaders).unwrap_or_else(PoisonError::into_inner);
    }
}

impl Driver {
    /// Waits until code can be loaded into a context.
    pub(crate) fn await_quiet<'a>(
        &'a self,
        tables: Locked<'a>,
        context: Handle<Context>,
    ) -> Locked<'a> {
        if !self.config.load_waits || tables.is_drained(context) {
            return tables;
        }
        let _loading = Loading::begin();
        self.wait(tables, |tables| tables.is_drained(context))
    }
}

struct Loading;

impl Loading {
    fn begin() -> Loading {
        *LOADERS.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        IS_LOADER.set(true);
        Loading
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        IS_LOADER.set(false);
        *LOADERS.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        OVER.notify_all();
    }
}

//! Memory that the driver takes for itself without any call that asks for it: code of functions that are loaded when they are first
//! launched, executable graphs.
//!
//! Does not own: what programs ask for (`physical`), or what a context takes (`calls::context`).

use crate::code::{OUT_OF_MEMORY, Outcome};
use crate::driver;

/// Such memory; given back when it is dropped.
pub(crate) struct Unasked {
    gpu: usize,
    bytes: u64,
}

impl Unasked {
    /// Takes `bytes` of GPU `gpu` (an index into all GPUs).
    pub(crate) fn take(gpu: usize, bytes: u64) -> Outcome<Unasked> {
        let driver = driver::get()?;
        if bytes > 0 {
            driver.state.take(driver.charge, gpu, bytes).map_err(|_| OUT_OF_MEMORY)?;
        }
        Ok(Unasked { gpu, bytes })
    }
}

impl Drop for Unasked {
    fn drop(&mut self) {
        if let (true, Ok(driver)) = (self.bytes > 0, driver::get()) {
            driver.state.give_back(driver.charge, self.gpu, self.bytes);
        }
    }
}

//! A little work on a GPU whose result is known: enough to tell that a driver works.
//!
//! Owns: that work. Does not own: loading the driver, which is what its callers differ in.

use crate::driver::{Driver, DriverError};
use crate::kernels;
use crate::reference;

/// Words of the sample: more than a block, no multiple of one.
const WORDS: usize = 1000;

/// Why the sample failed.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// A call failed.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The GPU computed something else.
    #[error("wrong data: the sum is {found:#x} instead of {right:#x}")]
    Data {
        /// What came back.
        found: u64,
        /// What is right.
        right: u64,
    },
}

/// Initialises the driver, fills memory on its first device, sums it there, and checks the sum.
pub fn run(driver: &Driver, seed: u64) -> Result<(), SampleError> {
    driver.init()?;
    let context = driver.retain_primary(0)?;
    let module = driver.load_kernels()?;
    let fill = driver.kernel(&module, kernels::FILL)?;
    let sum = driver.kernel(&module, kernels::SUM)?;
    let memory = driver.alloc((WORDS + 1) * 8)?;
    let result = memory + WORDS as u64 * 8;
    driver.copy_in(result, &[0])?;
    driver.launch(&fill, 3, 128, &[memory, WORDS as u64, seed])?;
    driver.launch(&sum, 3, 128, &[memory, WORDS as u64, result])?;
    let mut found = [0];
    driver.copy_out(&mut found, result)?;
    driver.free(memory)?;
    driver.release_primary(&context)?;

    let mut words = [0; WORDS];
    reference::fill(&mut words, seed);
    let right = reference::sum(&words);
    if found[0] == right { Ok(()) } else { Err(SampleError::Data { found: found[0], right }) }
}

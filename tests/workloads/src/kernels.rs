//! The kernels' PTX, and the names by which the driver finds them in it.
//!
//! Owns nothing but the text; what the kernels compute is in [`crate::reference`].

use std::ffi::{CStr, CString};

/// The module, as text.
pub const PTX: &str = include_str!("../kernels.ptx");

/// Does nothing.
pub const NOP: &CStr = c"acb_nop";
/// `(u64 ns)`: takes `ns`.
pub const SPIN: &CStr = c"acb_spin";
/// `(u64 *p, u64 n, u64 seed)`: see [`crate::reference::fill`].
pub const FILL: &CStr = c"acb_fill";
/// `(u64 *p, u64 n, u64 salt, u64 ns)`: see [`crate::reference::step`], then takes `ns` in all.
pub const STEP: &CStr = c"acb_step";
/// `(u64 *p, u64 n, u64 *out)`: see [`crate::reference::sum`].
pub const SUM: &CStr = c"acb_sum";
/// `(u64 *flag)`: runs until `*flag` is not 0.
pub const ENDLESS: &CStr = c"acb_endless";

/// The module as the driver takes it: text that ends with a zero byte.
pub fn image() -> CString {
    CString::new(PTX).expect("the PTX is a text file of this crate, without zero bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_an_entry() {
        for name in [NOP, SPIN, FILL, STEP, SUM, ENDLESS] {
            let entry = format!(".visible .entry {}(", name.to_str().unwrap());
            assert!(PTX.contains(&entry), "{entry}");
        }
    }

    #[test]
    fn ptx_is_ascii_for_the_assembler_takes_nothing_else() {
        assert!(PTX.is_ascii());
    }
}

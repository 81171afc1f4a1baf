//! What commands write to stdout.

use std::io::{Write, stdout};

/// Writes to stdout. A reader that has enough (`| head`) is no error.
pub fn print(text: &str) {
    let _ = stdout().write_all(text.as_bytes()).and_then(|()| stdout().flush());
}

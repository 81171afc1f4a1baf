//! A turn for others before every call of the driver's, so that a test can have memory moved between any two.
//!
//! Who is asked listens on a socket: a byte asks, a byte answers. Without a socket nobody is.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

static OTHERS: Mutex<Option<UnixStream>> = Mutex::new(None);

/// From now on, asks there.
pub(crate) fn ask_at(socket: &Path) -> std::io::Result<()> {
    *OTHERS.lock().unwrap_or_else(PoisonError::into_inner) = Some(UnixStream::connect(socket)?);
    Ok(())
}

/// Lets others have their turn.
pub(crate) fn offer() {
    let mut others = OTHERS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(stream) = others.as_mut() {
        let asked = stream.write_all(b"?").and_then(|()| stream.read_exact(&mut [0]));
        // Nobody is there any more.
        if asked.is_err() {
            *others = None;
        }
    }
}

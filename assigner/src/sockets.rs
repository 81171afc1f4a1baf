//! The sockets on which a daemon listens, and the folder they lie in.
//!
//! Owns making, locking and removing them. The supervisor holds them for all the lives of its
//! worker, so that a connection during a restart waits instead of failing.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::settings::{Folder, Role, Settings};

/// Everything that a daemon listens on.
#[derive(Debug)]
pub struct Sockets {
    /// Clients.
    pub client: UnixListener,
    /// gRPC on this node.
    pub tools: UnixListener,
    /// gRPC by TCP, for a user's own daemon.
    pub tcp: Option<TcpListener>,
    /// The executors of a job.
    pub cluster: Option<TcpListener>,
    folder: Folder,
    /// Keeps the folder locked.
    _lock: File,
}

/// Why a daemon cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    /// Another daemon has the folder.
    #[error("a GPU assigner is already running on the sockets in {}", .0.display())]
    InUse(PathBuf),
    /// The folder cannot be used.
    #[error("folder {} cannot be used for sockets: {source}; name another with --socket-dir, or for jobs with [paths] run_dir of the cluster file", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder is somebody else's.
    #[error("folder {} belongs to uid {owner}, not to uid {own}; give another with --socket-dir", path.display())]
    Owner {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who this is.
        own: u32,
    },
    /// A socket cannot be made.
    #[error("socket {} cannot be made: {source}", path.display())]
    Unix {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An address cannot be used.
    #[error("cannot listen on {address}: {source}; choose another place with --address and --port")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No candidate port is free.
    #[error("none of the controller's addresses is free ({first} to {last}): {source}")]
    Candidates {
        /// The first one.
        first: SocketAddr,
        /// The last one.
        last: SocketAddr,
        /// Why the last one failed.
        source: io::Error,
    },
}

impl Sockets {
    /// Makes the folder, if it is not there, and listens.
    pub fn open(settings: &Settings) -> Result<Sockets, SocketsError> {
        let folder = settings.folder.clone();
        let lock = lock(&folder.0)?;
        let tcp = settings.tcp.map(|address| {
            TcpListener::bind(address).map_err(|source| SocketsError::Tcp { address, source })
        });
        let tcp = tcp.transpose()?;
        let cluster = match &settings.role {
            Role::Controller { listen, .. } => first_free(listen)?,
            Role::Standalone | Role::Executor { .. } => None,
        };
        Ok(Sockets {
            client: listen(&folder.client_socket())?,
            tools: listen(&folder.tools_socket())?,
            tcp,
            cluster,
            folder,
            _lock: lock,
        })
    }

    /// Removes what others would take for a running daemon.
    pub fn remove(&self) {
        remove(&self.folder);
    }
}

/// Removes the sockets of a daemon and the file that says that it serves.
pub fn remove(folder: &Folder) {
    for path in [folder.ready(), folder.client_socket(), folder.tools_socket()] {
        let _ = fs::remove_file(path);
    }
}

fn lock(path: &Path) -> Result<File, SocketsError> {
    let failed = |source| SocketsError::Folder { path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let folder = File::open(path).map_err(failed)?;
    let owner = folder.metadata().map_err(failed)?.uid();
    let own = rustix::process::geteuid().as_raw();
    if owner != own && own != 0 {
        return Err(SocketsError::Owner { path: path.to_owned(), owner, own });
    }
    match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(SocketsError::InUse(path.to_owned())),
        // Network file systems lock no folders; the pid file and the port still tell.
        Ok(()) | Err(_) => Ok(folder),
    }
}

fn listen(path: &Path) -> Result<UnixListener, SocketsError> {
    let failed = |source| SocketsError::Unix { path: path.to_owned(), source };
    // The folder is locked: a socket that is there is left over.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

fn first_free(candidates: &[SocketAddr]) -> Result<Option<TcpListener>, SocketsError> {
    let (Some(&first), Some(&last)) = (candidates.first(), candidates.last()) else {
        return Ok(None);
    };
    let mut failure = None;
    for address in candidates {
        match TcpListener::bind(address) {
            Ok(listener) => return Ok(Some(listener)),
            Err(error) => failure = Some(error),
        }
    }
    let source = failure.expect("there is at least one candidate, and all have failed");
    Err(SocketsError::Candidates { first, last, source })
}

//! Asking a running daemon, from a tool.
//!
//! Owns how tools connect: by TCP to a user's own daemon, or through the tools' socket in a folder.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use acb_wire::v1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::generated::gpu_assigner_client::GpuAssignerClient;

/// How long a daemon may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Where a daemon is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// By TCP.
    Tcp(SocketAddr),
    /// Its tools' socket.
    Socket(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tcp(address) => write!(f, "{address}"),
            Target::Socket(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Why a daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// No daemon, or one of another user.
    #[error("{target} does not answer: {reason}")]
    NoAnswer {
        /// Where it was asked.
        target: Target,
        /// What happened.
        reason: String,
    },
    /// It answered with an error.
    #[error("{target} answers: {}", status.message())]
    Refused {
        /// Where it was asked.
        target: Target,
        /// What it said.
        status: Box<tonic::Status>,
    },
    /// This program cannot ask anybody.
    #[error("cannot start asking: {0}")]
    Runtime(#[from] io::Error),
}

/// A connection to a daemon.
pub struct Remote {
    target: Target,
    client: GpuAssignerClient<Channel>,
}

impl Remote {
    /// Connects.
    pub async fn connect(target: &Target) -> Result<Remote, RemoteError> {
        let failed = |reason: String| RemoteError::NoAnswer { target: target.clone(), reason };
        let connecting = async {
            match target {
                Target::Tcp(address) => {
                    Endpoint::from_shared(format!("http://{address}"))?
                        .tcp_nodelay(true)
                        .connect()
                        .await
                }
                Target::Socket(path) => {
                    let path = path.clone();
                    let connector = tower::service_fn(move |_: Uri| {
                        let path = path.clone();
                        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
                    });
                    Endpoint::from_static("http://tools.invalid")
                        .connect_with_connector(connector)
                        .await
                }
            }
        };
        let channel = timeout(LIMIT, connecting)
            .await
            .map_err(|_| failed("it does not accept the connection in time".to_owned()))?
            .map_err(|error| failed(root_cause(&error)))?;
        Ok(Remote { target: target.clone(), client: GpuAssignerClient::new(channel) })
    }

    /// What `status` shows.
    pub async fn status(&mut self) -> Result<v1::StatusReply, RemoteError> {
        let asked = self.client.status(v1::StatusRequest {});
        let answer = timeout(LIMIT, asked).await;
        self.answered(answer)
    }

    /// What clients of a step asked for and got.
    pub async fn history(&mut self, step: String) -> Result<v1::HistoryReply, RemoteError> {
        let asked = self.client.history(v1::HistoryRequest { step });
        let answer = timeout(LIMIT, asked).await;
        self.answered(answer)
    }

    /// The status, again after every change.
    pub async fn watch(
        &mut self,
        every: Duration,
    ) -> Result<Streaming<v1::StatusReply>, RemoteError> {
        let interval_ms = u32::try_from(every.as_millis()).unwrap_or(u32::MAX);
        let asked = self.client.watch(v1::WatchRequest { interval_ms });
        let answer = timeout(LIMIT, asked).await;
        self.answered(answer)
    }

    fn answered<T>(
        &self,
        answer: Result<Result<tonic::Response<T>, tonic::Status>, tokio::time::error::Elapsed>,
    ) -> Result<T, RemoteError> {
        let target = self.target.clone();
        match answer {
            Ok(Ok(response)) => Ok(response.into_inner()),
            // A connection that the daemon closes without a word: it serves another user.
            Ok(Err(status))
                if status.code() == tonic::Code::Unknown
                    || status.code() == tonic::Code::Unavailable =>
            {
                Err(RemoteError::NoAnswer { target, reason: status.message().to_owned() })
            }
            Ok(Err(status)) => Err(RemoteError::Refused { target, status: Box::new(status) }),
            Err(_) => Err(RemoteError::NoAnswer { target, reason: "no answer in time".to_owned() }),
        }
    }
}

fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Runs a question on a runtime of its own.
pub fn run<T>(question: impl Future<Output = Result<T, RemoteError>>) -> Result<T, RemoteError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(question)
}

/// Asks once for the status.
pub fn status(target: &Target) -> Result<v1::StatusReply, RemoteError> {
    run(async { Remote::connect(target).await?.status().await })
}

/// The tools' socket beside a client socket.
pub fn beside(client_socket: &Path) -> Target {
    Target::Socket(client_socket.with_file_name("tools.sock"))
}

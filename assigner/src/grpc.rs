//! gRPC for tools and manual-mode clients: `AllocRequest`, `Release`, `Status`, `Watch`, `History`.
//!
//! Owns who may connect: processes of the daemon's user, and root. Answers come from the broker.
//! On the tools' socket the kernel names the peer; on loopback `/proc/net/tcp` does ([`crate::peer`]).

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use acb_core::ClientId;
use acb_wire::v1;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::sleep;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::TcpConnectInfo;
use tonic::{Request, Response, Status};

use crate::broker::AllocError;
use crate::commands::{Command, ask};
use crate::controller;
use crate::generated::controller_server::ControllerServer;
use crate::generated::gpu_assigner_server::{GpuAssigner, GpuAssignerServer};
use crate::node::Node;
use crate::peer::{Origin, origin};
use crate::settings::Role;

/// Accepted connections that wait for the server.
const BACKLOG: usize = 16;
/// The shortest time between two messages of a `Watch`.
const MIN_WATCH: Duration = Duration::from_millis(20);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The service for tools and manual-mode clients.
#[derive(Clone)]
pub struct Service {
    node: Arc<Node>,
    broker: mpsc::Sender<Command>,
    /// ACB's `--gpu-assigner-max-workers`.
    requests: Arc<Semaphore>,
}

impl Service {
    /// A service in front of a broker.
    pub fn new(node: Arc<Node>, broker: mpsc::Sender<Command>) -> Service {
        let requests = Arc::new(Semaphore::new(node.settings.max_requests));
        Service { node, broker, requests }
    }
}

/// Serves tools on the Unix socket.
pub async fn serve_unix(service: Service, listener: std::os::unix::net::UnixListener) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("the tools' socket cannot be served: {error}"),
    };
    let (sender, incoming) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) if is_welcome(&stream) => {
                    if sender.send(Ok::<_, std::io::Error>(stream)).await.is_err() {
                        return;
                    }
                }
                Ok(_) => {
                    tracing::warn!("another user's connection to the tools' socket was refused")
                }
                Err(error) => {
                    tracing::warn!("a tool could not be accepted: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    let server = Server::builder()
        .add_service(GpuAssignerServer::new(service))
        .serve_with_incoming(ReceiverStream::new(incoming));
    if let Err(error) = server.await {
        tracing::error!("the tools' socket is not served any more: {error}");
    }
}

fn is_welcome(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

/// Serves tools by TCP, and the executors of ACB's `multinode.toml`, which come to the same port.
pub async fn serve_tcp(service: Service, node: Arc<Node>, listener: std::net::TcpListener) {
    let listener =
        match listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener)) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!("gRPC cannot be served: {error}"),
        };
    let others =
        matches!(&node.settings.role, Role::Controller { listen, .. } if listen.is_empty());
    if others {
        tracing::warn!(
            "multinode.toml knows no secret: anybody who reaches {} can see this assigner's status and report as an executor",
            node.settings.address()
        );
    }
    let (sender, incoming) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    if admit(&stream, peer, others)
                        && sender.send(Ok::<_, std::io::Error>(stream)).await.is_err()
                    {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!("a tool could not be accepted: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(controller::KEEPALIVE))
        .add_service(GpuAssignerServer::new(service));
    if others {
        server = server.add_service(ControllerServer::new(controller::Service::new(node)));
    }
    if let Err(error) = server.serve_with_incoming(ReceiverStream::new(incoming)).await {
        tracing::error!("gRPC is not served any more: {error}");
    }
}

fn admit(stream: &TcpStream, peer: SocketAddr, others: bool) -> bool {
    let Ok(local) = stream.local_addr() else { return false };
    let own = rustix::process::geteuid().as_raw();
    let _ = stream.set_nodelay(true);
    match origin(local, peer) {
        Origin::User(uid) if uid == own || uid == 0 => true,
        Origin::User(uid) => {
            tracing::warn!(
                "a connection of uid {uid} from {peer} was refused; this assigner serves uid {own}"
            );
            false
        }
        Origin::Elsewhere if others => true,
        Origin::Elsewhere => {
            tracing::warn!(
                "a connection from {peer} was refused: its user is not known on this node"
            );
            false
        }
    }
}

/// Leases are for processes of this node; a peer of another node may look.
fn demand_local<T>(request: &Request<T>) -> Result<(), Status> {
    let Some(info) = request.extensions().get::<TcpConnectInfo>() else { return Ok(()) };
    match (info.local_addr(), info.remote_addr()) {
        (Some(local), Some(peer)) if origin(local, peer) == Origin::Elsewhere => {
            Err(Status::permission_denied("ask the assigner of your own node; Status names it"))
        }
        _ => Ok(()),
    }
}

fn gone() -> Status {
    Status::unavailable("the assigner is ending or restarting; try again")
}

fn refused(error: AllocError) -> Status {
    let text = error.to_string();
    match error {
        AllocError::Device(_) | AllocError::Process(_) => Status::invalid_argument(text),
        AllocError::NoGpu | AllocError::Waits(_) | AllocError::Impossible(_) => {
            Status::failed_precondition(text)
        }
        AllocError::Unknown(_) | AllocError::NotHeld { .. } => Status::not_found(text),
        AllocError::Gone => Status::cancelled(text),
    }
}

/// Withdraws a request whose caller has gone away: tonic drops the call's future then.
struct Withdraw {
    broker: mpsc::Sender<Command>,
    client: Option<ClientId>,
}

impl Drop for Withdraw {
    fn drop(&mut self) {
        let Some(client) = self.client else { return };
        let broker = self.broker.clone();
        tokio::spawn(async move {
            let _ = broker.send(Command::Withdraw(client)).await;
        });
    }
}

#[tonic::async_trait]
impl GpuAssigner for Service {
    async fn alloc_request(
        &self,
        request: Request<v1::AllocRequestMessage>,
    ) -> Result<Response<v1::AllocReply>, Status> {
        demand_local(&request)?;
        let _turn = self.requests.acquire().await.map_err(|_| gone())?;
        let (named, name) = oneshot::channel();
        let (answer, mut wait) = oneshot::channel();
        let request = request.into_inner();
        let command = Command::Alloc { request, named, answer };
        self.broker.send(command).await.map_err(|_| gone())?;
        let mut withdraw = Withdraw { broker: self.broker.clone(), client: name.await.ok() };
        let allocated = (&mut wait).await;
        withdraw.client = None;
        let allocated = allocated.map_err(|_| gone())?.map_err(refused)?;
        let (client, epoch, gpus) = (allocated.client, allocated.epoch, allocated.gpus);
        Ok(Response::new(v1::AllocReply { client, epoch, gpus }))
    }

    async fn release(
        &self,
        request: Request<v1::ReleaseMessage>,
    ) -> Result<Response<v1::ReleaseReply>, Status> {
        demand_local(&request)?;
        let request = request.into_inner();
        let released = ask(&self.broker, |answer| Command::Release { request, answer }).await;
        released.ok_or_else(gone)?.map_err(refused)?;
        Ok(Response::new(v1::ReleaseReply {}))
    }

    async fn status(
        &self,
        _request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusReply>, Status> {
        self.node.all(&self.broker).await.map(Response::new).ok_or_else(gone)
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::StatusReply, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let interval =
            Duration::from_millis(request.into_inner().interval_ms.into()).max(MIN_WATCH);
        let (sender, receiver) = mpsc::channel(1);
        let service = self.clone();
        tokio::spawn(async move {
            let (mut own, mut others) = (service.node.changes(), service.node.others_changed());
            loop {
                own.mark_unchanged();
                others.mark_unchanged();
                let reply = service.node.all(&service.broker).await.ok_or_else(gone);
                if sender.send(reply).await.is_err() {
                    return;
                }
                sleep(interval).await;
                let changed = tokio::select! {
                    changed = own.changed() => changed,
                    changed = others.changed() => changed,
                    () = sender.closed() => return,
                };
                if changed.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn history(
        &self,
        request: Request<v1::HistoryRequest>,
    ) -> Result<Response<v1::HistoryReply>, Status> {
        demand_local(&request)?;
        let step = request.into_inner().step;
        let clients = ask(&self.broker, |answer| Command::History { step, answer }).await;
        Ok(Response::new(v1::HistoryReply { clients: clients.ok_or_else(gone)? }))
    }
}

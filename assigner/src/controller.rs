//! The controller's side between the nodes: executors join it and report.
//!
//! Owns the server that they connect to. An executor that loses its controller, or never finds it,
//! serves its own node all the same; only gangs that span nodes begin no new round then.

use std::net::TcpListener as StdListener;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use acb_wire::v1::{self, controller_order::Kind};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::gangs::wire;
use crate::generated::controller_server::{Controller, ControllerServer};
use crate::node::Node;
use crate::settings::Trust;
use crate::tls;

/// How often a silent connection between nodes is tried; a lost node is noticed after twice that.
pub const KEEPALIVE: Duration = Duration::from_secs(5);

/// Orders that may wait for the network.
const ORDERS: usize = 16;

/// The service for executors.
#[derive(Clone)]
pub struct Service {
    node: Arc<Node>,
    connections: Arc<AtomicU64>,
}

impl Service {
    /// A service that fills this node's directory.
    pub fn new(node: Arc<Node>) -> Service {
        Service { node, connections: Arc::default() }
    }
}

/// Serves executors on an address of their own.
pub async fn serve(node: Arc<Node>, listener: StdListener, trust: Trust) {
    if let Err(error) = try_serve(node, listener, &trust).await {
        tracing::error!("executors cannot be served: {error}; every node serves its own clients");
    }
}

async fn try_serve(
    node: Arc<Node>,
    listener: StdListener,
    trust: &Trust,
) -> Result<(), Box<dyn std::error::Error>> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    tracing::info!("executors are expected on {}", listener.local_addr()?);
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE));
    match trust {
        Trust::Key(key) => server = server.tls_config(tls::Identity::of(key)?.server())?,
        Trust::Nothing => tracing::warn!("executors are not authenticated"),
    }
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let service = ControllerServer::new(Service::new(node));
    server.add_service(service).serve_with_incoming(incoming).await?;
    Ok(())
}

#[tonic::async_trait]
impl Controller for Service {
    type JoinStream = Pin<Box<dyn Stream<Item = Result<v1::ControllerOrder, Status>> + Send>>;

    async fn join(
        &self,
        request: Request<Streaming<v1::ExecutorReport>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let connection = self.connections.fetch_add(1, Ordering::Relaxed);
        let mut reports = request.into_inner();
        let (orders, stream) = mpsc::channel(ORDERS);
        let controller = self.node.settings.node.clone();
        let joined = Kind::Joined(v1::Joined { controller });
        let _ = orders.send(Ok(v1::ControllerOrder { kind: Some(joined) })).await;
        let node = Arc::clone(&self.node);
        let (gang_orders, mut ordered) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(report)) = reports.next().await {
                if let Some(status) = report.status {
                    node.report(status, connection);
                }
                if let Some(said) = report.gangs {
                    let name = said.node.clone();
                    let said = wire::from_report(said);
                    node.gangs.report(name, connection, said, gang_orders.clone());
                }
            }
            node.disconnected(connection);
            node.gangs.disconnected(connection);
            // The stream of orders lasts as long as the reports: nobody else can send to it now.
        });
        tokio::spawn(async move {
            while let Some(order) = ordered.recv().await {
                let kind = Some(Kind::Gangs(wire::orders(order)));
                if orders.send(Ok(v1::ControllerOrder { kind })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

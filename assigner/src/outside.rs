//! The second thread of a worker: everything that may take its time.
//!
//! Owns that thread and which tasks run on it, by the daemon's settings.

use std::io;
use std::sync::Arc;

use acb_core::gang::Report;
use tokio::sync::mpsc;

use crate::commands::Command;
use crate::node::Node;
use crate::settings::Role;
use crate::sockets::Sockets;
use crate::{controller, executor, gangs, grpc, statistics};

/// Starts the thread.
pub fn spawn(
    node: Arc<Node>,
    sockets: &Sockets,
    broker: mpsc::Sender<Command>,
    gang_reports: mpsc::UnboundedReceiver<Report>,
) -> io::Result<()> {
    let tools = sockets.tools.try_clone()?;
    let tcp = sockets.tcp.as_ref().map(std::net::TcpListener::try_clone).transpose()?;
    let cluster = sockets.cluster.as_ref().map(std::net::TcpListener::try_clone).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("outside".to_owned()).spawn(move || {
        runtime.block_on(async {
            let service = grpc::Service::new(Arc::clone(&node), broker.clone());
            tokio::spawn(grpc::serve_unix(service.clone(), tools));
            if let Some(listener) = tcp {
                tokio::spawn(grpc::serve_tcp(service, Arc::clone(&node), listener));
            }
            match &node.settings.role {
                Role::Standalone => {}
                Role::Controller { trust, .. } => {
                    if let Some(calls) = node.take_calls() {
                        tokio::spawn(gangs::run(node.settings.nodes, calls));
                    }
                    let (hub, name) = (node.gangs.clone(), node.settings.node.clone());
                    tokio::spawn(gangs::serve_own(hub, name, broker.clone(), gang_reports));
                    if let Some(listener) = cluster {
                        let trust = trust.clone();
                        tokio::spawn(controller::serve(Arc::clone(&node), listener, trust));
                    }
                }
                Role::Executor { controller, trust } => {
                    let places = controller.clone();
                    let (node, trust) = (Arc::clone(&node), trust.clone());
                    let broker = broker.clone();
                    tokio::spawn(executor::report(node, broker, gang_reports, places, trust));
                }
            }
            statistics::keep(node, broker).await;
        });
    })?;
    Ok(())
}

//! The executor's side between the nodes: find the controller, report, begin again when it is lost.
//!
//! Owns the search among the places where the controller may listen. It never gives up: whoever
//! starts first waits for the other.

use std::sync::Arc;
use std::time::Duration;

use acb_core::gang::{Report, Session};
use acb_wire::v1::{self, controller_order::Kind};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::commands::Command;
use crate::controller::KEEPALIVE;
use crate::gangs::{self, GangNews, wire};
use crate::generated::controller_client::ControllerClient;
use crate::node::Node;
use crate::settings::{HostPort, Trust};
use crate::tls;

/// Longest time between two reports.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Shortest time between two reports.
const REPORT_AT_MOST_EVERY: Duration = Duration::from_millis(50);
/// The first pause after a failed round through the places; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long one place may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// Reports that may wait for the network.
const REPORTS: usize = 16;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Reports to the controller for ever.
pub async fn report(
    node: Arc<Node>,
    broker: mpsc::Sender<Command>,
    mut gang_reports: mpsc::UnboundedReceiver<Report>,
    places: Vec<HostPort>,
    trust: Trust,
) {
    let mut pause = FIRST_PAUSE;
    let mut is_first_round = true;
    loop {
        for place in &places {
            match session(&node, &broker, &mut gang_reports, place, &trust).await {
                Ok(()) => {
                    tracing::warn!("the controller at {place} is lost; looking for it");
                    pause = FIRST_PAUSE;
                    is_first_round = true;
                }
                Err(error) => tracing::debug!("no controller at {place}: {}", chain(&*error)),
            }
            node.set_controller(String::new());
        }
        if is_first_round {
            let tried: Vec<String> = places.iter().map(HostPort::to_string).collect();
            tracing::info!("no controller yet at {}; trying on", tried.join(", "));
            is_first_round = false;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// One connection: an error means that there was no controller, otherwise it was found and lost.
async fn session(
    node: &Node,
    broker: &mpsc::Sender<Command>,
    gang_reports: &mut mpsc::UnboundedReceiver<Report>,
    place: &HostPort,
    trust: &Trust,
) -> Result<(), Failure> {
    let channel = timeout(ANSWER_LIMIT, connect(place, trust)).await??;
    let (sender, reports) = mpsc::channel(REPORTS);
    let mut client = ControllerClient::new(channel);
    let orders = client.join(ReceiverStream::new(reports));
    let mut orders = timeout(ANSWER_LIMIT, orders).await??.into_inner();
    let first = timeout(ANSWER_LIMIT, orders.next()).await?.ok_or("the stream ended")??;
    let Some(Kind::Joined(joined)) = first.kind else {
        return Err("the answer is not Joined".into());
    };
    tracing::info!("joined the controller {} at {place}", joined.controller);
    node.set_controller(format!("{} at {place}", joined.controller));
    let session = gangs::new_session();
    if broker.send(Command::Gang(GangNews::Connected(session))).await.is_ok() {
        exchange(node, broker, session, gang_reports, &sender, &mut orders).await;
        let _ = broker.send(Command::Gang(GangNews::Disconnected)).await;
    }
    Ok(())
}

/// Reports and obeys until the connection is lost.
async fn exchange(
    node: &Node,
    broker: &mpsc::Sender<Command>,
    session: Session,
    gang_reports: &mut mpsc::UnboundedReceiver<Report>,
    sender: &mpsc::Sender<v1::ExecutorReport>,
    orders: &mut Streaming<v1::ControllerOrder>,
) {
    let mut changes = node.changes();
    let mut due = Instant::now();
    let mut earliest = due;
    loop {
        let report = tokio::select! {
            () = sleep_until(due) => {
                changes.mark_unchanged();
                let Some(status) = node.status(broker).await else { return };
                earliest = Instant::now() + REPORT_AT_MOST_EVERY;
                due = Instant::now() + REPORT_EVERY;
                v1::ExecutorReport { status: Some(status), gangs: None }
            }
            changed = changes.changed() => {
                if changed.is_err() {
                    return; // the broker is gone
                }
                due = due.min(earliest);
                continue;
            }
            said = gang_reports.recv() => match said {
                None => return,
                // What was said on an earlier connection is said again on this one.
                Some(said) if said.session != session => continue,
                Some(said) => {
                    let gangs = wire::report(&node.settings.node, said);
                    v1::ExecutorReport { status: None, gangs: Some(gangs) }
                }
            },
            order = orders.next() => match order {
                Some(Ok(v1::ControllerOrder { kind: Some(Kind::Gangs(order)) })) => {
                    let order = GangNews::Order(wire::from_orders(order));
                    if broker.send(Command::Gang(order)).await.is_err() {
                        return;
                    }
                    continue;
                }
                // Orders of a later version are passed over.
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => return,
            },
        };
        if sender.send(report).await.is_err() {
            return;
        }
    }
}

async fn connect(place: &HostPort, trust: &Trust) -> Result<Channel, Failure> {
    let scheme = match trust {
        Trust::Key(_) => "https",
        Trust::Nothing => "http",
    };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{place}"))?
        .connect_timeout(ANSWER_LIMIT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true);
    if let Trust::Key(key) = trust {
        endpoint = endpoint.tls_config(tls::Identity::of(key)?.client())?;
    }
    Ok(endpoint.connect().await?)
}

//! The assigner that a program is to join: the Slurm job's, or the user's own.
//!
//! Owns how it is found and how long it is waited for.

use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use acb_wire::v1;

use super::request::{Device, Request};
use crate::remote::{self, Target};
use crate::settings::host_name;

/// How long a program that needs a GPU waits for an assigner.
const WAIT_LIMIT: Duration = Duration::from_secs(60);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// An assigner that answers.
#[derive(Clone, Debug)]
pub struct Contact {
    /// Where it answered.
    pub target: Target,
    /// Its socket for clients.
    pub client_socket: PathBuf,
    /// Its socket for tools.
    pub tools: PathBuf,
    /// UUIDs of the GPUs that it hands out on this node.
    pub gpus: Vec<String>,
}

/// Why there is no assigner to join.
#[derive(Debug, thiserror::Error)]
pub enum ContactError {
    /// The address is no address.
    #[error("AGA_GPU_ALLOC_SERVER_ADDRESS is `{address}`, which is not known: {reason}")]
    Address {
        /// What was given.
        address: String,
        /// The resolver's words.
        reason: String,
    },
    /// Nobody answers.
    #[error(
        "no contact with a GPU assigner: {reason}; start one with `gpu_assigner start`, or set AGA_GPU_ALLOC_SERVER_ADDRESS and AGA_GPU_ALLOC_SERVER_PORT to where it is"
    )]
    NoAnswer {
        /// What happened.
        reason: String,
    },
    /// Nobody answers in a job.
    #[error(
        "no contact with the GPU assigner of this job: {reason}; it may have ended: see assigner.log beside the socket"
    )]
    NoAnswerInJob {
        /// What happened.
        reason: String,
    },
    /// The assigner is a controller that does not know this node.
    #[error(
        "the GPU assigner on {target} knows no node {node}; start an executor on this node: gpu_assigner --multinode start"
    )]
    OtherNode {
        /// Who answered.
        target: Target,
        /// This node.
        node: String,
    },
    /// A GPU is demanded.
    #[error(
        "the GPU assigner on {target} hands out no GPU on this node, but AGA_REQUEST_DEVICE demands one; set it to any or cpu to run without"
    )]
    NoGpu {
        /// Who answered.
        target: Target,
    },
}

impl Contact {
    /// Finds the assigner. A program that demands a GPU waits a while for one to be started.
    pub fn find(request: &Request) -> Result<Contact, ContactError> {
        let target = target(request)?;
        let until = Instant::now() + WAIT_LIMIT;
        let mut has_said = false;
        loop {
            match remote::status(&target) {
                Ok(reply) => return Contact::from(&target, &reply, request),
                Err(_) if request.device == Device::Gpu && Instant::now() < until => {
                    if !has_said {
                        let limit = WAIT_LIMIT.as_secs();
                        eprintln!("agarun: waiting up to {limit} s for a GPU assigner on {target}");
                        has_said = true;
                    }
                    std::thread::sleep(LOOK_EVERY);
                }
                Err(error) => {
                    let reason = error.to_string();
                    return Err(match request.job_socket {
                        Some(_) => ContactError::NoAnswerInJob { reason },
                        None => ContactError::NoAnswer { reason },
                    });
                }
            }
        }
    }

    fn from(
        target: &Target,
        reply: &v1::StatusReply,
        request: &Request,
    ) -> Result<Contact, ContactError> {
        let node = this_node(reply, request, &host_name())
            .ok_or_else(|| ContactError::OtherNode { target: target.clone(), node: host_name() })?;
        if node.gpus.is_empty() && request.device == Device::Gpu {
            return Err(ContactError::NoGpu { target: target.clone() });
        }
        let client_socket = PathBuf::from(&node.client_socket);
        Ok(Contact {
            target: target.clone(),
            tools: client_socket.with_file_name("tools.sock"),
            client_socket,
            gpus: node.gpus.iter().map(|gpu| gpu.uuid.clone()).collect(),
        })
    }
}

/// A job's assigner is asked through its socket and is this node's; a user's controller may be elsewhere.
fn this_node<'a>(
    reply: &'a v1::StatusReply,
    request: &Request,
    host: &str,
) -> Option<&'a v1::NodeStatus> {
    let first = reply.nodes.first()?;
    if request.job_socket.is_some() || first.role == "standalone" {
        return Some(first);
    }
    let short = |name: &str| name.split('.').next().unwrap_or(name).to_owned();
    reply.nodes.iter().find(|node| short(&node.node) == short(host))
}

fn target(request: &Request) -> Result<Target, ContactError> {
    if let Some(socket) = &request.job_socket {
        return Ok(remote::beside(socket));
    }
    let wrong = |reason: String| ContactError::Address { address: request.address.clone(), reason };
    let place = (request.address.as_str(), request.port);
    let mut found = place.to_socket_addrs().map_err(|error| wrong(error.to_string()))?;
    found.next().map(Target::Tcp).ok_or_else(|| wrong("the resolver gives no address".to_owned()))
}

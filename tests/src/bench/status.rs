//! What an assigner says about its GPUs and clients: `gpu_assigner status --json`.
//!
//! Owns: reading the part of it that figures and tests look at. Fields that are missing count as 0.

use serde::Deserialize;

/// One assigner.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The process that serves.
    pub pid: u32,
    /// Times that it was restarted.
    pub restarts: u32,
    /// Socket of the clients.
    pub client_socket: String,
    /// Its GPUs.
    pub gpus: Vec<GpuStatus>,
    /// Its clients.
    pub clients: Vec<ClientStatus>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// A GPU.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct GpuStatus {
    /// As the driver names it.
    pub uuid: String,
    /// Bytes that it has.
    pub memory: u64,
    /// Bytes promised to clients.
    pub room: u64,
    /// Bytes of paged memory that clients have claimed.
    pub claimed: u64,
    /// Clients that hold it.
    pub holders: Vec<u64>,
    /// Leases so far.
    pub grants: u64,
    /// Time in which somebody held it.
    pub held_ns: u64,
    /// What switches took, as the clients said.
    pub switch_ns: u64,
    /// Bytes that are promised to nobody, for what drivers take unasked…
    pub headroom: u64,
    /// …and what of these is taken.
    pub headroom_taken: u64,
}

/// A client.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ClientStatus {
    /// Its number.
    pub client: u64,
    /// Its process.
    pub pid: u32,
    /// `idle`, `waiting`, `holding`, `recalled`, `waiting_for_room`.
    pub state: String,
    /// Paged memory that it has.
    pub claimed: u64,
    /// How much of that is on its GPUs.
    pub resident: u64,
    /// For each of its GPUs.
    pub memory: Vec<MemoryStatus>,
}

/// A client's memory on one GPU, as the client reports it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct MemoryStatus {
    /// What is never moved, by kind.
    pub fixed: Vec<FixedStatus>,
    /// Pinned host memory.
    pub arena: u64,
    /// Bytes copied to the host so far.
    pub paged_out: u64,
    /// Bytes copied from the host so far.
    pub paged_in: u64,
    /// Bytes that were moved to the host without a copy.
    pub clean: u64,
    /// Time that page-outs waited for the pinning of host memory.
    pub pin_in_switch_ns: u64,
    /// Chunks whose hash was that of the host's copy and whose content was not, as comparing found.
    pub lies: u64,
    /// Why nothing can be moved.
    pub pinned: String,
}

/// Memory of one kind that is never moved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct FixedStatus {
    /// `contexts`, `managed`, `arrays`, `graphs`, `modules`, `heaps`, `exported` and other ways of sharing, `plain`.
    pub kind: String,
    /// How much there is of it.
    pub bytes: u64,
}

impl Status {
    /// The first node of the document.
    ///
    /// # Errors
    /// It is another document.
    pub fn parse(document: &[u8]) -> serde_json::Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Document {
            nodes: Vec<Status>,
        }
        let document: Document = serde_json::from_slice(document)?;
        Ok(document.nodes.into_iter().next())
    }

    /// The client that is a process.
    pub fn client(&self, pid: u32) -> Option<&ClientStatus> {
        self.clients.iter().find(|client| client.pid == pid)
    }
}

impl ClientStatus {
    /// Its memory, over all its GPUs.
    pub fn memory(&self) -> MemoryStatus {
        let mut sum = MemoryStatus::default();
        for memory in &self.memory {
            sum.arena += memory.arena;
            sum.paged_out += memory.paged_out;
            sum.paged_in += memory.paged_in;
            sum.clean += memory.clean;
            sum.pin_in_switch_ns += memory.pin_in_switch_ns;
            sum.lies += memory.lies;
            sum.fixed.extend(memory.fixed.iter().cloned());
            if sum.pinned.is_empty() {
                sum.pinned.clone_from(&memory.pinned);
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_found_by_its_process_and_its_memory_adds_up() {
        let text = r#"{"nodes":[{"node":"n","pid":7,"clients":[{"client":3,"pid":41,"state":"idle","claimed":9,
            "memory":[{"device":0,"paged_out":5,"pinned":""},{"device":1,"paged_out":6,"pinned":"IPC"}]}],
            "gpus":[{"switch_ns":8,"new":1}]}]}"#;
        let status = Status::parse(text.as_bytes()).unwrap().unwrap();
        let client = status.client(41).unwrap();
        assert_eq!((client.claimed, client.memory().paged_out), (9, 11));
        assert_eq!(client.memory().pinned, "IPC");
        assert_eq!(status.gpus[0].switch_ns, 8);
        assert!(status.client(42).is_none());
    }
}

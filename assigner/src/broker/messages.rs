//! What a client says on its socket after Hello, and what it is told.

use std::time::{Duration, SystemTime};

use acb_core::{ClientId, Epoch, Event, Gpu, RoomVerdict};
use acb_wire::v1::{self, RefusedCode, assigner_message::Kind, client_message};

use super::{Broker, Port, Refused};

impl Broker {
    /// A message of a client. An error closes its connection.
    pub fn message(&mut self, client: ClientId, kind: client_message::Kind) -> Result<(), Refused> {
        match kind {
            client_message::Kind::Hello(_) => {
                return Err(Refused::new(
                    RefusedCode::Protocol,
                    "a second Hello on one connection",
                ));
            }
            client_message::Kind::Bind(_) => self.apply(Event::Bind { client }),
            client_message::Kind::Acquire(_) => {
                if let Some(member) = self.clients.get_mut(&client) {
                    member.first_request.get_or_insert_with(SystemTime::now);
                }
                self.apply(Event::Acquire { client, expected: None });
            }
            client_message::Kind::Release(release) => {
                self.count_busy(client, release.busy_ns);
                let (epoch, busy) = (Epoch(release.epoch), Duration::from_nanos(release.busy_ns));
                self.apply(Event::Release { client, epoch, busy: Some(busy) });
            }
            client_message::Kind::RoomRequest(request) => self.room_request(client, &request),
            client_message::Kind::RoomReturn(back) => {
                if let Some(gpu) = self.gpu_of(client, back.device) {
                    self.apply(Event::RoomReturn { client, gpu, bytes: back.bytes });
                }
            }
            // The scheduler's own counts are shown; the client's are for later use.
            client_message::Kind::Usage(_) => {}
            client_message::Kind::Evicted(_)
            | client_message::Kind::Ready(_)
            | client_message::Kind::MemoryReport(_) => {}
        }
        Ok(())
    }

    fn count_busy(&mut self, client: ClientId, busy_ns: u64) {
        let Some(member) = self.clients.get_mut(&client) else { return };
        for gpu in std::mem::take(&mut member.leased) {
            self.busy[gpu.0 as usize] += Duration::from_nanos(busy_ns);
        }
    }

    fn gpu_of(&self, client: ClientId, device: u32) -> Option<Gpu> {
        self.clients.get(&client)?.bound.get(device as usize).copied()
    }

    fn room_request(&mut self, client: ClientId, request: &v1::RoomRequest) {
        let seq = request.seq;
        if request.cancel {
            if let Some(member) = self.clients.get_mut(&client) {
                member.waiting_rooms.remove(&seq);
            }
            self.apply(Event::RoomCancel { client, seq });
            return;
        }
        let Some(gpu) = self.gpu_of(client, request.device) else {
            let reason = format!("device {} is none of the client's", request.device);
            self.tell_room_verdict(client, seq, v1::RoomVerdict::Denied, reason);
            return;
        };
        self.apply(Event::RoomRequest { client, seq, gpu, bytes: request.bytes });
    }

    fn tell(&self, client: ClientId, kind: Kind) {
        if let Some(Port::Socket(outbox)) = self.clients.get(&client).map(|member| &member.port) {
            outbox.send(kind);
        }
    }

    pub(super) fn tell_bound(&mut self, client: ClientId, gpus: Vec<Gpu>) {
        let bound = gpus.iter().map(|gpu| self.bound_gpu(*gpu)).collect();
        let Some(member) = self.clients.get_mut(&client) else { return };
        member.given.extend(&gpus);
        member.bound = gpus;
        // Before the client hears of it: from then on it may hold these GPUs.
        self.save();
        self.tell(client, Kind::Bound(v1::Bound { gpus: bound }));
    }

    pub(super) fn tell_granted(&mut self, client: ClientId, epoch: Epoch, gpus: Vec<Gpu>) {
        self.tell(client, Kind::Granted(v1::Granted { epoch: epoch.0 }));
        tracing::debug!("{client} granted {epoch}");
        let Some(member) = self.clients.get_mut(&client) else { return };
        member.first_grant.get_or_insert_with(SystemTime::now);
        member.given.extend(&gpus);
        member.leased = gpus;
        if matches!(member.port, Port::Manual(_)) {
            self.answer_alloc(client, epoch);
        }
    }

    pub(super) fn tell_wanted(&self, client: ClientId, epoch: Epoch) {
        self.tell(client, Kind::Wanted(v1::Wanted { epoch: epoch.0 }));
    }

    pub(super) fn tell_recall(&self, client: ClientId, epoch: Epoch) {
        tracing::debug!("{client} recalled, {epoch}");
        self.tell(client, Kind::Recall(v1::Recall { epoch: epoch.0 }));
    }

    pub(super) fn tell_room(&mut self, client: ClientId, seq: u64, verdict: RoomVerdict) {
        let (code, reason) = match verdict {
            RoomVerdict::Granted => (v1::RoomVerdict::Granted, String::new()),
            RoomVerdict::Denied(why) => (v1::RoomVerdict::Denied, why.to_string()),
            RoomVerdict::Waiting { missing, holders } => {
                (v1::RoomVerdict::Waiting, self.why_waiting(missing, &holders))
            }
        };
        if let Some(member) = self.clients.get_mut(&client) {
            match code {
                v1::RoomVerdict::Waiting => member.waiting_rooms.insert(seq),
                _ => member.waiting_rooms.remove(&seq),
            };
        }
        self.tell_room_verdict(client, seq, code, reason);
    }

    fn tell_room_verdict(
        &self,
        client: ClientId,
        seq: u64,
        verdict: v1::RoomVerdict,
        reason: String,
    ) {
        self.tell(client, Kind::RoomReply(v1::RoomReply { seq, verdict: verdict.into(), reason }));
    }

    fn why_waiting(&self, missing: u64, holders: &[(ClientId, u64)]) -> String {
        let shown = holders.iter().take(4).map(|(client, bytes)| {
            let who = self.clients.get(client).map_or_else(
                || client.to_string(),
                |member| format!("{} (pid {})", member.program, member.pid()),
            );
            format!("{who} has {}", size(*bytes))
        });
        let mut holders_text = shown.collect::<Vec<_>>().join(", ");
        if holders.len() > 4 {
            holders_text.push_str(&format!(" and {} more", holders.len() - 4));
        }
        format!(
            "{} of GPU memory are missing until others free theirs: {holders_text}",
            size(missing)
        )
    }
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..=1_048_575 => format!("{} KiB", bytes.div_ceil(1024)),
        1_048_576..=1_073_741_823 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

//! Device memory: what a client says of it, what it is told, and the words for people.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use acb_core::{
    ClientId, Epoch, Event, Gpu, Obstacle, Rest, Room, RoomDenied, RoomVerdict, Snapshot,
};
use acb_wire::v1::{self, RefusedCode, RoomKind, assigner_message::Kind};

use super::{Broker, Refused};
use crate::meter::Meter;

/// Programs that a message names at most.
const NAMED: usize = 4;

impl Broker {
    /// What a client may have on each GPU, as it says; refused where no context would fit.
    pub(super) fn memory_limit(&self, hello: &v1::Hello) -> Result<Option<u64>, Refused> {
        let limit = (hello.memory_limit != 0).then_some(hello.memory_limit);
        let context = self.settings.client.context;
        match limit {
            Some(limit) if limit <= context => Err(Refused::new(
                RefusedCode::Limit,
                format!(
                    "the memory limit of {} leaves nothing beside a CUDA context, which takes {}; \
                     ask for more with mem= (agarun --mem)",
                    size(limit),
                    size(context)
                ),
            )),
            limit => Ok(limit),
        }
    }

    pub(super) fn room_request(&mut self, client: ClientId, request: &v1::RoomRequest) {
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
        let bytes = request.bytes;
        self.apply(match request.kind() {
            RoomKind::Paged => Event::Claim { client, seq, gpu, bytes },
            RoomKind::Taken => Event::Grown { client, seq, gpu, bytes },
            _ => Event::RoomRequest { client, seq, gpu, bytes },
        });
    }

    /// What is to be asked about a client's process. `None`: nobody could tell.
    pub fn size_question(
        &self,
        client: ClientId,
        device: u32,
    ) -> Option<(Arc<Meter>, u32, String)> {
        let gpu = self.gpu_of(client, device)?;
        let pid = self.clients.get(&client)?.process?.pid;
        Some((Arc::clone(&self.meter), pid, self.gpus[gpu.0 as usize].uuid.clone()))
    }

    /// Whom to ask about which GPUs, to see who else is there.
    pub fn gpus_to_watch(&self) -> (Arc<Meter>, Vec<String>) {
        (Arc::clone(&self.meter), self.gpus.iter().map(|gpu| gpu.uuid.clone()).collect())
    }

    /// The answer; what a context takes is for clients to come, too.
    pub fn measured(&mut self, client: ClientId, request: &v1::RoomRequest, bytes: u64) {
        let seq = request.seq;
        if bytes > 0 && request.kind() == RoomKind::ContextSize {
            self.context = Some(self.context.map_or(bytes, |largest| largest.max(bytes)));
        }
        let verdict = v1::RoomVerdict::Granted.into();
        self.tell(
            client,
            Kind::RoomReply(v1::RoomReply { seq, verdict, bytes, ..v1::RoomReply::default() }),
        );
    }

    pub(super) fn room_return(&mut self, client: ClientId, back: &v1::RoomReturn) {
        let Some(gpu) = self.gpu_of(client, back.device) else { return };
        let (bytes, resident) = (back.bytes, back.resident);
        self.apply(match back.kind() {
            RoomKind::Paged => Event::ClaimReturn { client, gpu, bytes, resident },
            _ => Event::RoomReturn { client, gpu, bytes },
        });
    }

    pub(super) fn evicted(&mut self, client: ClientId, evicted: &v1::Evicted) {
        let Some(gpu) = self.gpu_of(client, evicted.device) else { return };
        let rest = if evicted.failed.is_empty() { Rest::Comes } else { Rest::Stays };
        if rest == Rest::Stays {
            let (who, why) = (self.who(client), super::members::sentence(&evicted.failed));
            let Some(member) = self.clients.get_mut(&client) else { return };
            let stays = member.stays.entry(gpu).or_default();
            if stays.0 != why {
                *stays = (why.clone(), BTreeSet::new());
                tracing::warn!("{who} cannot move its memory off {}: {why}", self.name_of(gpu));
            }
        } else if let Some(member) = self.clients.get_mut(&client) {
            member.stays.remove(&gpu);
        }
        self.apply(Event::Evicted { client, gpu, bytes: evicted.bytes, rest });
    }

    pub(super) fn short(&mut self, client: ClientId, short: &v1::Short) {
        let Some(gpu) = self.gpu_of(client, short.device) else { return };
        let who = self.who(client);
        if self.missing(gpu) == 0 {
            tracing::warn!(
                "{} has less free memory than it should, {} did not find {}: programs outside of slurm-acb, or the driver, hold it. \
                 Others make room; end programs that are none of the job's (nvidia-smi shows them)",
                self.name_of(gpu),
                who,
                size(short.bytes)
            );
        }
        self.apply(Event::Short { client, gpu, bytes: short.bytes });
    }

    fn missing(&self, gpu: Gpu) -> u64 {
        self.scheduler.as_ref().map_or(0, |scheduler| scheduler.missing(gpu))
    }

    /// The device behind a client's, if memory is missing there and nobody looks after it yet: whoever asks does from now on.
    pub fn look_after(
        &mut self,
        client: ClientId,
        device: u32,
    ) -> Option<(Arc<Meter>, Gpu, String)> {
        let gpu = self.gpu_of(client, device)?;
        let new = self.missing(gpu) > 0 && self.looked_after.insert(gpu);
        new.then(|| (Arc::clone(&self.meter), gpu, self.gpus[gpu.0 as usize].uuid.clone()))
    }

    /// So much of a GPU is in use in truth, as NVML says. False: nothing is missing there any more, and nobody looks after it.
    pub fn in_use(&mut self, gpu: Gpu, used: Option<u64>) -> bool {
        // Where nobody can tell it is found out anew.
        self.apply(Event::Used { gpu, bytes: used.unwrap_or(0) });
        let is_missing = self.missing(gpu) > 0;
        if !is_missing {
            self.looked_after.remove(&gpu);
        }
        is_missing
    }

    /// What status says of what drivers have taken of the headroom.
    pub(super) fn taken_notes(&self, snapshot: &Snapshot) -> impl Iterator<Item = String> {
        let taken = snapshot.gpus.iter().filter(|gpu| gpu.headroom_taken > 0);
        taken.map(|gpu| {
            format!(
                "{} of the {} of {} that are kept free are taken by the driver; others make room as soon as they can",
                size(gpu.headroom_taken),
                size(gpu.headroom),
                self.name_of(gpu.gpu)
            )
        })
    }

    /// The same of memory that nobody has who is known.
    pub(super) fn missing_notes(&self) -> impl Iterator<Item = String> {
        let gpus = (0..self.gpus.len() as u32).map(Gpu);
        let missing = gpus.map(|gpu| (gpu, self.missing(gpu))).filter(|(_, bytes)| *bytes > 0);
        missing.map(|(gpu, bytes)| {
            format!(
                "{} of {} are held by programs outside of slurm-acb, or by the driver: page-ins did not find them (nvidia-smi shows who)",
                size(bytes),
                self.name_of(gpu)
            )
        })
    }

    pub(super) fn ready(&mut self, client: ClientId, ready: &v1::Ready) {
        let switch = Duration::from_nanos(ready.switch_ns);
        tracing::debug!("{client} ready after {switch:?}, {} copied in", size(ready.bytes_in));
        self.apply(Event::Ready { client, epoch: Epoch(ready.epoch) });
    }

    pub(super) fn memory_report(&mut self, client: ClientId, report: v1::MemoryReport) {
        let Some(gpu) = self.gpu_of(client, report.device) else { return };
        let Some(member) = self.clients.get_mut(&client) else { return };
        let movable = report.pinned.is_empty();
        let before = member.memory.insert(report.device, report);
        if before.is_none_or(|before| before.pinned.is_empty()) != movable {
            self.apply(Event::Pinned { client, gpu, movable });
        }
        self.dirty = true;
    }

    /// Makes the ledger agree with what a client says that it has, after its connection was lost.
    pub(super) fn reconcile_room(&mut self, client: ClientId, gpu: Gpu, ours: Room, said: Room) {
        let fixed = ours.fixed.saturating_sub(said.fixed);
        if fixed > 0 {
            self.apply(Event::RoomReturn { client, gpu, bytes: fixed });
        }
        let bytes = ours.claimed.saturating_sub(said.claimed);
        let resident = ours.resident.saturating_sub(said.resident);
        if bytes > 0 || resident > 0 {
            self.apply(Event::ClaimReturn { client, gpu, bytes, resident });
        }
    }

    /// The memory that a client has as it ends, for people.
    pub(super) fn what_it_leaves(&self, client: ClientId) -> String {
        let (Some(member), Some(scheduler)) = (self.clients.get(&client), &self.scheduler) else {
            return String::new();
        };
        let told = member.bound.iter().filter_map(|gpu| {
            let Room { fixed, claimed, resident } = scheduler.room(client, *gpu);
            let out = match claimed.saturating_sub(resident) {
                0 => String::new(),
                out => format!(" ({} of its memory were moved out)", size(out)),
            };
            let name = self.name_of(*gpu);
            (fixed + claimed > 0).then(|| {
                format!("; its {} of {name} are free for others{out}", size(fixed + resident))
            })
        });
        told.collect()
    }

    fn device_of(&self, client: ClientId, gpu: Gpu) -> Option<u32> {
        let position = self.clients.get(&client)?.bound.iter().position(|other| *other == gpu)?;
        u32::try_from(position).ok()
    }

    pub(super) fn tell_evict(&self, client: ClientId, gpu: Gpu, bytes: u64) {
        tracing::debug!("{client} is to move {bytes} bytes off {gpu}");
        if let Some(device) = self.device_of(client, gpu) {
            self.tell(client, Kind::Evict(v1::Evict { device, bytes }));
        }
    }

    /// A client is going to hear of memory on a GPU: what is written down of it for a restart is no less than that.
    fn save_before(&mut self, client: ClientId, gpu: Gpu) {
        let Some(scheduler) = &self.scheduler else { return };
        let now = scheduler.room(client, gpu);
        if !self.written.get(&(client, gpu)).copied().unwrap_or_default().covers(now) {
            self.save();
        }
    }

    pub(super) fn tell_credit(&mut self, client: ClientId, gpu: Gpu, bytes: u64) {
        self.save_before(client, gpu);
        tracing::debug!("{client} is credited {bytes} bytes of {gpu}");
        if let Some(device) = self.device_of(client, gpu) {
            self.tell(client, Kind::Credit(v1::Credit { device, bytes }));
        }
    }

    pub(super) fn tell_withdraw(&self, client: ClientId, gpu: Gpu) {
        tracing::debug!("{client} is to give back its credit of {gpu}");
        if let Some(device) = self.device_of(client, gpu) {
            self.tell(client, Kind::Withdraw(v1::Withdraw { device }));
        }
    }

    pub(super) fn tell_stay(&self, client: ClientId, gpu: Gpu) {
        tracing::debug!("what {client} has on {gpu} may stay");
        if let Some(device) = self.device_of(client, gpu) {
            self.tell(client, Kind::Stay(v1::Stay { device }));
        }
    }

    pub(super) fn tell_arena(&self, client: ClientId, bytes: u64) {
        self.tell(client, Kind::Arena(v1::Arena { bytes }));
    }

    /// Once for each reason.
    pub(super) fn tell_blocked(&mut self, client: ClientId, gpu: Gpu, by: ClientId, bytes: u64) {
        let stays = self.clients.get_mut(&by).and_then(|member| member.stays.get_mut(&gpu));
        let why = match stays {
            Some((why, told)) => {
                if !told.insert(client) {
                    return;
                }
                Some(why.clone())
            }
            None => None,
        };
        let (who, gpu, bytes) = (self.who(by), self.name_of(gpu), size(bytes));
        let text = match why {
            Some(why) => format!("{who} is in the way on {gpu}: its {bytes} there stay, {why}"),
            None => format!(
                "{who} is in the way on {gpu}: it was asked to move {bytes} to the host and does not (is it \
                 stopped?); others are asked instead"
            ),
        };
        tracing::warn!("{} waits for memory: {text}", self.who(client));
        self.tell(client, Kind::Notice(v1::Notice { text }));
    }

    pub(super) fn tell_room(&mut self, client: ClientId, seq: u64, verdict: RoomVerdict) {
        let (code, reason) = match verdict {
            RoomVerdict::Granted => {
                let bound = self.clients.get(&client).map_or(Vec::new(), |it| it.bound.clone());
                for gpu in bound {
                    self.save_before(client, gpu);
                }
                (v1::RoomVerdict::Granted, String::new())
            }
            RoomVerdict::Denied(why) => {
                let reason = denial(&why);
                tracing::info!("{} gets no memory: {reason}", self.who(client));
                (v1::RoomVerdict::Denied, reason)
            }
            RoomVerdict::Waiting { missing, holders, obstacle } => {
                (v1::RoomVerdict::Waiting, self.why_waiting(missing, &holders, obstacle))
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
        self.tell(
            client,
            Kind::RoomReply(v1::RoomReply { seq, verdict: verdict.into(), reason, bytes: 0 }),
        );
    }

    fn why_waiting(&self, missing: u64, holders: &[(ClientId, u64)], obstacle: Obstacle) -> String {
        let shown = holders.iter().take(NAMED);
        let shown =
            shown.map(|(client, bytes)| format!("{} has {}", self.who(*client), size(*bytes)));
        let mut names = shown.collect::<Vec<_>>().join(", ");
        if holders.len() > NAMED {
            names.push_str(&format!(" and {} more", holders.len() - NAMED));
        }
        let until = match obstacle {
            Obstacle::Moving => "until others' memory is moved to the host",
            Obstacle::Lease => "until those who compute on the GPU now give it back",
            Obstacle::Claims => {
                return format!(
                    "the other programs' own memory needs all of the GPU at their turn, until they \
                     free some (a limit, mem=, would leave room): {names}"
                );
            }
            Obstacle::Fixed => "until others free theirs, which cannot be moved",
            Obstacle::Restart => "until the programs from before the assigner's restart are back",
        };
        format!("{} of GPU memory are missing {until}: {names}", size(missing))
    }

    /// A client for people.
    pub(super) fn who(&self, client: ClientId) -> String {
        self.clients.get(&client).map_or_else(
            || client.to_string(),
            |member| format!("{} (pid {})", member.program, member.pid()),
        )
    }

    fn name_of(&self, gpu: Gpu) -> String {
        format!("GPU {}", self.gpu(gpu).index)
    }
}

/// Why there is no memory, for people.
fn denial(why: &RoomDenied) -> String {
    match *why {
        RoomDenied::ExceedsLimit { total, limit } => format!(
            "the program may have {} of each GPU and would have {}; raise its limit with mem= \
             (agarun --mem)",
            size(limit),
            size(total)
        ),
        RoomDenied::ExceedsGpu { total, capacity } => {
            format!(
                "the program would have {}, and programs can have {} of the GPU (headroom in [memory] of the cluster file is kept \
                 free for the driver)",
                size(total),
                size(capacity)
            )
        }
        RoomDenied::OthersFixed { total, capacity, others } => format!(
            "the program would have {}, and of the GPU's {} other programs have {} that cannot be \
             moved (contexts and the like; see gpu_assigner status)",
            size(total),
            size(capacity),
            size(others)
        ),
        RoomDenied::HostBudget { budget, used, needed } => format!(
            "the budget of host memory for what leaves the GPUs is {}, {} of it are spoken for, and \
             this would make {}; ask for more memory with the job (--mem), or raise host_share or \
             host_budget in [memory] of the cluster file",
            size(budget),
            size(used),
            size(needed)
        ),
        ref other => other.to_string(),
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

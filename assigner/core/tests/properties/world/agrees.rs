//! Whether the scheduler and the world say the same of clients and GPUs.

use super::*;

impl World {
    /// What the scheduler says of its clients is what they think of themselves.
    pub(super) fn compare(&self) {
        let snapshot = self.scheduler.snapshot();
        let present = self.clients.iter().filter(|client| client.present && !client.away).count();
        assert_eq!(snapshot.clients.len(), present);
        let mut room: BTreeMap<Gpu, u64> = BTreeMap::new();
        for theirs in &snapshot.clients {
            let ours = &self.clients[self.slot(theirs.client)];
            let lease = ours.lease.as_ref();
            assert_eq!(theirs.epoch, lease.map(|lease| lease.epoch));
            assert_eq!(theirs.position.is_some(), ours.waiting);
            assert_eq!(theirs.bound, !ours.bound.is_empty());
            for (gpu, bytes) in &theirs.room {
                assert_eq!(bytes.fixed, ours.room.get(gpu).copied().unwrap_or(0));
                *room.entry(*gpu).or_insert(0) += bytes.fixed;
            }
        }
        self.compare_memory(&snapshot);
        for gpu in &snapshot.gpus {
            assert!(gpu.room <= gpu.memory, "no room is promised twice");
            // Whoever's turn it is has all of its memory also where others cannot move theirs, or have not said what they have.
            let stays = self.clients.iter().any(|client| client.stays_on(gpu.gpu));
            let kept = if self.grew || stays { 0 } else { gpu.headroom };
            assert!(gpu.room <= gpu.memory - kept, "the headroom is for drivers");
            assert!(gpu.room >= room.get(&gpu.gpu).copied().unwrap_or(0));
        }
        // In truth, too, whoever has lost its assigner.
        let mut here: BTreeMap<Gpu, u64> = BTreeMap::new();
        for client in self.clients.iter().filter(|client| client.present) {
            for (gpu, bytes) in &client.room {
                *here.entry(*gpu).or_insert(0) += bytes;
            }
            for (gpu, paged) in &client.memory.gpus {
                *here.entry(*gpu).or_insert(0) += paged.resident;
            }
        }
        for gpu in &snapshot.gpus {
            let here = here.get(&gpu.gpu).copied().unwrap_or(0);
            let outside = self.outside.get(&gpu.gpu).copied().unwrap_or(0);
            assert!(here + outside <= gpu.memory, "{here} bytes, {outside} are on {}", gpu.gpu);
        }
        for kept in &snapshot.reservations {
            assert!(kept.bypassed <= self.setup.max_bypass, "nobody is passed too often");
        }
    }
}

/// Of a lease that begins.
pub(super) fn check_gpus(client: &Client, gpus: &[Gpu]) {
    let distinct: BTreeSet<&Gpu> = gpus.iter().collect();
    assert_eq!(distinct.len(), gpus.len(), "each GPU once");
    assert_eq!(gpus.len(), client.who.gpus as usize, "all or none");
    if let Some(eligible) = &client.who.eligible {
        assert!(gpus.iter().all(|gpu| eligible.contains(gpu)), "only eligible GPUs");
    }
}

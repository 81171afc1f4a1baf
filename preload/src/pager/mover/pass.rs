//! One pass of the hash kernel over the chunks that may have changed: batch by batch, so that what the first ones show is acted upon
//! while the kernel is at the next.
//!
//! Owns: launches, and the events of batches. Does not own: the kernel (`hashing`), or what follows from a hash (`table`).

use super::Station;
use crate::pager::PAGER;
use crate::pager::device;
use crate::pager::hashing::Hasher;
use crate::pager::table::{ChunkId, State};
use std::collections::VecDeque;

/// Chunks of the first batch, and of the largest: the first results are to come at once, for the link waits for them.
const FIRST: usize = 2;
const LARGEST: usize = 64;

pub(super) struct Pass {
    hasher: Hasher,
    chunks: Vec<ChunkId>,
    launched: usize,
    landed: usize,
    /// For each batch under way where it ends, and what comes when its results are there.
    batches: VecDeque<(usize, usize)>,
}

impl Pass {
    /// Over chunks of which the table knows that they are being hashed. `None`: it cannot be.
    pub(super) fn begin(hasher: Hasher, chunks: Vec<ChunkId>, station: &Station) -> Option<Pass> {
        let begun = hasher.begin(chunks.len() as u64, station.hashing());
        let mut pass = Pass { hasher, chunks, launched: 0, landed: 0, batches: VecDeque::new() };
        match begun {
            Ok(()) => Some(pass),
            Err(_) => {
                pass.fail(station);
                None
            }
        }
    }

    /// All chunks that it is about.
    pub(super) fn all(&self) -> &[ChunkId] {
        &self.chunks
    }

    pub(super) fn is_over(&self) -> bool {
        self.landed == self.chunks.len()
    }

    /// Launches the next batch; false: all are.
    pub(super) fn launch(&mut self, station: &Station) -> bool {
        if self.launched == self.chunks.len() {
            return false;
        }
        let from = self.launched;
        let batch = from.clamp(FIRST, LARGEST);
        let to = (from + batch).min(self.chunks.len());
        let stream = station.hashing();
        let places: Vec<Option<(u64, u64)>> = {
            let books = PAGER.books();
            let place =
                |id: &ChunkId| books.table.chunk(*id).and_then(|c| Some((c.address()?, c.bytes)));
            self.chunks[from..to].iter().map(place).collect()
        };
        let mut launched = Ok(());
        for (slot, place) in (from..to).zip(places) {
            let Some((address, bytes)) = place else { continue };
            launched =
                launched.and_then(|()| self.hasher.launch(slot as u64, address, bytes, stream));
        }
        match launched.and_then(|()| self.hasher.collect(from as u64, to as u64, stream)) {
            Ok(event) => {
                self.launched = to;
                self.batches.push_back((to, event));
            }
            Err(_) => self.fail(station),
        }
        self.launched < self.chunks.len()
    }

    /// Chunks whose results have come since the last time.
    pub(super) fn land(&mut self) -> Vec<ChunkId> {
        let from = self.landed;
        while let Some((to, event)) = self.batches.front().copied() {
            let right = match device::has_come(event) {
                Ok(false) => break,
                Ok(true) => true,
                Err(_) => false,
            };
            self.batches.pop_front();
            device::destroy_event(event);
            self.end(to, right);
        }
        self.chunks[from..self.landed].to_vec()
    }

    /// What has not been launched is not wanted any more, but for what is being copied: its hash goes with the copy.
    pub(super) fn cut(&mut self, station: &Station) {
        let rest = self.chunks.split_off(self.launched);
        let mut books = PAGER.books();
        for id in rest {
            match books.table.chunk(id).is_some_and(|chunk| chunk.state == State::Moving) {
                true => self.chunks.push(id),
                false => books.table.end_hashing(id, None),
            }
        }
        drop(books);
        PAGER.changed.notify_all();
        while self.launch(station) {}
    }

    /// Its context is gone.
    pub(super) fn abandon(&mut self) {
        for (_, event) in std::mem::take(&mut self.batches) {
            device::destroy_event(event);
        }
        self.end(self.chunks.len(), false);
    }

    /// Nothing more can be found out.
    fn fail(&mut self, station: &Station) {
        device::drain(station.hashing());
        self.land();
        self.abandon();
    }

    fn end(&mut self, to: usize, right: bool) {
        let mut books = PAGER.books();
        for slot in self.landed..to {
            let hash = right.then(|| self.hasher.result(slot as u64));
            books.table.end_hashing(self.chunks[slot], hash);
        }
        drop(books);
        self.landed = to;
        self.launched = self.launched.max(to);
        PAGER.changed.notify_all();
    }
}

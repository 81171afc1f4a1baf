//! Physical memory for chunks: created, mapped, and opened to the GPUs that may reach it, neighbours with one call.
//!
//! Owns: the order of the driver's calls, and what is undone when one fails. Does not own: credit, or whose turn a chunk is
//! (`table`).
//!
//! A cuMemSetAccess costs nearly the same whatever its size. Programs have thousands of segments of 2 to 20 MiB, which often lie side by
//! side; a driver may refuse a call over ranges that were reserved one by one, and is then asked for each.

use super::Pager;
use super::allocate::{Failure, unmake};
use super::device::{self, Reach};
use super::pins::RDMA;
use super::table::{ChunkId, Grant, Mapping};
use crate::work::WORK;
use acb_cuda_abi::CuResult;

/// A chunk that exists and is mapped.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) id: ChunkId,
    pub(super) handle: u64,
    device: u32,
    mappings: Vec<Mapping>,
}

impl Pager {
    /// Physical memory for a chunk that the caller moves, mapped and accessible; all or nothing.
    pub(super) fn make(&self, id: ChunkId) -> Result<u64, Failure> {
        let made = self.make_closed(id)?;
        let opened = self.open_all(vec![made]).pop();
        opened.map_or(Err(("cuMemSetAccess", CuResult::INVALID_VALUE)), |(_, opened)| opened)
    }

    /// The same, but not accessible yet.
    pub(super) fn make_closed(&self, id: ChunkId) -> Result<Made, Failure> {
        match self.map_new(id) {
            Err(("cuMemCreate", result))
                if result != CuResult::OUT_OF_MEMORY
                    && !device::is_lost(result)
                    && self.without_descriptor(id) =>
            {
                self.map_new(id)
            }
            made => made,
        }
    }

    fn map_new(&self, id: ChunkId) -> Result<Made, Failure> {
        let books = self.books();
        let Some(chunk) = books.table.chunk(id) else {
            return Err(("cuMemMap", CuResult::INVALID_VALUE));
        };
        let reach = match chunk.stays {
            Some(RDMA) => Reach::NetworkCards,
            _ => Reach::Nobody,
        };
        let (device, bytes, types) = (chunk.device, chunk.bytes, chunk.handle_types);
        let mappings = chunk.mappings.clone();
        drop(books);
        beside_captures(|| {
            let handle = device::create(device, bytes, types, reach)
                .map_err(|result| ("cuMemCreate", result))?;
            for (done, mapping) in mappings.iter().enumerate() {
                let (address, offset) = (mapping.address, mapping.offset);
                if let Err(result) = device::map(address, mapping.bytes, offset, handle) {
                    let _ = unmake(device, &mappings[..done], handle);
                    return Err(("cuMemMap", result));
                }
            }
            Ok(Made { id, handle, device, mappings })
        })
    }

    /// Opens chunks, and says their handles; one that cannot be opened is unmade.
    pub(super) fn open_all(&self, made: Vec<Made>) -> Vec<(ChunkId, Result<u64, Failure>)> {
        let outcomes = open(&made);
        let settle = |(made, opened): (Made, Result<(), CuResult>)| {
            let opened = match opened {
                Ok(()) => Ok(made.handle),
                Err(result) => {
                    made.unmake();
                    self.make_for_itself(made.id, result)
                }
            };
            (made.id, opened)
        };
        made.into_iter().zip(outcomes).map(settle).collect()
    }

    /// Where memory cannot be opened to others, its own GPU alone reaches it.
    fn make_for_itself(&self, id: ChunkId, refused: CuResult) -> Result<u64, Failure> {
        if device::is_lost(refused) || !self.keep_to_itself(id) {
            return Err(("cuMemSetAccess", refused));
        }
        let made = self.make_closed(id)?;
        match open(std::slice::from_ref(&made)).into_iter().collect() {
            Ok(()) => Ok(made.handle),
            Err(result) => {
                made.unmake();
                Err(("cuMemSetAccess", result))
            }
        }
    }
}

impl Made {
    fn unmake(&self) {
        let _ = beside_captures(|| unmake(self.device, &self.mappings, self.handle));
    }
}

/// Opens chunks, neighbours together; what came of each.
fn open(made: &[Made]) -> Vec<Result<(), CuResult>> {
    let mut outcomes: Vec<Result<(), CuResult>> = vec![Ok(()); made.len()];
    beside_captures(|| {
        for run in runs(made) {
            if run.parts.len() > 1 && device::open(run.address, run.bytes, &run.grants).is_ok() {
                continue;
            }
            for (of, mapping) in &run.parts {
                let opened = device::open(mapping.address, mapping.bytes, &run.grants);
                outcomes[*of] = outcomes[*of].and(opened);
            }
        }
    });
    outcomes
}

/// Neighbours that are open to the same GPUs.
#[derive(Debug, PartialEq)]
struct Run<'a> {
    address: u64,
    bytes: u64,
    grants: Vec<Grant>,
    /// Of which chunk, by its position, and where.
    parts: Vec<(usize, &'a Mapping)>,
}

fn runs(made: &[Made]) -> Vec<Run<'_>> {
    let all = made.iter().enumerate();
    let mut parts: Vec<(usize, &Mapping, Vec<Grant>)> = all
        .flat_map(|(at, made)| {
            let own = move || vec![device::read_write(made.device)];
            let mappings = made.mappings.iter();
            mappings.map(move |it| (at, it, it.access.clone().unwrap_or_else(own)))
        })
        .filter(|(.., grants)| !grants.is_empty())
        .collect();
    parts.sort_by_key(|(_, mapping, _)| mapping.address);
    let mut runs: Vec<Run<'_>> = Vec::new();
    for (at, mapping, grants) in parts {
        match runs.last_mut() {
            Some(run) if run.address + run.bytes == mapping.address && run.grants == grants => {
                run.bytes += mapping.bytes;
                run.parts.push((at, mapping));
            }
            _ => runs.push(Run {
                address: mapping.address,
                bytes: mapping.bytes,
                grants,
                parts: vec![(at, mapping)],
            }),
        }
    }
    runs
}

fn beside_captures<T>(calls: impl FnOnce() -> T) -> T {
    if WORK.is_capturing() { device::relaxed(calls) } else { calls() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pager::device::read_write;

    fn made(device: u32, places: &[(u64, u64)], access: Option<Vec<Grant>>) -> Made {
        let mapping = |&(address, bytes): &(u64, u64)| {
            let (offset, access) = (0, access.clone());
            Mapping { address, bytes, offset, access }
        };
        let mappings = places.iter().map(mapping).collect();
        Made { id: ChunkId(1), handle: 1, device, mappings }
    }

    #[test]
    fn neighbours_with_the_same_grants_are_opened_together() {
        let both = Some(vec![read_write(0), read_write(1)]);
        let all = [
            made(0, &[(40, 10)], None),
            made(0, &[(10, 10), (70, 5)], None),
            made(0, &[(20, 20)], None),
            made(1, &[(50, 5)], None),
            made(0, &[(55, 5)], both.clone()),
            made(0, &[(60, 5)], both),
            made(0, &[(80, 5)], Some(Vec::new())),
        ];
        let places = |run: &Run<'_>| (run.address, run.bytes, run.parts.len());
        let found: Vec<_> = runs(&all).iter().map(places).collect();
        assert_eq!(found, [(10, 40, 3), (50, 5, 1), (55, 10, 2), (70, 5, 1)]);
    }
}

//! Device memory whose content is known to the byte.
//!
//! Owns: regions of a GPU's memory, the kernels over them, and checking them: by sums that the GPU computes,
//! one for each piece, or byte by byte. Does not own: what must be in them ([`crate::content`]), when they
//! are used.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::content::{PIECE_WORDS, Piece};
use crate::driver::mapped::{Mappings, Segment};
use crate::driver::queues::{Graph, Queues};
use crate::driver::{Context, DevicePtr, Driver, DriverError, Kernel, Stream};
use crate::kernels;
use crate::reference::{Steps, splitmix64};

/// By which call memory is allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// `cuMemAlloc`
    #[default]
    Plain,
    /// `cuMemAllocAsync`, on the default stream
    Ordered,
    /// `cuMemCreate`, `cuMemMap`: pieces of 2 MiB that grow into one range of addresses
    Mapped,
}

impl FromStr for Way {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "plain" => Ok(Self::Plain),
            "async" => Ok(Self::Ordered),
            "mapped" => Ok(Self::Mapped),
            _ => Err("memory is allocated plain, async or mapped".into()),
        }
    }
}

/// What a region is made of.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// By which call.
    pub way: Way,
    /// Blocks, each of which is allocated for itself.
    pub blocks: u64,
    /// Bytes of each, a multiple of 8.
    pub block_bytes: u64,
    /// Bytes at the begin of each piece of 2 MiB, or smaller block, that take steps; the rest stays as filled.
    pub changing: u64,
}

/// Names a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RegionId(pub usize);

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// Bytes that were looked at.
    pub bytes: u64,
    /// Bytes of them that are wrong.
    pub wrong: u64,
    /// Where, for people.
    pub first: Option<String>,
}

impl Check {
    /// Counts another one in.
    pub fn add(&mut self, other: Check) {
        self.bytes += other.bytes;
        self.wrong += other.wrong;
        self.first = self.first.take().or(other.first);
    }
}

/// A GPU's memory, as far as this program has it.
pub struct Memory<'a> {
    driver: &'a Driver,
    context: Context,
    fill: Kernel,
    step: Kernel,
    sum: Kernel,
    seed: u64,
    regions: BTreeMap<RegionId, Region>,
    next: usize,
}

struct Region {
    way: Way,
    blocks: Vec<DevicePtr>,
    segment: Option<Segment>,
    pieces: Vec<(DevicePtr, Piece)>,
    /// On the GPU: a word for each piece, to which its sums are added.
    results: DevicePtr,
    /// What must be in them.
    totals: Vec<u64>,
    steps: Steps,
}

impl<'a> Memory<'a> {
    /// For the current context.
    pub fn new(driver: &'a Driver, context: Context, seed: u64) -> Result<Self, DriverError> {
        let module = driver.load_kernels()?;
        Ok(Self {
            driver,
            context,
            fill: driver.kernel(&module, kernels::FILL)?,
            step: driver.kernel(&module, kernels::STEP)?,
            sum: driver.kernel(&module, kernels::SUM)?,
            seed,
            regions: BTreeMap::new(),
            next: 0,
        })
    }

    /// Bytes of a region.
    pub fn bytes(&self, id: RegionId) -> u64 {
        self.regions
            .get(&id)
            .map_or(0, |region| region.pieces.iter().map(|(_, p)| p.words * 8).sum())
    }

    /// Allocates a region; nothing is in it yet. After an error nothing of it is left.
    pub fn allocate(&mut self, shape: Shape) -> Result<RegionId, DriverError> {
        let id = RegionId(self.next);
        self.next += 1;
        let mut region = Region {
            way: shape.way,
            blocks: vec![],
            segment: None,
            pieces: vec![],
            results: 0,
            totals: vec![],
            steps: Steps::default(),
        };
        let allocated = self.take_blocks(&mut region, shape);
        if let Err(error) = allocated {
            // The first error is the one to tell.
            let _ = self.release(&region);
            return Err(error);
        }
        let mut seed = splitmix64(self.seed ^ (id.0 as u64) << 32);
        for block in &region.blocks {
            let words = shape.block_bytes / 8;
            for first in (0..words).step_by(PIECE_WORDS as usize) {
                let length = PIECE_WORDS.min(words - first);
                region
                    .pieces
                    .push((block + first * 8, Piece::new(length, shape.changing / 8, seed)));
                seed = splitmix64(seed);
            }
        }
        region.totals = vec![0; region.pieces.len()];
        match self.driver.alloc(region.pieces.len().max(1) * 8) {
            Ok(results) => region.results = results,
            Err(error) => {
                let _ = self.release(&region);
                return Err(error);
            }
        }
        self.regions.insert(id, region);
        Ok(id)
    }

    fn take_blocks(&self, region: &mut Region, shape: Shape) -> Result<(), DriverError> {
        match shape.way {
            Way::Plain => {
                for _ in 0..shape.blocks {
                    region.blocks.push(self.driver.alloc(shape.block_bytes as usize)?);
                }
            }
            Way::Ordered => {
                let queues = Queues::of(self.driver)?;
                for _ in 0..shape.blocks {
                    let block = queues.alloc(Stream::DEFAULT, shape.block_bytes as usize)?;
                    region.blocks.push(block);
                }
            }
            Way::Mapped => {
                let mappings = Mappings::of(self.driver)?;
                let block = shape.block_bytes.next_multiple_of(PIECE_WORDS * 8);
                let segment = mappings.reserve(&self.context, block * shape.blocks)?;
                let segment = region.segment.insert(segment);
                for _ in 0..shape.blocks {
                    let mut begin = None;
                    for _ in 0..block / (PIECE_WORDS * 8) {
                        let at = mappings.grow(segment, PIECE_WORDS * 8)?;
                        begin.get_or_insert(at);
                    }
                    region.blocks.extend(begin);
                }
            }
        }
        Ok(())
    }

    /// Fills a region, in the default stream.
    pub fn fill(&mut self, id: RegionId) -> Result<(), DriverError> {
        let region = self.regions.get_mut(&id).expect("regions are named by allocate");
        region.steps = Steps::default();
        region.totals.fill(0);
        for (_, piece) in &mut region.pieces {
            *piece = piece.filled();
        }
        self.driver.copy_in(region.results, &region.totals)?;
        for (at, piece) in &region.pieces {
            let (blocks, threads) = launch_shape(piece.words);
            self.driver.launch(&self.fill, blocks, threads, &[*at, piece.words, piece.seed])?;
        }
        Ok(())
    }

    /// Frees a region.
    pub fn free(&mut self, id: RegionId) -> Result<(), DriverError> {
        match self.regions.remove(&id) {
            Some(region) => self.release(&region),
            None => Ok(()),
        }
    }

    /// Frees all regions.
    pub fn free_all(&mut self) -> Result<(), DriverError> {
        while let Some((_, region)) = self.regions.pop_first() {
            self.release(&region)?;
        }
        Ok(())
    }

    fn release(&self, region: &Region) -> Result<(), DriverError> {
        if let Some(segment) = &region.segment {
            Mappings::of(self.driver)?.free(segment)?;
        }
        for block in &region.blocks {
            match region.way {
                Way::Plain => self.driver.free(*block)?,
                Way::Ordered => Queues::of(self.driver)?.free(Stream::DEFAULT, *block)?,
                Way::Mapped => {}
            }
        }
        if region.results != 0 {
            self.driver.free(region.results)?;
        }
        Ok(())
    }

    /// Lets all changing words take a step. Pieces take turns on the streams; what is launched on the same
    /// streams later comes after it.
    pub fn step(&mut self, salt: u64, streams: &[Stream]) -> Result<(), DriverError> {
        self.launch_steps(salt, streams)?;
        self.stepped(salt);
        Ok(())
    }

    /// Lets the GPU sum up all pieces.
    pub fn sum(&mut self, streams: &[Stream]) -> Result<(), DriverError> {
        self.launch_sums(streams)?;
        self.summed();
        Ok(())
    }

    /// A graph that does a step and the sums. The regions must stay as they are.
    pub fn capture(&self, salt: u64) -> Result<Replay<'a>, DriverError> {
        let queues = Queues::of(self.driver)?;
        let stream = queues.create()?;
        let graph = queues.capture(stream, || {
            self.launch_steps(salt, &[stream])?;
            self.launch_sums(&[stream])
        })?;
        Ok(Replay { queues, stream, graph, salt })
    }

    /// Launches the graph.
    pub fn replay(&mut self, replay: &Replay<'_>) -> Result<(), DriverError> {
        replay.queues.replay(replay.graph, replay.stream)?;
        self.stepped(replay.salt);
        self.summed();
        Ok(())
    }

    fn launch_steps(&self, salt: u64, streams: &[Stream]) -> Result<(), DriverError> {
        for ((at, piece), stream) in self.pieces().zip(streams.iter().cycle()) {
            if piece.changing > 0 {
                let (blocks, threads) = launch_shape(piece.changing);
                let arguments = [*at, piece.changing, salt, 0];
                self.driver.launch_in(*stream, &self.step, blocks, threads, &arguments)?;
            }
        }
        Ok(())
    }

    fn launch_sums(&self, streams: &[Stream]) -> Result<(), DriverError> {
        let results = self.regions.values().flat_map(|region| {
            (0..region.pieces.len() as u64).map(move |piece| region.results + piece * 8)
        });
        for (((at, piece), result), stream) in
            self.pieces().zip(results).zip(streams.iter().cycle())
        {
            let (blocks, threads) = launch_shape(piece.words);
            let arguments = [*at, piece.words, result];
            self.driver.launch_in(*stream, &self.sum, blocks, threads, &arguments)?;
        }
        Ok(())
    }

    fn pieces(&self) -> impl Iterator<Item = &(DevicePtr, Piece)> {
        self.regions.values().flat_map(|region| &region.pieces)
    }

    fn stepped(&mut self, salt: u64) {
        for region in self.regions.values_mut() {
            region.steps = region.steps.then(salt);
        }
    }

    fn summed(&mut self) {
        for region in self.regions.values_mut() {
            for ((_, piece), total) in region.pieces.iter().zip(&mut region.totals) {
                *total = total.wrapping_add(piece.sum(region.steps));
            }
        }
    }

    /// Fetches the sums of a region. Everything must have been waited for.
    pub fn fetch(&self, id: RegionId) -> Result<Fetched, DriverError> {
        let region = &self.regions[&id];
        let mut sums = vec![0; region.pieces.len()];
        self.driver.copy_out(&mut sums, region.results)?;
        Ok(Fetched { id, sums })
    }

    /// The regions there are.
    pub fn regions(&self) -> Vec<RegionId> {
        self.regions.keys().copied().collect()
    }

    /// Looks at sums. Where one is wrong, the piece is fetched and compared.
    pub fn check(&self, fetched: &Fetched) -> Result<Check, DriverError> {
        let region = &self.regions[&fetched.id];
        let mut check = Check { bytes: self.bytes(fetched.id), ..Check::default() };
        for (index, (sum, total)) in fetched.sums.iter().zip(&region.totals).enumerate() {
            if sum == total {
                continue;
            }
            let found = self.compare_piece(fetched.id, index)?;
            // A sum that is wrong though the bytes are right is wrong itself, or was when it was added.
            check.wrong += found.wrong.max(8);
            let summed = format!(
                "{}, piece {index}: the sums add up to {sum:#018x} instead of {total:#018x}",
                region_name(fetched.id)
            );
            check.first.get_or_insert(match found.first {
                Some(first) => format!("{summed}; {first}"),
                None => format!("{summed}; its bytes are right"),
            });
        }
        Ok(check)
    }

    /// Fetches all memory and compares every byte. Everything must have been waited for.
    pub fn compare(&self) -> Result<Check, DriverError> {
        let mut check = Check::default();
        for (id, region) in &self.regions {
            for index in 0..region.pieces.len() {
                check.add(self.compare_piece(*id, index)?);
            }
        }
        Ok(check)
    }

    fn compare_piece(&self, id: RegionId, index: usize) -> Result<Check, DriverError> {
        let region = &self.regions[&id];
        let (at, piece) = &region.pieces[index];
        let mut words = vec![0; piece.words as usize];
        self.driver.copy_out(&mut words, *at)?;
        let wrong = piece.wrong(region.steps, &words);
        let first = wrong.first.map(|word| {
            format!(
                "{}, piece {index} at {at:#x}: word {} is {:#018x} instead of {:#018x}, {} of {} bytes are wrong",
                region_name(id), word.at, word.found, word.right, wrong.bytes, piece.words * 8
            )
        });
        Ok(Check { bytes: piece.words * 8, wrong: wrong.bytes, first })
    }
}

/// Sums as the GPU had them.
#[derive(Clone, Debug)]
pub struct Fetched {
    id: RegionId,
    sums: Vec<u64>,
}

/// A captured step.
pub struct Replay<'a> {
    queues: Queues<'a>,
    stream: Stream,
    graph: Graph,
    salt: u64,
}

impl Replay<'_> {
    /// Destroys graph and stream.
    pub fn close(self) -> Result<(), DriverError> {
        self.queues.forget(self.graph)?;
        self.queues.destroy(self.stream)
    }
}

/// A launch that a GPU takes in one wave.
fn launch_shape(words: u64) -> (u32, u32) {
    (words.div_ceil(256).clamp(1, 64) as u32, 256)
}

fn region_name(id: RegionId) -> String {
    format!("region {}", id.0)
}

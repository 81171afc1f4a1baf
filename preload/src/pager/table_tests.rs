//! The table against a model: contents have versions, and none is ever lost or taken for another.

use super::*;
use crate::pager::account::Word;
use proptest::prelude::*;

const UNIT: u64 = 2 << 20;

/// The version of a chunk that is all zeros.
const ZEROS: u64 = u64::MAX - 1;

fn hash_of(version: u64) -> Hash128 {
    Hash128([version, !version])
}

/// What the program wrote last into a chunk: 0 is nothing yet. `gpu` and `host` are what lies there now.
#[derive(Clone, Copy, Debug, Default)]
struct Content {
    written: u64,
    gpu: u64,
    host: u64,
}

/// The rest of the world: an assigner that gives credit, a program that writes, a GPU that copies.
#[derive(Default)]
struct World {
    table: Table,
    contents: BTreeMap<ChunkId, Content>,
    versions: u64,
    /// What the assigner counts.
    claimed: u64,
    resident: u64,
    open: bool,
    handles: u64,
    moving_in: Vec<Inward>,
    moving_out: Vec<Outward>,
    /// What the kernel has read.
    hashing: Vec<(ChunkId, u64)>,
}

impl World {
    fn new(places: u64) -> Self {
        let mut world = World::default();
        world.table.accounts = vec![Account::default()];
        world.table.places.add(0x1000, places, 0, Some(1));
        world.table.zeros = (1..3).map(|n| (n * UNIT, hash_of(ZEROS))).collect();
        world
    }

    fn allocate(&mut self, bytes: u64) {
        self.table.account(0).need(bytes);
        self.table.account(0).grant(bytes);
        self.claimed += bytes;
        let mapping = Mapping { address: 1, bytes, offset: 0, access: None };
        let state = if self.open { State::Moving } else { State::Absent };
        let id = self.table.add(0, bytes, vec![mapping], state);
        self.contents.insert(id, Content::default());
        if self.open {
            let missing = bytes.saturating_sub(self.table.accounts[0].credit());
            self.credit(missing);
            assert!(self.table.take_for(id, true));
            self.handles += 1;
            self.table.end_in(id, self.handles, true);
        }
    }

    fn credit(&mut self, bytes: u64) {
        self.table.account(0).add_credit(bytes);
        self.resident += bytes;
    }

    fn begin_in(&mut self) {
        if let Some(inward) = self.table.begin_next_in(0, true, u64::MAX) {
            self.moving_in.push(inward);
        }
    }

    fn end_in(&mut self, well: bool) {
        let Some(inward) = self.moving_in.pop() else { return };
        if !well {
            return self.table.fail_in(inward.id);
        }
        let content = self.contents.get_mut(&inward.id).unwrap();
        content.gpu = match inward.from {
            Origin::Nothing => 0,
            Origin::Zeros => ZEROS,
            Origin::Places(_) => content.host,
        };
        assert_eq!(content.gpu, content.written, "the program's content comes back");
        self.handles += 1;
        self.table.end_in(inward.id, self.handles, self.open);
    }

    fn open(&mut self) {
        if self.table.is_ready() {
            self.open = true;
            self.table.opened();
        }
    }

    /// The program changes some of what it can reach; sometimes it writes what was there before.
    fn write(&mut self, which: usize) {
        let resident: Vec<ChunkId> = self.contents.keys().copied().collect();
        if !self.open || resident.is_empty() {
            return;
        }
        let id = resident[which % resident.len()];
        assert_eq!(self.table.chunk(id).unwrap().state, State::Resident, "under an open gate");
        self.versions += 1;
        let content = self.contents.get_mut(&id).unwrap();
        let version = if self.versions.is_multiple_of(3) { ZEROS } else { self.versions };
        content.gpu = version;
        content.written = version;
    }

    fn hash(&mut self) {
        self.begin_hash();
        self.end_hash();
    }

    fn begin_hash(&mut self) {
        if self.open || !self.hashing.is_empty() {
            return;
        }
        for id in self.table.begin_hashing(0, 100) {
            assert!(
                self.table.is_worked_on(id),
                "the link thread must not wait for it: it is at it itself"
            );
            assert_eq!(self.table.hold(id), None, "its memory must not go meanwhile");
            self.hashing.push((id, self.contents[&id].gpu));
        }
    }

    fn end_hash(&mut self) {
        for (id, version) in std::mem::take(&mut self.hashing) {
            self.table.end_hashing(id, Some(hash_of(version)));
        }
    }

    fn victims(&self) -> Vec<ChunkId> {
        self.table.victims(0).into_iter().map(|(.., id)| id).collect()
    }

    fn begin_out(&mut self) {
        if self.open {
            return;
        }
        let victims = self.victims();
        let Some(first) = victims.first() else { return };
        match self.table.begin_out(*first, Trust::Hash) {
            Ok(outward) => {
                let content = self.contents.get_mut(&outward.id).unwrap();
                match outward.way {
                    Way::Drop => assert!(
                        content.gpu == content.host || content.gpu == ZEROS || content.written == 0,
                        "only what the host has may be dropped: {content:?}"
                    ),
                    // Garbage until the copy has ended.
                    Way::Copy(_) => content.host = u64::MAX,
                    Way::Compare(_) => panic!("hashes are trusted"),
                }
                self.moving_out.push(outward);
            }
            Err(NotOut::NoPlace(missing)) => assert!(missing > 0),
            Err(NotOut::Gone) => panic!("a victim is resident"),
        }
    }

    fn end_out(&mut self, well: bool) {
        let Some(outward) = self.moving_out.pop() else { return };
        if self.table.is_hashed_now(outward.id) {
            return self.moving_out.push(outward); // the kernel must be through with it
        }
        if !well {
            return self.table.fail_out(outward.id);
        }
        let content = self.contents.get_mut(&outward.id).unwrap();
        if let Way::Copy(_) = outward.way {
            content.host = content.gpu;
        }
        content.gpu = u64::MAX;
        self.table.end_out(outward.id);
    }

    fn free(&mut self, which: usize) {
        let all: Vec<ChunkId> = self.contents.keys().copied().collect();
        if all.is_empty() {
            return;
        }
        let id = all[which % all.len()];
        if self.table.hold(id).is_some() {
            self.table.doom(id);
            self.table.remove(id);
            self.contents.remove(&id);
        }
    }

    fn listen(&mut self) {
        while let Some(word) = self.table.account(0).poll_word() {
            match word {
                Word::Return { claim, resident } => {
                    self.claimed -= claim;
                    self.resident -= resident;
                }
                Word::Evicted(bytes) => self.resident -= bytes,
            }
        }
    }

    fn check(&self) {
        self.table.check();
        assert_eq!(self.table.accounts[0].stated(), (self.claimed, self.resident));
        let bytes: u64 = self.contents.keys().map(|id| self.table.chunk(*id).unwrap().bytes).sum();
        assert_eq!(bytes, self.table.accounts[0].needed());
    }
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(u64),
    Free(usize),
    Credit(u64),
    Evict(u64),
    BeginIn,
    EndIn(bool),
    Open,
    Write(usize),
    Close,
    BeginHash,
    EndHash,
    BeginOut,
    EndOut(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (1u64..5).prop_map(|n| Step::Allocate(n * UNIT)),
        1 => any::<usize>().prop_map(Step::Free),
        3 => (1u64..9).prop_map(|n| Step::Credit(n * UNIT)),
        1 => (1u64..9).prop_map(|n| Step::Evict(n * UNIT)),
        6 => Just(Step::BeginIn),
        6 => any::<u8>().prop_map(|n| Step::EndIn(n > 20)),
        3 => Just(Step::Open),
        4 => any::<usize>().prop_map(Step::Write),
        3 => Just(Step::Close),
        2 => Just(Step::BeginHash),
        2 => Just(Step::EndHash),
        4 => Just(Step::BeginOut),
        4 => any::<u8>().prop_map(|n| Step::EndOut(n > 20)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_content_is_lost_and_all_bytes_are_accounted_for(
        places in 0u64..20,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new(places * UNIT);
        for step in steps {
            match step {
                Step::Allocate(bytes) => world.allocate(bytes),
                Step::Free(which) => world.free(which),
                // No more than is claimed, as assigners do.
                Step::Credit(bytes) => world.credit(bytes.min(world.claimed - world.resident)),
                Step::Evict(bytes) => world.table.account(0).owe(bytes),
                Step::BeginIn => world.begin_in(),
                Step::EndIn(well) => world.end_in(well),
                Step::Open => world.open(),
                Step::Write(which) => world.write(which),
                Step::Close => world.open = false,
                Step::BeginHash => world.begin_hash(),
                Step::EndHash => world.end_hash(),
                Step::BeginOut => world.begin_out(),
                Step::EndOut(well) => world.end_out(well),
            }
            world.listen();
            world.check();
        }
    }
}

#[test]
fn zeros_need_no_place_and_come_back() {
    let mut world = World::new(0);
    world.allocate(UNIT);
    world.credit(UNIT);
    world.begin_in();
    world.end_in(true);
    world.open();
    world.versions = 2; // the next are zeros
    world.write(0);
    world.open = false;
    let id = world.victims()[0];
    assert!(matches!(world.table.begin_out(id, Trust::Hash), Err(NotOut::NoPlace(_))));
    world.begin_hash();
    assert_eq!(world.table.fate(id), Fate::Unknown, "its hash may show that it is all zeros");
    world.end_hash();
    assert_eq!(world.table.fate(id), Fate::Alike);
    // Who does not believe hashes copies it.
    assert!(matches!(world.table.begin_out(id, Trust::Compare), Err(NotOut::NoPlace(_))));
    world.begin_out();
    world.end_out(true);
    world.credit(UNIT);
    world.begin_in();
    assert_eq!(world.moving_in[0].from, Origin::Zeros);
    world.end_in(true);
    world.check();
}

#[test]
fn unchanged_chunks_go_first_then_the_longest_there() {
    let mut world = World::new(100 * UNIT);
    for _ in 0..3 {
        world.allocate(UNIT);
    }
    world.credit(3 * UNIT);
    let mut order = Vec::new();
    for _ in 0..3 {
        world.begin_in();
        order.push(world.moving_in[0].id);
        world.end_in(true);
    }
    assert_eq!(world.victims(), order, "all unchanged: in the order of their coming");
    world.open();
    for which in 0..3 {
        world.write(which);
    }
    world.open = false;
    world.hash();
    for _ in 0..3 {
        world.begin_out();
        world.end_out(true);
    }
    world.listen();
    world.credit(3 * UNIT);
    for _ in 0..3 {
        world.begin_in();
        world.end_in(true);
    }
    world.open();
    world.write(0);
    world.open = false;
    world.hash();
    let victims = world.victims();
    assert_eq!(victims.last(), Some(&order[0]), "the only one that has changed");
    let way = world.table.begin_out(victims[0], Trust::Compare).unwrap().way;
    assert!(matches!(way, Way::Compare(_)), "{way:?}");
}

#[test]
fn a_chunk_that_stays_is_no_victim() {
    let mut world = World::new(UNIT);
    world.allocate(UNIT);
    world.credit(UNIT);
    world.begin_in();
    let id = world.moving_in[0].id;
    world.end_in(true);
    world.table.change(id, |chunk| chunk.stays = Some("exported"));
    assert!(world.victims().is_empty());
    assert_eq!(world.table.begin_out(id, Trust::Hash), Err(NotOut::Gone));
}

#[test]
fn copies_of_changed_chunks_make_way_where_the_arena_is_too_small() {
    let mut world = World::new(UNIT);
    for _ in 0..2 {
        world.allocate(UNIT);
    }
    world.credit(2 * UNIT);
    for _ in 0..2 {
        world.begin_in();
        world.end_in(true);
    }
    world.open();
    (0..2).for_each(|which| world.write(which));
    world.open = false;
    world.begin_out();
    world.end_out(true);
    world.begin_out();
    assert!(world.moving_out.is_empty(), "no place");
    world.listen();
    world.credit(UNIT);
    world.begin_in();
    world.end_in(true);
    world.open();
    (0..2).for_each(|which| world.write(which));
    world.open = false;
    world.begin_out();
    assert_eq!(world.moving_out.len(), 1, "the first one's copy is stale");
    world.end_out(true);
    world.check();
}

#[test]
fn a_hash_from_before_the_gate_opened_says_nothing() {
    let mut world = World::new(UNIT);
    world.allocate(UNIT);
    let turn = |world: &mut World, credit: u64| {
        world.credit(credit);
        world.begin_in();
        world.end_in(true);
        world.open();
    };
    turn(&mut world, UNIT);
    world.write(0);
    world.open = false;
    world.hash();
    world.begin_out();
    world.end_out(true);
    world.listen();
    turn(&mut world, UNIT);
    world.open = false;
    world.begin_hash();
    assert_eq!(world.table.victims(0)[0].0, Fate::Unknown, "it may still be what the host has");
    // Nobody asks for memory any more, and the next lease begins before the kernel is through.
    world.open();
    world.write(0);
    world.open = false;
    world.end_hash();
    assert_eq!(world.table.victims(0)[0].0, Fate::Changed);
    world.hash();
    world.begin_out();
    world.end_out(true);
    world.check();
}

#[test]
fn copies_of_what_is_on_the_gpu_make_way_for_the_end_of_the_arena() {
    let mut world = World::new(2 * UNIT);
    for _ in 0..2 {
        world.allocate(UNIT);
    }
    world.credit(2 * UNIT);
    (0..2).for_each(|_| world.begin_in());
    (0..2).for_each(|_| world.end_in(true));
    world.open();
    (0..2).for_each(|which| world.write(which));
    world.open = false;
    world.hash();
    (0..2).for_each(|_| world.begin_out());
    (0..2).for_each(|_| world.end_out(true));
    world.listen();
    world.table.shed(2 * UNIT);
    assert_eq!(world.table.places.free(), 0, "the only copies stay");
    world.credit(UNIT);
    world.begin_in();
    world.end_in(true);
    world.table.shed(UNIT);
    assert_eq!(world.table.places.free(), UNIT);
    world.table.shed(UNIT);
    world.check();
    world.begin_out();
    assert!(matches!(world.moving_out[0].way, Way::Copy(_)), "the host does not have it any more");
    world.end_out(true);
    world.check();
}

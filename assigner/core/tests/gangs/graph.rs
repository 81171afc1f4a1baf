//! All states of a model, and what follows on what: whether it can always come to its end.
//!
//! stateright visits the states and checks what must hold in each; on its way all steps between them are noted here. Then *liveness*
//! is a walk backwards over them: **from every state some way leads to one in which all is done**. In a finite graph that says: if
//! every step that is possible again and again is taken at some time, all gets done. So it finds states in which nothing
//! can happen any more, and circles that cannot be left (livelock).
//!
//! Why not stateright's own: `sometimes` is content if there is *one* way from the beginning to the end, however many others
//! get lost; `eventually` asks for the end on every path, also those on which a message stays on its way for ever while others go
//! round, and does not look at circles nor at states that were reached before by another way (says its documentation).

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use stateright::{Checker, Expectation, Model, Property};

/// A model whose end is known.
pub(crate) trait Ends: Model {
    fn is_done(&self, state: &Self::State) -> bool;
}

/// What a model cannot leave any more.
#[derive(Debug)]
pub(crate) struct Trap {
    /// States from which it does not come to its end, of how many in all.
    pub(crate) states: (usize, usize),
    /// How it gets there on the shortest way, and the state there.
    pub(crate) path: String,
}

/// Visits every state; their number, if each leads to the end.
///
/// # Panics
/// If something does not hold that must hold always.
pub(crate) fn explore<M>(model: M) -> Result<usize, Trap>
where
    M: Ends + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq + Send + Sync + 'static,
{
    let recorded = Recorded { model, seen: Mutex::default() };
    let checker = recorded.checker().spawn_dfs().join();
    checker.assert_properties();
    let states = checker.unique_state_count();
    let recorded = checker.model();
    let seen = recorded.seen.lock().unwrap_or_else(PoisonError::into_inner);
    match seen.trapped() {
        trapped if trapped.is_empty() => Ok(states),
        trapped => Err(Trap {
            states: (trapped.len(), states),
            path: recorded.way_to(&seen, &seen.ends_of(trapped)),
        }),
    }
}

struct Recorded<M> {
    model: M,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// The states, by their prints.
    numbers: HashMap<u64, u32>,
    is_done: Vec<bool>,
    steps: Vec<(u32, u32)>,
}

/// A state, and what stands for it.
#[derive(Clone, Debug, PartialEq)]
struct Printed<S> {
    print: u64,
    number: u32,
    state: S,
}

/// What stands for a state: of half a million, two are the same by chance once in a hundred million times.
fn print_of(state: &impl Hash) -> u64 {
    let mut hasher = Folded(0);
    state.hash(&mut hasher);
    hasher.finish()
}

/// States are large, and std's hasher is slow.
struct Folded(u64);

impl Folded {
    fn fold(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }
}

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.fold(u64::from_le_bytes(word));
        }
        self.fold(bytes.len() as u64);
    }

    fn write_u8(&mut self, word: u8) {
        self.fold(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.fold(word.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.fold(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.fold(word as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl<S> Hash for Printed<S> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.print.hash(hasher);
    }
}

impl Seen {
    /// Of some states those after which nothing can happen, or all if something can.
    fn ends_of(&self, states: Vec<u32>) -> Vec<u32> {
        let goes_on: HashSet<u32> = self.steps.iter().map(|(from, _)| *from).collect();
        let over: Vec<u32> = states.iter().copied().filter(|it| !goes_on.contains(it)).collect();
        if over.is_empty() { states } else { over }
    }

    /// States that do not lead to the end.
    fn trapped(&self) -> Vec<u32> {
        let mut before = vec![Vec::new(); self.is_done.len()];
        for (from, to) in &self.steps {
            before[*to as usize].push(*from);
        }
        let mut leads = self.is_done.clone();
        let ends = (0..).zip(&self.is_done).filter(|(_, is_done)| **is_done);
        let mut pending: Vec<u32> = ends.map(|(number, _)| number).collect();
        while let Some(number) = pending.pop() {
            for from in &before[number as usize] {
                if !std::mem::replace(&mut leads[*from as usize], true) {
                    pending.push(*from);
                }
            }
        }
        (0..).zip(leads).filter(|(_, leads)| !leads).map(|(number, _)| number).collect()
    }

    /// The shortest way from the beginning to one of some states.
    fn way_to(&self, ends: &[u32]) -> Vec<u32> {
        let mut after = vec![Vec::new(); self.is_done.len()];
        for (from, to) in &self.steps {
            after[*from as usize].push(*to);
        }
        let mut before = vec![None; self.is_done.len()];
        let mut pending = VecDeque::from([0]);
        while let Some(number) = pending.pop_front() {
            if ends.contains(&number) {
                let mut way = vec![number];
                while let Some(from) = before[way[way.len() - 1] as usize] {
                    way.push(from);
                }
                way.reverse();
                return way;
            }
            for to in &after[number as usize] {
                if *to != 0 && before[*to as usize].is_none() {
                    before[*to as usize] = Some(number);
                    pending.push_back(*to);
                }
            }
        }
        Vec::new()
    }
}

impl<M: Ends> Recorded<M>
where
    M::State: Clone + Debug + Hash + PartialEq,
    M::Action: Debug,
{
    fn print(&self, state: M::State, from: Option<u32>) -> Printed<M::State> {
        let print = print_of(&state);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let next = u32::try_from(seen.numbers.len()).expect("so many states nobody waits for");
        let number = *seen.numbers.entry(print).or_insert(next);
        if number == next {
            let is_done = self.model.is_done(&state);
            seen.is_done.push(is_done);
        }
        seen.steps.extend(from.map(|from| (from, number)));
        Printed { print, number, state }
    }

    fn way_to(&self, seen: &Seen, ends: &[u32]) -> String {
        let way = seen.way_to(ends);
        let mut text = String::new();
        let mut state = self.model.init_states().remove(0);
        for number in &way[1..] {
            let mut actions = Vec::new();
            self.model.actions(&state, &mut actions);
            for action in actions {
                let said = format!("{action:?}\n");
                let Some(next) = self.model.next_state(&state, action) else { continue };
                if seen.numbers.get(&print_of(&next)) == Some(number) {
                    text += &said;
                    state = next;
                    break;
                }
            }
        }
        format!("{text}{state:#?}")
    }
}

impl<M: Ends> Model for Recorded<M>
where
    M::State: Clone + Debug + Hash + PartialEq,
    M::Action: Debug,
{
    type State = Printed<M::State>;
    type Action = M::Action;

    fn init_states(&self) -> Vec<Self::State> {
        let mut states = self.model.init_states();
        let begins = states.pop().expect("a model begins somehow");
        assert!(states.is_empty(), "it begins in one way");
        vec![self.print(begins, None)]
    }

    fn actions(&self, state: &Self::State, actions: &mut Vec<M::Action>) {
        self.model.actions(&state.state, actions);
    }

    fn next_state(&self, last: &Self::State, action: M::Action) -> Option<Self::State> {
        let next = self.model.next_state(&last.state, action)?;
        Some(self.print(next, Some(last.number)))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(
            "what the model says must hold always",
            |it: &Self, state: &Printed<M::State>| {
                it.model.properties().iter().all(|property| {
                    let holds = property.expectation != Expectation::Always
                        || (property.condition)(&it.model, &state.state);
                    if !holds {
                        eprintln!("does not hold: {}", property.name);
                    }
                    holds
                })
            },
        )]
    }
}

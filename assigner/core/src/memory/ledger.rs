//! One GPU's memory: what there is, and what of it every client has.
//!
//! Owns the sums, so that no question needs a walk over the accounts that need not be one. Does
//! not own who gets what, or who has to give it back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::fixed::Request;
use crate::event::Room;
use crate::ids::{ClientId, Time};

/// Why nothing of a client can be moved to the host now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Anchor {
    /// The client says that its memory must stay where it is.
    Pinned,
    /// It could not move what it was asked for; asked again after a lease, or once it has moved some by itself.
    Failed,
    /// It was asked, and made no progress for too long; until it makes some.
    Late,
    /// It cannot be asked: its connection is lost, or it has not come back after a restart.
    Away,
}

/// All that holds a client's memory where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Anchors(u8);

impl Anchors {
    pub(crate) fn insert(&mut self, anchor: Anchor) {
        self.0 |= 1 << anchor as u8;
    }

    pub(crate) fn remove(&mut self, anchor: Anchor) {
        self.0 &= !(1 << anchor as u8);
    }

    pub(crate) fn contains(self, anchor: Anchor) -> bool {
        self.0 & 1 << anchor as u8 != 0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// What a client has of a GPU.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    /// What stays on the GPU until it is returned.
    pub(crate) fixed: u64,
    /// Paged memory, wherever it is.
    pub(crate) claimed: u64,
    /// Paged memory that is on the GPU, or may come there: credit that is not yet used.
    pub(crate) resident: u64,
    /// What of `resident` it has been asked to move to the host.
    pub(crate) evicting: u64,
    /// Grows with every lease: who has the smallest was last here the longest ago.
    pub(crate) used: u64,
    /// When it was asked to evict, or last did.
    pub(crate) progress: Time,
    pub(crate) anchors: Anchors,
    /// Whether somebody looks after its eviction in time.
    pub(crate) watched: bool,
    /// What it may have altogether.
    pub(crate) limit: u64,
}

impl Account {
    /// What a holder still needs.
    pub(crate) fn lack(&self) -> u64 {
        match self.anchors.contains(Anchor::Away) {
            true => 0, // nobody would hear of it
            false => self.claimed.saturating_sub(self.resident),
        }
    }

    /// What it could still be asked to move to the host.
    pub(crate) fn movable(&self) -> u64 {
        if self.anchors.is_empty() { self.resident - self.evicting } else { 0 }
    }

    fn sums(&self) -> Sums {
        let if_so = |so: bool, bytes: u64| if so { bytes } else { 0 };
        Sums {
            fixed: self.fixed,
            claimed: self.claimed,
            resident: self.resident,
            coming: if_so(!self.anchors.contains(Anchor::Late), self.evicting),
            anchored: if_so(!self.anchors.is_empty(), self.resident),
        }
    }
}

/// Sums over the accounts of a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) fixed: u64,
    pub(crate) claimed: u64,
    pub(crate) resident: u64,
    /// What is on its way to the host, as far as anybody can count on it.
    pub(crate) coming: u64,
    /// Resident memory that cannot be moved.
    pub(crate) anchored: u64,
}

impl Sums {
    fn replace(&mut self, before: Sums, after: Sums) {
        let put = |sum: &mut u64, before: u64, after: u64| *sum = *sum - before + after;
        put(&mut self.fixed, before.fixed, after.fixed);
        put(&mut self.claimed, before.claimed, after.claimed);
        put(&mut self.resident, before.resident, after.resident);
        put(&mut self.coming, before.coming, after.coming);
        put(&mut self.anchored, before.anchored, after.anchored);
    }
}

/// The memory of one GPU.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    pub(crate) capacity: u64,
    /// What is kept free for what drivers take unasked, as long as promises leave it.
    pub(crate) headroom: u64,
    /// What page-ins did not find: memory of programs outside, or of the driver's, that no account has.
    pub(crate) missing: u64,
    /// What was in use beyond what is known, at the latest look.
    pub(crate) unknown: u64,
    /// In the order of the clients.
    accounts: Vec<(ClientId, Account)>,
    sums: Sums,
    /// Requests of fixed memory that wait, in order of arrival.
    pub(crate) waiting: VecDeque<Request>,
    /// Clients of an earlier life whose accounts are guesses, and how much of the GPU each can have at most.
    pub(crate) guessed: BTreeMap<ClientId, u64>,
    /// Some of these are waited for: nothing is promised meanwhile.
    pub(crate) settling: bool,
    /// Who lacks memory that other holders have; their leases are contended.
    pub(crate) pressing: BTreeSet<ClientId>,
    /// Who has been credited, and has not been ready since: its page-in may be under way, with a lease or without.
    pub(crate) paging: BTreeSet<ClientId>,
    /// Whether more is claimed than there is, when clients were last told.
    pub(crate) oversubscribed: bool,
    /// Clients whose claims or residency have changed since.
    pub(crate) touched: BTreeSet<ClientId>,
}

impl Ledger {
    pub(crate) fn new(capacity: u64, headroom: u64) -> Ledger {
        Ledger {
            capacity,
            headroom: headroom.min(capacity),
            missing: 0,
            unknown: 0,
            accounts: Vec::new(),
            sums: Sums::default(),
            waiting: VecDeque::new(),
            guessed: BTreeMap::new(),
            settling: false,
            pressing: BTreeSet::new(),
            paging: BTreeSet::new(),
            oversubscribed: false,
            touched: BTreeSet::new(),
        }
    }

    pub(crate) fn sums(&self) -> Sums {
        self.sums
    }

    pub(crate) fn accounts(&self) -> impl Iterator<Item = (ClientId, &Account)> {
        self.accounts.iter().map(|(client, account)| (*client, account))
    }

    pub(crate) fn account(&self, client: ClientId) -> Option<&Account> {
        self.place(client).ok().map(|at| &self.accounts[at].1)
    }

    /// Where a client's account is, or would be.
    fn place(&self, client: ClientId) -> Result<usize, usize> {
        self.accounts.binary_search_by_key(&client, |(known, _)| *known)
    }

    /// Opens an account; one that is there stays.
    pub(crate) fn open(&mut self, client: ClientId, used: u64, limit: u64) {
        if let Err(at) = self.place(client) {
            self.accounts.insert(at, (client, Account { used, limit, ..Account::default() }));
        }
    }

    /// Strikes a client out, with all that it had.
    pub(crate) fn close(&mut self, client: ClientId) {
        if let Ok(at) = self.place(client) {
            let (_, account) = self.accounts.remove(at);
            self.sums.replace(account.sums(), Sums::default());
        }
        let was_guess = self.guessed.remove(&client).is_some();
        self.settling &= !self.guessed.is_empty();
        if was_guess && !self.settling {
            self.expect_most();
        }
        self.pressing.remove(&client);
        self.paging.remove(&client);
        self.touched.remove(&client);
    }

    /// All who come back in time have said what they have: what is left can be that of those who have not, up to what they
    /// can have at most. They are not credited any more, so that it does not become more.
    pub(crate) fn expect_most(&mut self) {
        for (client, most) in self.guessed.clone() {
            let left = self.left();
            self.change(client, |account| {
                let more = most.saturating_sub(account.fixed + account.resident).min(left);
                account.resident += more;
                account.claimed = account.claimed.max(account.resident);
            });
        }
    }

    /// Changes an account, if there is one.
    pub(crate) fn change<R>(
        &mut self,
        client: ClientId,
        change: impl FnOnce(&mut Account) -> R,
    ) -> Option<R> {
        let at = self.place(client).ok()?;
        let account = &mut self.accounts[at].1;
        let before = account.sums();
        let result = change(account);
        account.evicting = account.evicting.min(account.resident);
        let after = account.sums();
        self.sums.replace(before, after);
        if self.sums.claimed > 0 || before != after {
            self.touched.insert(client);
        }
        Some(result)
    }

    /// True if nothing is claimed, awaited or guessed.
    pub(crate) fn is_idle(&self) -> bool {
        self.sums.claimed == 0
            && self.sums.resident == 0
            && self.waiting.is_empty()
            && self.guessed.is_empty()
            && self.pressing.is_empty()
            && !self.oversubscribed
            && self.missing == 0
    }

    /// What clients can be promised altogether.
    pub(crate) fn most(&self) -> u64 {
        self.capacity - self.headroom
    }

    /// What nobody has.
    pub(crate) fn left(&self) -> u64 {
        (self.capacity - self.sums.fixed - self.sums.resident).saturating_sub(self.missing)
    }

    /// What of the headroom can be kept free: whoever's turn it is must have all of its memory, whatever drivers have taken.
    pub(crate) fn reserve(&self) -> u64 {
        if self.headroom == 0 {
            return 0;
        }
        let everywhere = self.sums.fixed + self.sums.anchored + self.missing;
        let turns = self.accounts.iter().map(|(_, account)| {
            (everywhere - account.sums().anchored).saturating_add(account.claimed)
        });
        let most = turns.max().unwrap_or(0);
        self.headroom.min(self.capacity.saturating_sub(most))
    }

    /// What is promised to nobody, and kept free for no driver.
    pub(crate) fn free(&self) -> u64 {
        self.left().saturating_sub(self.reserve())
    }

    /// What drivers have taken of what is kept free for them: others make room for it, before it is needed again.
    pub(crate) fn overdraft(&self) -> u64 {
        self.reserve().saturating_sub(self.left())
    }

    /// What `client` has and claims.
    pub(crate) fn room(&self, client: ClientId) -> Room {
        self.account(client).map_or(Room::default(), |account| Room {
            fixed: account.fixed,
            claimed: account.claimed,
            resident: account.resident,
        })
    }

    /// The largest claim of a client.
    pub(crate) fn largest_claim(&self) -> u64 {
        self.accounts.iter().map(|(_, account)| account.claimed).max().unwrap_or(0)
    }

    /// The largest claim among some clients.
    pub(crate) fn largest_claim_of(&self, clients: impl Iterator<Item = ClientId>) -> u64 {
        clients.map(|client| self.room(client).claimed).max().unwrap_or(0)
    }

    /// What stays on the GPU whatever `client` needs: everybody's fixed memory, what of the
    /// others' paged memory cannot be moved, and what nobody knows of.
    pub(crate) fn immovable(&self, client: ClientId) -> u64 {
        let own = self.account(client).map_or(0, |account| account.sums().anchored);
        self.sums.fixed + self.sums.anchored + self.missing - own
    }

    /// What others than `client` have on the GPU that will stay there: their fixed memory, and what they say
    /// must stay where it is.
    pub(crate) fn immovable_for_good(&self, client: ClientId) -> u64 {
        let others = self.accounts.iter().filter(|(other, _)| *other != client);
        let stays = others.map(|(_, account)| {
            let pinned = account.anchors.contains(Anchor::Pinned);
            account.fixed + if pinned { account.resident } else { 0 }
        });
        stays.sum()
    }

    /// True if the claims and the fixed memory, with so much more, exceed the GPU.
    pub(crate) fn would_oversubscribe(&self, more: u64) -> bool {
        let waiting = self.waiting.iter().fold(more, |sum, r| sum.saturating_add(r.bytes));
        self.sums.claimed.saturating_add(self.sums.fixed).saturating_add(waiting) > self.most()
    }

    /// Whether the sums are those of the accounts, for `sanity_check`.
    pub(crate) fn adds_up(&self) -> bool {
        let mut sums = Sums::default();
        for (_, account) in &self.accounts {
            sums.replace(Sums::default(), account.sums());
        }
        sums == self.sums
    }
}

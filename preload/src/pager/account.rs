//! What a client owes and is owed on one GPU: claims and credits. Pure.
//!
//! Owns: the figures, and what must be said to the assigner when they change. Does not own: which chunks make up the
//! figures (`chunks`), or the saying (`pager`).
//!
//! ```text
//! claimed  what the assigner has granted as claims        ≥ needed, but for claims that are being asked for
//! counted  what the assigner counts as resident           = taken + unsaid + credit
//! taken    bytes of chunks that are resident, or for which a page-in has taken credit
//! credit   what may still be taken
//! ```

/// The account of one GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    claimed: u64,
    counted: u64,
    /// Bytes of the chunks that exist, and of those whose claim is being asked for.
    needed: u64,
    taken: u64,
    /// Paged out, but the assigner has not been told.
    unsaid: u64,
    /// What Evict has asked for and has not got.
    owed: u64,
    /// What credit is left is to go back.
    withdrawn: bool,
}

/// What is to be said to the assigner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// RoomReturn: claims that are not needed, and the resident bytes and credit that go with them.
    Return { claim: u64, resident: u64 },
    /// Evicted.
    Evicted(u64),
}

impl Account {
    /// Bytes that a page-in may still take.
    pub(crate) fn credit(&self) -> u64 {
        self.counted - self.taken - self.unsaid
    }

    pub(crate) fn needed(&self) -> u64 {
        self.needed
    }

    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    pub(crate) fn owed(&self) -> u64 {
        self.owed
    }

    /// What is stated when the client reconnects: claimed and resident.
    pub(crate) fn stated(&self) -> (u64, u64) {
        (self.claimed, self.counted)
    }

    /// A claim is about to be asked for.
    pub(crate) fn need(&mut self, bytes: u64) {
        self.needed += bytes;
    }

    /// The assigner has granted a claim.
    pub(crate) fn grant(&mut self, bytes: u64) {
        self.claimed += bytes;
    }

    /// What was claimed is not needed any more.
    pub(crate) fn unneed(&mut self, bytes: u64) {
        self.needed -= bytes;
    }

    /// Credit has come.
    pub(crate) fn add_credit(&mut self, bytes: u64) {
        self.counted += bytes;
    }

    /// Evict has come.
    pub(crate) fn owe(&mut self, bytes: u64) {
        self.owed += bytes;
    }

    /// So much is not owed any more.
    pub(crate) fn let_off(&mut self, bytes: u64) {
        self.owed = self.owed.saturating_sub(bytes);
    }

    /// Withdraw has come.
    pub(crate) fn withdraw(&mut self) {
        self.withdrawn = true;
    }

    /// So much of the credit cannot be used, for the GPU has less than the assigner knows; how much goes back.
    pub(crate) fn give_up(&mut self, bytes: u64) -> u64 {
        let bytes = bytes.min(self.credit());
        self.counted -= bytes;
        bytes
    }

    /// Nothing more can or need be given for what was asked.
    pub(crate) fn forgive(&mut self) {
        (self.owed, self.withdrawn) = (0, false);
    }

    /// Takes credit for a page-in; false: there is not enough.
    pub(crate) fn take(&mut self, bytes: u64) -> bool {
        let enough = self.credit() >= bytes;
        if enough {
            self.taken += bytes;
        }
        enough
    }

    /// Without an assigner nothing is metered: as much as is wanted.
    pub(crate) fn take_unmetered(&mut self, bytes: u64) {
        self.counted += bytes.saturating_sub(self.credit());
        self.taken += bytes;
    }

    /// The page-in has failed, or the chunk is freed: its bytes are credit again.
    pub(crate) fn untake(&mut self, bytes: u64) {
        self.taken -= bytes;
    }

    /// The chunk is on the host.
    pub(crate) fn evicted(&mut self, bytes: u64) {
        self.taken -= bytes;
        self.unsaid += bytes;
        self.owed = self.owed.saturating_sub(bytes);
    }

    /// The next thing to say; the assigner must be told, for the figures assume it.
    pub(crate) fn poll_word(&mut self) -> Option<Word> {
        // Unused credit is the first to go when something is owed.
        let unused = self.owed.min(self.credit());
        self.owed -= unused;
        self.unsaid += unused;
        if self.unsaid > 0 {
            let bytes = std::mem::take(&mut self.unsaid);
            self.counted -= bytes;
            return Some(Word::Evicted(bytes));
        }
        let claim = self.claimed.saturating_sub(self.needed);
        // Credit can be used for what is claimed and not there.
        let useful = match std::mem::take(&mut self.withdrawn) {
            true => 0,
            false => (self.claimed - claim).saturating_sub(self.taken),
        };
        let resident = self.credit().saturating_sub(useful);
        if claim == 0 && resident == 0 {
            return None;
        }
        self.claimed -= claim;
        self.counted -= resident;
        Some(Word::Return { claim, resident })
    }

    /// What holds at every moment.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        assert!(self.counted >= self.taken + self.unsaid, "{self:?}");
        assert!(self.taken <= self.needed, "{self:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn claimed(bytes: u64) -> Account {
        let mut account = Account::default();
        account.need(bytes);
        account.grant(bytes);
        account
    }

    #[test]
    fn credit_for_what_is_claimed_is_kept() {
        let mut account = claimed(64 * MIB);
        account.add_credit(64 * MIB);
        assert_eq!(account.poll_word(), None);
        assert!(account.take(64 * MIB));
        assert!(!account.take(1));
        assert_eq!(account.stated(), (64 * MIB, 64 * MIB));
    }

    #[test]
    fn a_free_returns_claim_and_residence_together() {
        let mut account = claimed(64 * MIB);
        account.add_credit(64 * MIB);
        assert!(account.take(40 * MIB));
        account.untake(40 * MIB);
        account.unneed(40 * MIB);
        assert_eq!(account.poll_word(), Some(Word::Return { claim: 40 * MIB, resident: 40 * MIB }));
        assert_eq!(account.poll_word(), None);
        assert_eq!(account.credit(), 24 * MIB);
    }

    #[test]
    fn credit_that_comes_for_freed_memory_goes_back() {
        let mut account = claimed(64 * MIB);
        account.unneed(64 * MIB);
        assert_eq!(account.poll_word(), Some(Word::Return { claim: 64 * MIB, resident: 0 }));
        account.add_credit(64 * MIB);
        assert_eq!(account.poll_word(), Some(Word::Return { claim: 0, resident: 64 * MIB }));
    }

    #[test]
    fn unused_credit_pays_before_chunks() {
        let mut account = claimed(64 * MIB);
        account.add_credit(64 * MIB);
        assert!(account.take(32 * MIB));
        account.owe(48 * MIB);
        assert_eq!(account.poll_word(), Some(Word::Evicted(32 * MIB)));
        assert_eq!(account.owed(), 16 * MIB);
        account.evicted(32 * MIB);
        assert_eq!(account.owed(), 0);
        assert_eq!(account.poll_word(), Some(Word::Evicted(32 * MIB)));
        assert_eq!(account.stated(), (64 * MIB, 0));
        assert_eq!(account.poll_word(), None);
    }

    #[test]
    fn credit_that_is_withdrawn_goes_back_once() {
        let mut account = claimed(64 * MIB);
        account.add_credit(64 * MIB);
        assert!(account.take(24 * MIB));
        account.withdraw();
        assert_eq!(account.poll_word(), Some(Word::Return { claim: 0, resident: 40 * MIB }));
        assert_eq!(account.stated(), (64 * MIB, 24 * MIB));
        account.add_credit(40 * MIB);
        assert_eq!(account.poll_word(), None, "what comes later is for the next turn");
        assert!(account.take(40 * MIB));
    }

    #[test]
    fn credit_that_the_gpu_cannot_keep_goes_back_at_once() {
        let mut account = claimed(64 * MIB);
        account.add_credit(64 * MIB);
        assert!(account.take(32 * MIB));
        assert_eq!(account.give_up(8 * MIB), 8 * MIB);
        assert_eq!(account.give_up(64 * MIB), 24 * MIB, "no more than is unused");
        assert_eq!(account.stated(), (64 * MIB, 32 * MIB));
        assert_eq!(account.poll_word(), None, "it is still claimed");
    }

    #[test]
    fn what_is_owed_goes_before_what_is_withdrawn() {
        let mut account = claimed(64 * MIB);
        account.add_credit(64 * MIB);
        account.owe(16 * MIB);
        account.withdraw();
        assert_eq!(account.poll_word(), Some(Word::Evicted(16 * MIB)));
        assert_eq!(account.poll_word(), Some(Word::Return { claim: 0, resident: 48 * MIB }));
        assert_eq!(account.poll_word(), None);
    }

    #[test]
    fn a_claim_that_is_being_asked_for_is_not_given_back() {
        let mut account = claimed(10 * MIB);
        account.need(20 * MIB);
        account.unneed(10 * MIB);
        assert_eq!(account.poll_word(), None, "10 of the 20 are claimed already");
        account.grant(20 * MIB);
        assert_eq!(account.poll_word(), Some(Word::Return { claim: 10 * MIB, resident: 0 }));
    }
}

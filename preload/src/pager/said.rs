//! What the assigner says of this client's memory, and what it is told of a page-in that finds no room.
//!
//! Owns: what a message changes in the account of its GPU, and who looks up then. Does not own: the figures (`account`), or the
//! answers (`Books::say`).

use super::Pager;
use super::account::Account;
use crate::link::LINK;
use acb_wire::v1::{Short, client_message::Kind};

impl Pager {
    /// Page-ins may take so much more.
    pub(crate) fn credit(&self, device: u32, bytes: u64) {
        self.change_account(device, |account| account.add_credit(bytes));
    }

    /// So much is asked for.
    pub(crate) fn evict(&self, device: u32, bytes: u64) {
        // There may be host memory now.
        self.books().arena.exhausted = false;
        self.change_account(device, |account| account.owe(bytes));
    }

    /// So much of what was asked for need not go any more.
    pub(super) fn let_off(&self, device: u32, bytes: u64) {
        self.change_account(device, |account| account.let_off(bytes));
    }

    /// Credit that no page-in has taken goes back.
    pub(crate) fn withdraw(&self, device: u32) {
        self.change_account(device, Account::withdraw);
    }

    /// What was asked for may stay, but for what is on its way. The link's thread looks after the gate next.
    pub(crate) fn stay(&self, device: u32) {
        self.change_account(device, Account::forgive);
    }

    /// For a GPU of this client. What follows from it is said, and who waits looks up.
    fn change_account(&self, device: u32, change: impl FnOnce(&mut Account)) {
        if !self.is_active() {
            return;
        }
        let mut books = self.books();
        if device as usize >= books.table.accounts.len() {
            return;
        }
        change(books.table.account(device));
        books.say();
        self.changed.notify_all();
    }

    /// A page-in of `bytes` met OUT_OF_MEMORY, and `free` are there: credit for more goes back, and the assigner has others make room.
    /// False: there is no assigner.
    pub(super) fn short(&self, device: u32, bytes: u64, free: Option<u64>) -> bool {
        let mut books = self.books();
        if !books.metered || !LINK.is_connected() {
            return false;
        }
        let account = books.table.account(device);
        let excess = free.map_or(0, |free| account.credit().saturating_sub(free));
        let bytes = account.give_up(excess.max(bytes));
        if bytes > 0 {
            LINK.send(Kind::Short(Short { device, bytes }));
        }
        bytes > 0
    }
}

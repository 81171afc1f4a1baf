//! Unprivileged users of this machine, for jobs that are not root's.
//!
//! Owns: making the account when it is missing. It is left behind: removing an account from under
//! another lab's feet would be worse.

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use std::fs;
use std::process::Command;

const PASSWD: &str = "/etc/passwd";

/// A user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
}

impl Account {
    /// The user `acbtest1`, `acbtest2`, …, made when missing.
    ///
    /// # Errors
    /// useradd fails.
    pub fn test(number: u32) -> Result<Self> {
        let name = format!("acbtest{number}");
        if let Some(account) = Self::named(&name)? {
            return Ok(account);
        }
        // Of two useradd at once the second gives the account another number, after the first was seen.
        let one_at_a_time = fs::File::open(PASSWD).with_context(|| format!("open {PASSWD}"))?;
        flock(&one_at_a_time, FlockOperation::LockExclusive)
            .with_context(|| format!("lock {PASSWD}"))?;
        if let Some(account) = Self::named(&name)? {
            return Ok(account);
        }
        let output = Command::new("useradd")
            .args(["--no-create-home", "--user-group", "--shell", "/bin/bash", &name])
            .output()
            .context("run useradd")?;
        match Self::named(&name)? {
            Some(account) => Ok(account),
            None => bail!(
                "useradd {name}: {}, {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            ),
        }
    }

    /// The account of that name in /etc/passwd.
    ///
    /// # Errors
    /// /etc/passwd cannot be read.
    pub fn named(name: &str) -> Result<Option<Self>> {
        let passwd = fs::read_to_string(PASSWD).with_context(|| format!("read {PASSWD}"))?;
        Ok(passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let found = fields.next()? == name;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            found.then(|| Self { name: name.into(), uid, gid })
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::thread;

    /// A number of no lab's, so that its account can be removed.
    const OWN: u32 = 99;

    #[test]
    fn who_makes_it_at_once_has_the_same() {
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            eprintln!("skipped: only root makes accounts");
            return;
        }
        let name = format!("acbtest{OWN}");
        let remove = || Command::new("userdel").arg(&name).output().unwrap();
        for _ in 0..5 {
            remove();
            let all = [(); 4].map(|()| thread::spawn(|| Account::test(OWN).unwrap()));
            let all = all.map(|one| one.join().unwrap());
            let there = Account::named(&name).unwrap().expect("it was made");
            remove();
            assert!(all.iter().all(|one| *one == there), "{all:?}, but {there:?}");
        }
    }
}

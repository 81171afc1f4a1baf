//! Unprivileged users of this machine, for jobs that are not root's.
//!
//! Owns: making the account when it is missing. It is left behind: removing an account from under
//! another lab's feet would be worse.

use anyhow::{Context, Result, bail};
use std::fs;
use std::process::Command;

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
        let output = Command::new("useradd")
            .args(["--no-create-home", "--user-group", "--shell", "/bin/bash", &name])
            .output()
            .context("run useradd")?;
        // Another lab may have been faster.
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
        let passwd = fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
        Ok(passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let found = fields.next()? == name;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            found.then(|| Self { name: name.into(), uid, gid })
        }))
    }
}

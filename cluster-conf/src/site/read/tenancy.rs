//! Reading `[[queue]]` and `[[tenant]]`.
//!
//! Owns that each is there once, and that no more is guaranteed than there is.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::Range;

use toml::Spanned;
use toml::de::DeValue;

use super::{Reader, positive};
use crate::diagnostics::Problem;
use crate::fields::{Fault, Fields, choice, integer, number, string};
use crate::policy::Policy;
use crate::tenancy::{Name, Priority, QueueRule, Share, TenantRule};

/// More GPUs or clients than a node has.
const MOST: u32 = 100_000;

/// Names that are there already, with their places.
type Places = BTreeMap<Name, Range<usize>>;

impl Reader<'_> {
    pub(super) fn queues(&mut self, top: &mut Fields<'_, '_>) -> Vec<QueueRule> {
        let (mut queues, mut places) = (Vec::new(), Places::new());
        for (section, mut fields) in top.sections("queue", self.problems) {
            let name = self.name("queue", section, &mut fields, &mut places);
            let priority = fields.read("priority", self.problems, priority);
            let policy =
                fields.read("policy", self.problems, |v| choice(v, &Policy::ALL, Policy::name));
            let max_gpus = fields.read("max_gpus", self.problems, |v| positive(v, MOST, "GPUs"));
            let max_clients =
                fields.read("max_clients", self.problems, |v| positive(v, MOST, "clients"));
            self.finish(fields);
            queues.extend(name.map(|name| QueueRule {
                name,
                priority: priority.map(Spanned::into_inner).unwrap_or_default(),
                policy: policy.map(Spanned::into_inner),
                max_gpus: max_gpus.map(Spanned::into_inner),
                max_clients: max_clients.map(Spanned::into_inner),
            }));
        }
        queues
    }

    pub(super) fn tenants(&mut self, top: &mut Fields<'_, '_>) -> Vec<TenantRule> {
        let (mut tenants, mut places) = (Vec::new(), Places::new());
        let mut given = 0;
        for (section, mut fields) in top.sections("tenant", self.problems) {
            let name = self.name("tenant", section, &mut fields, &mut places);
            let share = fields.read("share", self.problems, share);
            let max_gpus = fields.read("max_gpus", self.problems, |v| positive(v, MOST, "GPUs"));
            let weight = fields.read("weight", self.problems, |v| positive(v, 1_000_000, ""));
            self.finish(fields);
            if let Some(share) = &share {
                let before = given;
                given += u64::from(share.get_ref().millionths());
                if given > 1_000_000 && before <= 1_000_000 {
                    let message = format!(
                        "the tenants up to this one are guaranteed {:.3} of the GPUs, but there is only 1",
                        given as f64 / 1e6
                    );
                    let problem = Problem::new(share.span(), message);
                    self.problems.push(problem.help("lower the shares; what is left is for all"));
                }
            }
            tenants.extend(name.map(|name| TenantRule {
                name,
                share: share.map(Spanned::into_inner).unwrap_or_default(),
                max_gpus: max_gpus.map(Spanned::into_inner),
                weight: weight.map_or(NonZeroU32::MIN, Spanned::into_inner),
            }));
        }
        tenants
    }

    /// The name of a section, if it has one that no earlier one has.
    fn name(
        &mut self,
        kind: &str,
        section: Range<usize>,
        fields: &mut Fields<'_, '_>,
        places: &mut Places,
    ) -> Option<Name> {
        let named = fields.take("name").is_some();
        let name = fields.read("name", self.problems, name);
        let Some(name) = name else {
            if !named {
                let message = format!("this [[{kind}]] has no `name`");
                self.problems.push(Problem::new(section, message).help("name = \"…\""));
            }
            return None;
        };
        if let Some(first) = places.insert(name.get_ref().clone(), name.span()) {
            let message = format!("{kind} `{}` is listed twice", name.get_ref());
            self.problems.push(Problem::new(name.span(), message).related(first, "here first"));
            return None;
        }
        Some(name.into_inner())
    }
}

fn name(value: &DeValue<'_>) -> Result<Name, Fault> {
    let text = string(value)?;
    let shown = text.escape_debug().to_string();
    Name::new(text).map_err(|problem| Fault::new(format!("\"{shown}\" is no name: {problem}")))
}

fn priority(value: &DeValue<'_>) -> Result<Priority, Fault> {
    let number = integer::<i32>(value, -100, 100, "")?;
    Priority::try_from(number).map_err(|problem| Fault::new(problem.to_string()))
}

fn share(value: &DeValue<'_>) -> Result<Share, Fault> {
    let part = number(value, 0.0, 1.0, "")?;
    Share::new(part).ok_or_else(|| Fault::new(format!("{part} is not from 0 to 1")))
}

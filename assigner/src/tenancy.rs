//! Tenants and queues: from options and cluster file to the scheduler.
//!
//! Owns how `--queue` and `--tenant` are written: a name, then keys of the cluster file.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use acb_cluster_conf::{Name, Policy, Priority, QueueRule, Share, TenantRule};
use acb_core::{FairShare, QueueConfig, TenantConfig};

/// What a user's own daemon, or a job's, is told of tenants and queues.
#[derive(Clone, Debug, Default)]
pub struct Tenancy {
    /// The named queues.
    pub queues: Vec<QueueRule>,
    /// The tenants.
    pub tenants: Vec<TenantRule>,
    /// After so long, used GPU time counts half; zero: it does not count.
    pub half_life: Duration,
    /// What who comes back is owed at most.
    pub credit: Duration,
}

/// Why `--queue` or `--tenant` cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TenancyError {
    /// It does not begin with a name.
    #[error("\"{0}\" is no name: a name has 1 to 64 letters, digits and _ - . @")]
    Name(String),
    /// Something that is no key and value.
    #[error("\"{word}\" is not known here; allowed are {known}")]
    Unknown {
        /// What stands there.
        word: String,
        /// What could.
        known: &'static str,
    },
    /// A key twice.
    #[error("{0} is given twice")]
    Twice(String),
    /// A value that its key cannot have.
    #[error("{key}={value}: it must be {allowed}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it can be.
        allowed: &'static str,
    },
    /// The name is taken.
    #[error("{kind} \"{name}\" is given twice")]
    Again {
        /// "queue" or "tenant".
        kind: &'static str,
        /// The name.
        name: Name,
    },
    /// More is guaranteed than there is.
    #[error("the tenants are guaranteed {0} of the GPUs, but there is only 1; lower the shares")]
    Shares(String),
}

/// `NAME[,key=value…]`
struct Words<'a> {
    name: Name,
    keys: Vec<(&'a str, &'a str)>,
}

impl<'a> Words<'a> {
    fn of(text: &'a str, known: &'static str) -> Result<Self, TenancyError> {
        let mut words = text.split(',');
        let name = words.next().unwrap_or_default();
        let name =
            Name::new(name).map_err(|_| TenancyError::Name(name.escape_debug().to_string()))?;
        let mut seen = BTreeSet::new();
        let keys = words.map(|word| {
            let key = word.split_once('=').filter(|(key, _)| known.split(", ").any(|k| k == *key));
            let word = word.escape_debug().to_string();
            let (key, value) = key.ok_or(TenancyError::Unknown { word, known })?;
            if seen.insert(key) {
                Ok((key, value))
            } else {
                Err(TenancyError::Twice(key.to_owned()))
            }
        });
        let keys = keys.collect::<Result<_, _>>()?;
        Ok(Words { name, keys })
    }

    fn value<T: FromStr>(
        &self,
        key: &'static str,
        allowed: &'static str,
    ) -> Result<Option<T>, TenancyError> {
        let Some((_, value)) = self.keys.iter().find(|(known, _)| *known == key) else {
            return Ok(None);
        };
        let value_ = value.escape_debug().to_string();
        value.parse().map(Some).map_err(|_| TenancyError::Value { key, value: value_, allowed })
    }
}

/// What `--queue` says.
pub fn queue(text: &str) -> Result<QueueRule, TenancyError> {
    let words = Words::of(text, "priority, policy, max_gpus, max_clients")?;
    Ok(QueueRule {
        priority: words
            .value::<Priority>("priority", "a number from -100 to 100")?
            .unwrap_or_default(),
        policy: words.value::<Policy>("policy", "simple, gpu-sharing or gpu-affinity")?,
        max_gpus: words.value::<NonZeroU32>("max_gpus", "a number from 1")?,
        max_clients: words.value::<NonZeroU32>("max_clients", "a number from 1")?,
        name: words.name,
    })
}

/// What `--tenant` says.
pub fn tenant(text: &str) -> Result<TenantRule, TenancyError> {
    let words = Words::of(text, "share, max_gpus, weight")?;
    let allowed = "a number from 0 to 1";
    let part = words.value::<f64>("share", allowed)?;
    let share = part.map(|part| {
        let value = part.to_string();
        Share::new(part).ok_or(TenancyError::Value { key: "share", value, allowed })
    });
    Ok(TenantRule {
        share: share.transpose()?.unwrap_or_default(),
        max_gpus: words.value::<NonZeroU32>("max_gpus", "a number from 1")?,
        weight: words.value::<NonZeroU32>("weight", "a number from 1")?.unwrap_or(NonZeroU32::MIN),
        name: words.name,
    })
}

impl Tenancy {
    /// Checks what no single option can say.
    pub fn checked(self) -> Result<Tenancy, TenancyError> {
        let mut names = BTreeSet::new();
        let queues = self.queues.iter().map(|queue| ("queue", &queue.name));
        let tenants = self.tenants.iter().map(|tenant| ("tenant", &tenant.name));
        if let Some((kind, name)) = queues.chain(tenants).find(|named| !names.insert(*named)) {
            return Err(TenancyError::Again { kind, name: name.clone() });
        }
        let given: u64 = self.tenants.iter().map(|it| u64::from(it.share.millionths())).sum();
        if given > 1_000_000 {
            return Err(TenancyError::Shares(format!("{:.3}", given as f64 / 1e6)));
        }
        Ok(self)
    }

    /// The queues, for the scheduler.
    pub fn queue_configs(&self) -> Vec<QueueConfig> {
        let queue = |rule: &QueueRule| QueueConfig {
            priority: acb_core::Priority::new(rule.priority.number())
                .expect("both have the same bounds"),
            policy: rule.policy.map(acb_sim::terms::policy),
            max_gpus: rule.max_gpus.map(NonZeroU32::get),
            max_clients: rule.max_clients.map(NonZeroU32::get),
            ..QueueConfig::new(rule.name.as_str())
        };
        self.queues.iter().map(queue).collect()
    }

    /// The tenants of so many GPUs, for the scheduler. What rounding gave too much is taken from the last.
    pub fn tenant_configs(&self, gpus: u32) -> Vec<TenantConfig> {
        let mut left = gpus;
        let tenant = |rule: &TenantRule| {
            let limit = rule.max_gpus.map(NonZeroU32::get);
            let guarantee = rule.share.of(gpus).min(left).min(limit.unwrap_or(gpus));
            left -= guarantee;
            let weight = rule.weight.get();
            TenantConfig { guarantee, limit, weight, ..TenantConfig::new(rule.name.as_str()) }
        };
        self.tenants.iter().map(tenant).collect()
    }

    /// What a share comes to on so many GPUs, where that is not what people would expect.
    pub fn surprises(&self, gpus: u32) -> Vec<String> {
        let rules = self.tenants.iter().zip(self.tenant_configs(gpus));
        let surprise = |(rule, config): (&TenantRule, TenantConfig)| {
            let (name, share) = (&config.name, f64::from(rule.share.millionths()) / 1e6);
            match (rule.share.of(gpus), config.guarantee, config.limit) {
                (0, ..) if share > 0.0 => Some(format!(
                    "tenant \"{name}\": a share of {share} of {gpus} GPUs is not one whole GPU, so that nothing is guaranteed to it"
                )),
                (due, guarantee, Some(limit)) if due > limit => Some(format!(
                    "tenant \"{name}\": its share of {share} is {due} of {gpus} GPUs, but max_gpus = {limit}: {guarantee} are guaranteed to it"
                )),
                _ => None,
            }
        };
        rules.filter_map(surprise).collect()
    }

    /// The fair share, for the scheduler.
    pub fn fair_share(&self) -> Option<FairShare> {
        let share = FairShare { half_life: self.half_life, credit: self.credit };
        (!self.half_life.is_zero()).then_some(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_a_name_and_keys_of_the_cluster_file() {
        let rule = queue("serving,priority=50,policy=simple,max_gpus=2,max_clients=9").unwrap();
        assert_eq!((rule.name.as_str(), rule.priority.number()), ("serving", 50));
        assert_eq!((rule.policy, rule.max_gpus), (Some(Policy::Simple), NonZeroU32::new(2)));
        let rule = tenant("physics,share=0.25,weight=3").unwrap();
        assert_eq!((rule.share.of(8), rule.weight.get(), rule.max_gpus), (2, 3, None));
        assert_eq!(tenant("a").map(|rule| rule.weight.get()), Ok(1));
    }

    #[test]
    fn mistakes_are_named() {
        let refused = |text: &str| tenant(text).unwrap_err().to_string();
        assert_eq!(refused("a,share=2"), "share=2: it must be a number from 0 to 1");
        assert_eq!(refused("a,weight=0"), "weight=0: it must be a number from 1");
        assert_eq!(
            refused("a,b=1"),
            "\"b=1\" is not known here; allowed are share, max_gpus, weight"
        );
        assert_eq!(refused("a,share=1,share=1"), "share is given twice");
        assert!(refused("a b").contains("is no name"));
        assert!(queue("q,priority=101").is_err());
        let twice = Tenancy { queues: vec![queue("q").unwrap(); 2], ..Tenancy::default() };
        assert_eq!(twice.checked().unwrap_err().to_string(), "queue \"q\" is given twice");
        let tenants = vec![tenant("a,share=0.7").unwrap(), tenant("b,share=0.4").unwrap()];
        let error = Tenancy { tenants, ..Tenancy::default() }.checked().unwrap_err();
        assert!(error.to_string().contains("1.100 of the GPUs"), "{error}");
    }

    #[test]
    fn a_share_that_is_no_gpu_or_beyond_the_limit_is_told() {
        let tenants: Vec<TenantRule> =
            ["a,share=0.4", "b,share=0.5,max_gpus=2", "c", "d,max_gpus=1"]
                .map(|t| tenant(t).unwrap())
                .into();
        let tenancy = Tenancy { tenants, ..Tenancy::default() };
        let [none] = &tenancy.surprises(2)[..] else { panic!("{:?}", tenancy.surprises(2)) };
        assert!(none.contains("\"a\": a share of 0.4 of 2 GPUs is not one whole GPU"), "{none}");
        let [less] = &tenancy.surprises(8)[..] else { panic!("{:?}", tenancy.surprises(8)) };
        assert!(
            less.contains("\"b\"") && less.contains("is 4 of 8 GPUs, but max_gpus = 2"),
            "{less}"
        );
        assert_eq!(tenancy.surprises(4), Vec::<String>::new());
    }

    #[test]
    fn shares_never_exceed_the_gpus() {
        let tenants: Vec<TenantRule> =
            ["a,share=0.5", "b,share=0.495", "c,share=0.005"].map(|t| tenant(t).unwrap()).into();
        let tenancy = Tenancy { tenants, ..Tenancy::default() };
        let sum = |gpus| tenancy.tenant_configs(gpus).iter().map(|it| it.guarantee).sum::<u32>();
        assert!((1..=64).all(|gpus| sum(gpus) <= gpus));
        assert_eq!(sum(8), 7);
    }
}

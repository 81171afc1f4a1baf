//! Tenants: whose quota and whose share of the GPUs a client counts for.
//!
//! Owns: what a tenant is told to the scheduler as. Does not own: where the names come from (a Slurm account, a
//! user, `tenant=`).

use std::time::Duration;

/// A tenant with a quota or a weight of its own. The tenant without a name (`""`) is everybody who names none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantConfig {
    /// Its name.
    pub name: String,
    /// GPUs that it gets whenever it wants them, taken back from those who borrowed them.
    pub guarantee: u32,
    /// GPUs that it holds at most, idle ones included; `None`: all.
    pub limit: Option<u32>,
    /// Its part of what is beyond the guarantees: twice the weight, twice the GPU time.
    pub weight: u32,
}

impl TenantConfig {
    /// A tenant without guarantee or limit, of weight 1.
    #[must_use]
    pub fn new(name: impl Into<String>) -> TenantConfig {
        TenantConfig { name: name.into(), guarantee: 0, limit: None, weight: 1 }
    }
}

/// How GPU time that was used counts against a tenant, and against a client within its tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FairShare {
    /// After this long, what was used counts half.
    pub half_life: Duration,
    /// GPU time that a tenant or client that comes back may be owed at most, for what it did not use meanwhile.
    pub credit: Duration,
}

impl Default for FairShare {
    fn default() -> Self {
        FairShare { half_life: Duration::from_secs(3600), credit: Duration::ZERO }
    }
}

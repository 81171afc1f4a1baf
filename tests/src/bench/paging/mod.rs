//! Figures of paged GPU memory: programs whose memory together exceeds the GPU's.
//!
//! Owns: what is measured, on which scaled GPU. Does not own: the assigner ([`super::outside`]), the
//! programs (tests/workloads).
//!
//! | module | figures |
//! | --- | --- |
//! | [`switch`] | `page_out_share`, `page_in_share`, `switch_ratio`, `pin_in_switch_ms`, `clean_bytes`, `clean_time_ratio` |
//! | [`sharing`] | `pair_50_50`, `pair_90_10`, `b2_coarse`, `oversub_150_on_40` |
//! | [`soak`] | `swap_soak_wrong_bytes` |
//! | [`solo`] | `solo_added_percent` |

pub mod crowd;
pub mod gpu;
pub mod sharing;
pub mod soak;
pub mod solo;
pub mod switch;

use anyhow::Result;

use self::gpu::{CHUNK, Scaled};
use super::outside::Outside;
use crate::lab::Prefix;

/// An assigner for one scaled GPU, told of the chunk that is scaled with it.
fn assigner(prefix: &Prefix, gpu: &Scaled, options: &[String]) -> Result<Outside> {
    let mut all: Vec<String> = vec![
        "--context-mib".to_owned(),
        (gpu.context >> 20).to_string(),
        "--chunk-mib".to_owned(),
        (CHUNK >> 20).to_string(),
    ];
    all.extend_from_slice(options);
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    Outside::start(prefix, &gpu.configuration(), &all)
}

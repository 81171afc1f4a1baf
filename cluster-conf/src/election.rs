//! Which node of a job is its controller, and at which ports it may listen.
//!
//! Owns two formulas that every assigner of the job computes for itself and must agree on. Asks nobody.

use crate::site::Network;

/// How many ports a controller may try.
pub const CANDIDATE_PORTS: u16 = 8;

/// The controller of a job: the node that the cluster file names, if the job has it, else the first one.
///
/// `None` only for a job without nodes.
pub fn controller<'a>(nodes: &'a [String], preferred: Option<&str>) -> Option<&'a str> {
    nodes
        .iter()
        .find(|node| Some(node.as_str()) == preferred)
        .or_else(|| nodes.first())
        .map(String::as_str)
}

/// The ports at which a job's controller listens: the first free one of these, in this order.
///
/// The range of the cluster file is cut into `slots = ports / 8` runs of eight, and job j has run `j mod slots`:
/// `base_port + 8·(j mod slots) + 0…7`. So jobs that follow each other never try the same ports.
pub fn candidate_ports(job_id: u32, network: Network) -> [u16; CANDIDATE_PORTS as usize] {
    let slots = u32::from(network.ports() / CANDIDATE_PORTS);
    let first = u32::from(network.base_port()) + u32::from(CANDIDATE_PORTS) * (job_id % slots);
    std::array::from_fn(|i| {
        u16::try_from(first + i as u32).expect("Network holds base_port + ports <= 65536")
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nodes(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn the_named_node_is_preferred_only_where_the_job_has_it() {
        let job = nodes(&["n3", "n4", "n5"]);
        assert_eq!(controller(&job, None), Some("n3"));
        assert_eq!(controller(&job, Some("n5")), Some("n5"));
        assert_eq!(controller(&job, Some("head")), Some("n3"));
        assert_eq!(controller(&[], Some("head")), None);
    }

    #[test]
    fn ports_follow_the_documented_formula() {
        let network = Network::new(21000, 8000).unwrap();
        assert_eq!(
            candidate_ports(0, network),
            [21000, 21001, 21002, 21003, 21004, 21005, 21006, 21007]
        );
        assert_eq!(candidate_ports(999, network)[0], 21000 + 8 * 999);
        assert_eq!(candidate_ports(1000, network)[0], 21000);
        assert_eq!(candidate_ports(4242, network)[7], 21000 + 8 * 242 + 7);
    }

    proptest! {
        #[test]
        fn ports_stay_in_the_range(job: u32, base in 1024u16..=65528, ports in 8u16..=64512) {
            if let Some(network) = Network::new(base, ports) {
                let candidates = candidate_ports(job, network);
                for port in candidates {
                    prop_assert!(port >= base && u32::from(port) < u32::from(base) + u32::from(ports));
                }
                prop_assert!(candidates.windows(2).all(|pair| pair[0] + 1 == pair[1]));
            }
        }
    }
}

//! `CUDA_VISIBLE_DEVICES` of a client: which of the GPUs that it is given the program wants to see.
//!
//! The launcher puts ordinals there ("0,1": as many as the client gets), for programs take the entries for numbers. What the program
//! makes of them before cuInit is relative to what it has been given, as below a container. The driver is shown UUIDs.
//!
//! Owns: reading the variable as a driver does. Does not own: the environment itself, nor which GPUs the client is bound to.

/// What the variable asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// All that the client is given.
    All,
    /// None: there is nothing to schedule.
    Hidden,
    /// These alone, in this order.
    These(Vec<Entry>),
}

/// One GPU of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// By its place among those that are given.
    Ordinal(usize),
    /// By its UUID, or the beginning of that.
    Named(String),
}

impl Choice {
    /// The driver's rules: the first entry that is wrong ends the list, and a GPU named twice makes it empty. But where the first one is
    /// a number beyond what is given, somebody has numbered the node's GPUs, of which this client gets others: then as many as it
    /// names count, from the first on.
    pub(crate) fn read(value: Option<&str>, given: usize) -> Choice {
        let Some(value) = value else { return Choice::All };
        let read: Vec<Entry> = value.split(',').map_while(|word| entry(word.trim())).collect();
        let is_there = |entry: &&Entry| match entry {
            Entry::Ordinal(at) => *at < given,
            Entry::Named(_) => true,
        };
        let mut entries: Vec<Entry> = read.iter().take_while(is_there).cloned().collect();
        if entries.is_empty() {
            entries = (0..read.len().min(given)).map(Entry::Ordinal).collect();
        }
        let repeats = (1..entries.len()).any(|at| entries[..at].contains(&entries[at]));
        if entries.is_empty() || repeats {
            return Choice::Hidden;
        }
        match entries.iter().cloned().eq((0..given).map(Entry::Ordinal)) {
            true => Choice::All,
            false => Choice::These(entries),
        }
    }

    /// By what number the program knows its device at a place of the list, if it knows one.
    pub(crate) fn ordinal(&self, device: usize) -> Option<usize> {
        match self {
            Choice::All => Some(device),
            Choice::Hidden => None,
            Choice::These(entries) => match entries.get(device)? {
                Entry::Ordinal(at) => Some(*at),
                Entry::Named(_) => None,
            },
        }
    }

    /// The UUIDs of what is asked for, of those that are given. What is not among them stands for itself.
    pub(crate) fn among(&self, given: &[String]) -> Vec<String> {
        match self {
            Choice::All => given.to_vec(),
            Choice::Hidden => Vec::new(),
            Choice::These(entries) => entries.iter().filter_map(|entry| entry.of(given)).collect(),
        }
    }
}

impl Entry {
    fn of(&self, given: &[String]) -> Option<String> {
        match self {
            Entry::Ordinal(at) => given.get(*at).cloned(),
            Entry::Named(name) => {
                let begins = |uuid: &&String| {
                    uuid.get(..name.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(name))
                };
                let mut found = given.iter().filter(begins);
                match (found.next(), found.next()) {
                    (Some(uuid), None) => Some(uuid.clone()),
                    _ => Some(name.clone()),
                }
            }
        }
    }
}

fn entry(word: &str) -> Option<Entry> {
    if word.starts_with("GPU-") || word.starts_with("MIG-") {
        return Some(Entry::Named(word.to_owned()));
    }
    // Like strtol: leading digits count, what follows them does not.
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    word[..digits].parse().ok().map(Entry::Ordinal)
}

/// What stands in the variable for so many GPUs.
pub(crate) fn ordinals(gpus: u32) -> String {
    (0..gpus).map(|ordinal| ordinal.to_string()).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn these(value: &str, given: usize) -> Vec<usize> {
        match Choice::read(Some(value), given) {
            Choice::All => (0..given).collect(),
            Choice::Hidden => Vec::new(),
            Choice::These(entries) => entries
                .into_iter()
                .map(|entry| match entry {
                    Entry::Ordinal(at) => at,
                    Entry::Named(name) => panic!("{name} in {value}"),
                })
                .collect(),
        }
    }

    #[test]
    fn the_place_holder_and_its_absence_mean_all() {
        assert_eq!(Choice::read(None, 2), Choice::All);
        for gpus in 1..4 {
            assert_eq!(Choice::read(Some(&ordinals(gpus)), gpus as usize), Choice::All);
        }
    }

    #[test]
    fn a_narrower_list_is_relative_to_what_is_given() {
        assert_eq!(these("1", 2), [1]);
        assert_eq!(these(" 1 , 0", 2), [1, 0]);
        assert_eq!(these("1,7,0", 2), [1]);
        assert_eq!(these("1,-1", 2), [1]);
    }

    #[test]
    fn hidden_is_hidden() {
        for value in ["", "-1", "NoDevFiles", "none", "0,0"] {
            assert_eq!(Choice::read(Some(value), 2), Choice::Hidden, "{value}");
        }
    }

    /// `CUDA_VISIBLE_DEVICES=$SLURM_LOCALID` in each task, each of which gets a GPU of its own.
    #[test]
    fn numbers_of_the_node_count_as_how_many() {
        assert_eq!(Choice::read(Some("3"), 1), Choice::All);
        assert_eq!(these("6,7", 4), [0, 1]);
        assert_eq!(Choice::read(Some("5,6,7"), 2), Choice::All);
    }

    #[test]
    fn names_are_found_by_their_beginning() {
        let given = ["GPU-aa11".to_owned(), "GPU-aa22".to_owned()];
        let among = |value| Choice::read(Some(value), 2).among(&given);
        assert_eq!(among("1"), ["GPU-aa22"]);
        assert_eq!(among("GPU-AA2,0"), ["GPU-aa22", "GPU-aa11"]);
        assert_eq!(among("GPU-aa"), ["GPU-aa"], "of two it is neither");
        assert_eq!(among("GPU-bb33"), ["GPU-bb33"]);
        assert_eq!(among("0,1"), given);
    }
}

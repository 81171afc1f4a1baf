//! `CUDA_VISIBLE_DEVICES` as the real driver reads it: indices or UUID prefixes
//! separated by commas; the first entry that is wrong ends the list; a GPU named
//! twice makes the whole list empty; an empty value hides all GPUs.

use crate::identity::Uuid;

/// The indices of the GPUs that a process with this value sees, in its order.
#[must_use]
pub fn visible(value: Option<&str>, uuids: &[Uuid]) -> Vec<usize> {
    let Some(value) = value else {
        return (0..uuids.len()).collect();
    };
    let mut seen = Vec::new();
    for entry in value.split(',') {
        let Some(index) = find(entry.trim(), uuids) else {
            break;
        };
        if seen.contains(&index) {
            return Vec::new();
        }
        seen.push(index);
    }
    seen
}

fn find(entry: &str, uuids: &[Uuid]) -> Option<usize> {
    if entry.starts_with("GPU-") {
        let mut matching = (0..uuids.len()).filter(|&at| {
            let uuid = uuids[at].to_string();
            uuid.len() >= entry.len() && uuid[..entry.len()].eq_ignore_ascii_case(entry)
        });
        // A prefix that fits several GPUs names none.
        return matching.next().filter(|_| matching.next().is_none());
    }
    // Like strtol: leading digits count, what follows them does not.
    let digits = entry.bytes().take_while(u8::is_ascii_digit).count();
    let index: usize = entry[..digits].parse().ok()?;
    (index < uuids.len()).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Vec<Uuid> {
        (0..3).map(|at| Uuid::of("test", at)).collect()
    }

    #[test]
    fn unset_shows_all_and_empty_none() {
        assert_eq!(visible(None, &three()), [0, 1, 2]);
        assert!(visible(Some(""), &three()).is_empty());
        assert!(visible(Some("-1"), &three()).is_empty());
        assert!(visible(Some("NoDevFiles"), &three()).is_empty());
    }

    #[test]
    fn indices_reorder_and_a_wrong_one_ends_the_list() {
        assert_eq!(visible(Some("2,0"), &three()), [2, 0]);
        assert_eq!(visible(Some(" 2 , 1"), &three()), [2, 1]);
        assert_eq!(visible(Some("1,7,0"), &three()), [1]);
        assert_eq!(visible(Some("1,-1,0"), &three()), [1]);
        assert!(visible(Some("0,0"), &three()).is_empty());
    }

    #[test]
    fn uuids_and_their_prefixes() {
        let uuids = three();
        let full = uuids[1].to_string();
        assert_eq!(visible(Some(&full), &uuids), [1]);
        assert_eq!(visible(Some(&full[..12]), &uuids), [1]);
        assert_eq!(visible(Some(&format!("{full},0")), &uuids), [1, 0]);
        assert!(visible(Some("GPU-"), &uuids).is_empty());
        assert!(visible(Some("GPU-ffffffffff"), &uuids).is_empty());
    }
}

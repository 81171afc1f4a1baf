//! Hostlists: what is read, what is refused and where, and that writing and reading agree.

use proptest::prelude::*;

use super::*;

#[track_caller]
fn expands(list: &str, names: &str) {
    assert_eq!(expand(list).unwrap().join(" "), names, "{list}");
}

#[track_caller]
fn refused(list: &str, at: usize, problem: HostlistProblem) {
    assert_eq!(expand(list), Err(HostlistError { at, problem }), "{list}");
}

#[test]
fn names_ranges_and_zeros() {
    expands("n1", "n1");
    expands("n[1-3,07-09],m2", "n1 n2 n3 n07 n08 n09 m2");
    expands("n[9-011]", "n9 n10 n11");
    expands("n[001-3]", "n001 n002 n003");
    expands("n[1,1]", "n1 n1");
    expands("[1-2]", "1 2");
    expands("gpu-a.b_c", "gpu-a.b_c");
}

#[test]
fn what_stands_behind_the_brackets_stays() {
    expands("n[1-2]-ib", "n1-ib n2-ib");
}

#[test]
fn several_brackets_vary_as_slurm_varies_them() {
    expands("m[1-2]x[0-1]", "m1x0 m1x1 m2x0 m2x1");
    expands("n[1-2][3-4]", "n13 n14 n23 n24");
    expands("a[0-1]b[0-1]c[0-1]", "a0b0c0 a0b0c1 a1b0c0 a1b0c1 a0b1c0 a0b1c1 a1b1c0 a1b1c1");
}

#[test]
fn errors_have_their_place() {
    refused("", 0, HostlistProblem::EmptyName);
    refused("a,,b", 2, HostlistProblem::EmptyName);
    refused("a,", 2, HostlistProblem::EmptyName);
    refused("n[1-3", 1, HostlistProblem::Unclosed);
    refused("n1]", 2, HostlistProblem::Unopened);
    refused("n[1,[2]]", 4, HostlistProblem::Nested);
    refused("n[]", 2, HostlistProblem::BadRange);
    refused("n[1,x]", 4, HostlistProblem::BadRange);
    refused("n[1-2-3]", 2, HostlistProblem::BadRange);
    refused("n[2,3-1]", 4, HostlistProblem::Downwards);
    refused("n[1-9999999999999999999]", 2, HostlistProblem::TooManyDigits);
    refused("n 1", 1, HostlistProblem::BadCharacter(' '));
    refused("a,né", 3, HostlistProblem::BadCharacter('é'));
    refused(&"n".repeat(256), 0, HostlistProblem::NameTooLong);
    assert_eq!(
        expand("n[3-1]").unwrap_err().to_string(),
        "at character 3: the range goes downwards"
    );
}

#[test]
fn explosions_are_refused_before_they_happen() {
    assert_eq!(expand("n[1-65536]").unwrap().len(), MAX_NAMES);
    refused("n[1-65537]", 0, HostlistProblem::TooMany);
    refused("a,n[1-65536]", 2, HostlistProblem::TooMany);
    refused("n[0-999][0-999][0-999][0-999][0-999][0-999][0-999]", 0, HostlistProblem::TooMany);
    refused("n[0-999999999999999999][0-999999999999999999]", 0, HostlistProblem::TooMany);
}

#[test]
fn neighbours_are_put_together() {
    let compressed = |names: &str| compress(&names.split(' ').collect::<Vec<_>>());
    assert_eq!(compressed("n1 n2 n3 n10"), "n[1-3,10]");
    assert_eq!(compressed("n09 n10 n11"), "n[09-11]");
    assert_eq!(compressed("n9 n10"), "n[9-10]");
    assert_eq!(compressed("n9 n010"), "n[9,010]");
    assert_eq!(compressed("a b a"), "a,b,a");
    assert_eq!(compressed("n3 n2 n1"), "n[3,2,1]");
    assert_eq!(compressed("n1 m1 n2"), "n1,m1,n2");
    assert_eq!(compressed("n1-ib n2-ib"), "n1-ib,n2-ib");
    assert_eq!(compress::<&str>(&[]), "");
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in ".{0,200}") {
        if let Err(error) = expand(&text) {
            prop_assert!(error.at <= text.len() && text.is_char_boundary(error.at));
        }
    }

    #[test]
    fn anything_that_looks_like_a_list_is_read_or_refused(text in r"[a-c0-3\[\],-]{0,40}") {
        if let Ok(names) = expand(&text) {
            prop_assert!(names.len() <= MAX_NAMES);
            prop_assert!(names.iter().all(|name| name.len() <= MAX_NAME));
        }
    }

    #[test]
    fn compressed_names_expand_to_themselves(
        names in prop::collection::vec(r"[a-c]{0,2}[a-c.-][0-9]{0,3}|n[0-9]{1,20}", 1..40),
    ) {
        prop_assert_eq!(expand(&compress(&names)).unwrap(), names);
    }

    #[test]
    fn runs_compress_and_expand(start in 0u64..2000, count in 1u64..300, width in 0usize..6) {
        let names: Vec<_> = (start..start + count).map(|n| format!("node{n:0width$}")).collect();
        let list = compress(&names);
        prop_assert!(list.len() < 40, "{}", list);
        prop_assert_eq!(expand(&list).unwrap(), names);
    }
}

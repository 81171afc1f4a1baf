//! `agarun`, as far as it needs no GPU.

use std::process::Output;

use crate::support::{Home, errors, words};

fn agarun(home: &Home, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = home.command(env!("CARGO_BIN_EXE_agarun"));
    command.env("ACB_LIB_DIR", home.folder.path()).envs(variables.iter().copied());
    command.args(arguments).output().unwrap()
}

#[test]
fn errors_are_told_with_1() {
    let home = Home::new();
    type Variables<'a> = &'a [(&'a str, &'a str)];
    let cases: [(Variables<'_>, &[&str], &str); 6] = [
        (&[], &[], "no program given"),
        (&[], &["no-such-program"], "not found in PATH"),
        (&[], &["/etc/passwd"], "not executable"),
        (&[("AGA_ENABLE_AUTO", "x")], &["true"], "AGA_ENABLE_AUTO is `x`"),
        (&[("AGA_REQUEST_DEVICE", "tpu")], &["true"], "AGA_REQUEST_DEVICE is `tpu`"),
        (&[], &["true"], "no contact with a GPU assigner"),
    ];
    for (variables, arguments, message) in cases {
        let output = agarun(&home, variables, arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let text = errors(&output);
        assert!(text.starts_with("Error: ") && text.contains(message), "{text}");
    }
}

#[test]
fn the_exit_code_is_the_programs() {
    let home = Home::new();
    let run = |script: &str| agarun(&home, &[], &["--without-aga", "--", "sh", "-c", script]);
    assert_eq!(run("exit 7").status.code(), Some(7));
    // Not INT: a test that runs in the background of a shell has it ignored.
    assert_eq!(run("kill -TERM $$").status.code(), Some(143));
    assert_eq!(run("kill -KILL $$").status.code(), Some(137));
    let history = std::fs::read_to_string(home.path(".acb/job-history.log")).unwrap();
    let last: serde_json::Value = serde_json::from_str(history.lines().last().unwrap()).unwrap();
    assert_eq!((&last["exit_code"], &last["mode"]), (&137.into(), &"without".into()));
}

#[test]
fn the_environment_is_that_of_a_client() {
    let home = Home::new();
    home.start(&[]);
    std::fs::write(home.path("libcuda.so.1"), "").unwrap();
    let show = "echo $CUDA_VISIBLE_DEVICES; echo $ACB_GPUS; echo $ACB_SOCKET; echo $ACB_UUIDS";
    let output = agarun(&home, &[], &["--gpus", "2", "sh", "-c", show]);
    let text = words(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "0,1", "{text}{}", errors(&output));
    assert_eq!(lines[3].split(',').filter(|uuid| uuid.starts_with("GPU-")).count(), 2, "{text}");
    assert_eq!((lines[1], lines[2]), ("2", home.socket().to_str().unwrap()));
    let output = agarun(&home, &[], &["--gpus", "3", "true"]);
    assert!(errors(&output).contains("3 GPUs wanted"), "{}", errors(&output));
    let output = agarun(
        &home,
        &[("AGA_REQUEST_DEVICE", "cpu")],
        &["sh", "-c", "echo [$CUDA_VISIBLE_DEVICES]"],
    );
    assert_eq!(words(&output), "[]\n");
}

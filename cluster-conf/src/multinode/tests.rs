//! ACB's multinode.toml: what is read, what is refused.

use proptest::prelude::*;

use super::*;

const GOOD: &str = r#"
[node2]
type = "executor"
ipaddr = "10.0.0.2"
port = 11234
logfile = "/home/u/.acb/gpu-assigner-node2.log"
pidfile = "/home/u/.acb/gpu-assigner-node2.pid"

[node1]
type = "controller"
ipaddr = "10.0.0.1"
port = 11235
"#;

#[track_caller]
fn messages(text: &str) -> Vec<String> {
    let error = Multinode::parse("multinode.toml", text).expect_err(text);
    error.problems().map(|p| format!("{}:{}: {}", p.line, p.column, p.message)).collect()
}

#[test]
fn hosts_in_any_order() {
    let hosts = Multinode::parse("t", GOOD).unwrap();
    assert_eq!(hosts.controller().name, "node1");
    assert_eq!(hosts.controller().log_file, None);
    assert_eq!(
        hosts.executors(),
        [Host {
            name: "node2".into(),
            role: Role::Executor,
            address: "10.0.0.2".into(),
            port: 11234,
            log_file: Some("/home/u/.acb/gpu-assigner-node2.log".into()),
            pid_file: Some("/home/u/.acb/gpu-assigner-node2.pid".into()),
        }]
    );
    assert_eq!(hosts.host("node2").unwrap().port, 11234);
    assert_eq!(hosts.host("node3"), None);
}

#[test]
fn host_names_with_dots_need_no_quotes() {
    let text =
        GOOD.replace("[node1]", "[node1.example.org]").replace("[node2]", "[node2.example.org]");
    let hosts = Multinode::parse("t", &text).unwrap();
    assert_eq!(hosts.controller().name, "node1.example.org");
    assert_eq!(hosts.executors()[0].name, "node2.example.org");
    let quoted = GOOD.replace("[node1]", "[\"node1.example.org\"]");
    assert_eq!(Multinode::parse("t", &quoted).unwrap().controller().name, "node1.example.org");
}

#[test]
fn exactly_one_controller() {
    assert_eq!(
        messages(&GOOD.replace("controller", "executor")),
        ["1:1: no host has type = \"controller\""]
    );
    assert_eq!(
        messages(&GOOD.replace("executor", "controller")),
        ["2:2: `node2` is a second controller"]
    );
    assert_eq!(messages(""), ["1:1: no host has type = \"controller\""]);
}

#[test]
fn all_mistakes_at_once() {
    let text = "[a]\ntype = \"boss\"\nipaddr = \"10.0.0.1:11\"\nport = 0\nlog = \"x\"\n[b]\ntype = \"executor\"\n";
    assert_eq!(
        messages(text),
        [
            "2:8: `a.type`: \"boss\" is not known",
            "3:10: `a.ipaddr`: \"10.0.0.1:11\" is not an IP address",
            "4:8: `a.port`: 0 is out of range",
            "5:1: unknown key `log` in [a]",
            "6:2: host `b` lacks `ipaddr`, `port`",
        ]
    );
    assert_eq!(messages("port = 5\n")[0], "1:1: `port` stands outside a host's table");
}

#[test]
fn one_place_for_each() {
    let text = GOOD.replace("10.0.0.2", "10.0.0.1").replace("11235", "11234");
    assert_eq!(messages(&text).len(), 1);
    assert!(messages(&text)[0].contains("`node1` and `node2` have the same address and port"));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(\\PC|\n){0,200}") {
        if let Err(error) = Multinode::parse("t", &text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn anything_near_the_truth_is_read_or_refused(
        lines in prop::collection::vec(prop::sample::select(vec![
            "[a]", "[b.c]", "[[a]]", "[a.b.c]", "type = \"executor\"", "type = \"controller\"", "type = 1",
            "ipaddr = \"1.2.3.4\"", "ipaddr = {}", "port = 1", "port = -1", "logfile = \"\"", "x", "= 1", "[",
        ]), 0..20),
    ) {
        if let Err(error) = Multinode::parse("t", &lines.join("\n")) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}

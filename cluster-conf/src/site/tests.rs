//! The cluster file: defaults, rules, words, and that the reference page says the same.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::diagnostics::Style;
use crate::estimators::Select;

#[track_caller]
fn good(text: &str) -> SiteConfig {
    SiteConfig::parse("cluster.toml", text).unwrap_or_else(|error| panic!("{error}"))
}

/// `line:column: message` of every problem.
#[track_caller]
fn problems(text: &str) -> Vec<String> {
    let error = SiteConfig::parse("cluster.toml", text).expect_err(text);
    error.problems().map(|p| format!("{}:{}: {}", p.line, p.column, p.message)).collect()
}

#[test]
fn an_empty_file_is_all_defaults() {
    assert_eq!(good(""), SiteConfig::default());
    assert_eq!(
        good(
            "[paths]\n[driver]\n[environment]\n[scheduler]\n[failure]\n[network]\n[controller]\n[comment]\n"
        ),
        SiteConfig::default()
    );
    let site = SiteConfig::default();
    assert_eq!(site.paths.run_dir.as_str(), "/run/acb");
    assert_eq!(site.scheduler.policy, Policy::GpuAffinity);
    assert_eq!((site.network.base_port(), site.network.ports()), (21_000, 8_000));
}

#[test]
fn the_report_shows_place_line_and_underline() {
    let error = SiteConfig::parse("/etc/acb/cluster.toml", "[scheduler]\npolcy = \"simple\"\n")
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "error: unknown key `polcy` in [scheduler]\n --> /etc/acb/cluster.toml:2:1\n  |\n2 | polcy = \"simple\"\n  | ^^^^^ did you mean `policy`?"
    );
    assert!(error.render(Style::Terminal).contains("\u{1b}["));
}

#[test]
fn all_problems_come_at_once_in_the_order_of_the_file() {
    assert_eq!(
        problems(
            "[paths]\nrun_dir = \"run\"\nlib_dir = 5\n[scheduler]\nquantum_ms = 0\npolicy = \"fifo\"\n\
             [environment]\nLD_PRELOAD = \"x\"\nSLURM_JOB_ID = \"1\"\nACB_SOCKET = \"s\"\n\"A-B\" = \"\"\nNUL = \"\\u0000\"\nN = 1\n\
             [comment]\nenabled = \"yes\"\n[nodes]\n"
        ),
        [
            "2:11: `paths.run_dir`: the path is not absolute",
            "3:11: `paths.lib_dir`: a string is needed, not a whole number",
            "5:14: `scheduler.quantum_ms`: 0 is out of range",
            "6:10: `scheduler.policy`: \"fifo\" is not known",
            "8:1: `environment.LD_PRELOAD`: variables of the dynamic loader are not for the cluster file: slurm-acb sets LD_PRELOAD and LD_LIBRARY_PATH itself",
            "9:1: `environment.SLURM_JOB_ID`: Slurm sets this variable itself",
            "10:1: `environment.ACB_SOCKET`: slurm-acb sets this variable itself",
            "11:1: `environment.A-B`: not a name of an environment variable: letters, digits and `_`, no digit first",
            "12:1: `environment.NUL`: the value contains NUL",
            "13:5: `environment.N`: a string is needed, not a whole number",
            "15:11: `comment.enabled`: true or false is needed, not a string",
            "16:2: unknown key `nodes` at the top of the file",
        ]
    );
}

#[test]
fn syntax_errors_have_their_place() {
    let found = problems("[paths\nrun_dir = \"/run/acb\"\n[scheduler]\npolicy = simple\n");
    assert!(found[0].starts_with("1:7: "), "{found:?}");
    assert!(problems("a = 1\na = 2\n")[0].starts_with("2:1: "));
    assert!(problems("x = \"")[0].starts_with("1:"));
}

#[test]
fn sections_of_the_wrong_kind() {
    assert_eq!(problems("paths = 5\n"), ["1:9: `paths` is a section, not a whole number"]);
    assert_eq!(
        problems("[node]\nname = \"n1\"\n"),
        ["1:1: `node` is a list of sections, not a table"]
    );
    assert_eq!(problems("node = [1]\n"), ["1:9: `node` is a list of sections, not a whole number"]);
}

#[test]
fn ports_end_at_65535() {
    good("[network]\nbase_port = 57536\n");
    good("[network]\nbase_port = 65528\nports = 8\n");
    assert_eq!(
        problems("[network]\nbase_port = 60000\n"),
        ["2:13: the ports 60000 to 67999 go beyond 65535, the last there is"]
    );
    assert_eq!(
        problems("[network]\nports = 64000\n")[0],
        "2:9: the ports 21000 to 84999 go beyond 65535, the last there is"
    );
    assert_eq!(problems("[network]\nbase_port = 80\nports = 7\n").len(), 2);
    assert_eq!(
        problems("[network]\nbase_port = 99999999999999999999\n"),
        ["2:13: `network.base_port`: 99999999999999999999 is out of range"]
    );
    assert_eq!(good("[network]\nbase_port = 0x7_530\n").network.base_port(), 30_000);
}

#[test]
fn the_quantum_outlasts_idleness() {
    good("[scheduler]\nquantum_ms = 1\nidle_us = 1000\n");
    assert_eq!(
        problems("[scheduler]\nquantum_ms = 1\n"),
        [
            "2:14: `scheduler.idle_us` (2000 µs) is longer than the quantum (1000 µs), so that no idle GPU would be given back before its end"
        ]
    );
}

#[test]
fn nodes_have_names_and_addresses_of_their_own() {
    let site = good(
        "[controller]\nnode = \"n2\"\n[[node]]\nname = \"n[1-2]\"\naddress = \"%n-ib\"\n[[node]]\nname = \"m\"\naddress = \"fe80::1\"\n[[node]]\nname = \"o[1-2]\"\n",
    );
    assert_eq!(site.controller.as_deref(), Some("n2"));
    assert_eq!(site.nodes.names().collect::<Vec<_>>(), ["m", "n1", "n2", "o1", "o2"]);
    assert_eq!(site.nodes.address("n2"), "n2-ib");
    assert_eq!(site.nodes.address("m"), "fe80::1");
    assert_eq!(site.nodes.address("o1"), "o1");
    assert_eq!(site.nodes.address("elsewhere"), "elsewhere");

    assert_eq!(
        problems(
            "[[node]]\nname = \"n[1-4]\"\naddress = \"10.0.0.1\"\n[[node]]\n[[node]]\nname = \"n[3-\"\n[[node]]\nname = \"n4\"\naddress = \"a:80\"\n"
        ),
        [
            "3:11: 4 nodes cannot share one address",
            "4:1: this [[node]] has no `name`",
            "6:10: `node.name`: \"n[3-\", at character 2: this bracket is not closed",
            "8:8: node `n4` is listed twice",
            "9:11: `node.address`: \"a:80\" is neither a host name nor an IP address",
        ]
    );
    assert_eq!(problems("[[node]]\nname = \"n1,n1\"\n"), ["2:8: node `n1` is listed twice"]);
    assert_eq!(
        problems("[[node]]\nname = \"n[1-65536]\"\n[[node]]\nname = \"m\"\n"),
        ["4:8: the file lists more than 65536 nodes"]
    );
}

#[test]
fn the_controller_is_a_node() {
    assert_eq!(good("[controller]\nnode = \"head\"\n").controller.as_deref(), Some("head"));
    assert_eq!(
        problems("[controller]\nnode = \"n9\"\n[[node]]\nname = \"n[1-4]\"\n"),
        ["2:8: `controller.node`: no [[node]] is named `n9`"]
    );
    // A list that cannot be read may have held it.
    assert_eq!(problems("[controller]\nnode = \"n9\"\n[[node]]\nname = \"n[\"\n").len(), 1);
    assert_eq!(
        problems("[controller]\nnode = \"n[1-2]\"\n"),
        ["2:8: `controller.node`: \"n[1-2]\" is not the name of one node"]
    );
}

#[test]
fn run_folders_leave_room_for_sockets() {
    let run_dir = |length: usize| format!("/{}", "r".repeat(length - 1));
    // 107 - "/".len() - 16 - "/4294967295/client.sock".len()
    good(&format!("[paths]\nrun_dir = \"{}\"\n", run_dir(67)));
    assert_eq!(
        problems(&format!("[paths]\nrun_dir = \"{}\"\n", run_dir(68))),
        ["2:11: `paths.run_dir` is 1 characters too long for the sockets that lie under it"]
    );
    good(&format!("[paths]\nrun_dir = \"{}\"\n[[node]]\nname = \"n[1-9]\"\n", run_dir(81)));
    assert_eq!(problems(&format!("[[node]]\nname = \"{}\"\n", "n".repeat(76))).len(), 1);
}

const PAGE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cluster-file.md"));
const MAN: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../man/acb-cluster.toml.5"));

/// The last TOML block of the reference page.
fn example() -> &'static str {
    let start = PAGE.rfind("```toml\n").expect("the page has an example") + "```toml\n".len();
    let end = start + PAGE[start..].find("```").expect("the example ends");
    &PAGE[start..end]
}

#[test]
fn estimators_have_bounds() {
    let site = good("[scheduler.estimator]\ndefault_ms = 5\n[scheduler.peaks]\nselect = \"max\"\n");
    assert_eq!(site.scheduler.estimator.default_ms, 5);
    assert_eq!(
        (site.scheduler.peaks.select, site.scheduler.peaks.ratio.value()),
        (Select::Max, 1.1)
    );
    assert_eq!(
        problems(
            "[scheduler.estimator]\ninterval = 0\npercentile = 1.5\n[scheduler.peaks]\nratio = 0\nselect = \"mid\"\n\
             defaultms = 1\n"
        ),
        [
            "2:12: `scheduler.estimator.interval`: 0 is out of range",
            "3:14: `scheduler.estimator.percentile`: 1.5 is out of range",
            "5:9: `scheduler.peaks.ratio`: 0 is out of range",
            "6:10: `scheduler.peaks.select`: \"mid\" is not known",
            "7:1: unknown key `defaultms` in [scheduler.peaks]",
        ]
    );
}

#[test]
fn tenants_share_what_there_is() {
    let site = good(
        "[[tenant]]\nname = \"a\"\nshare = 0.25\nmax_gpus = 4\n[[tenant]]\nname = \"b\"\nshare = 0.75\nweight = 2\n\
         [[queue]]\nname = \"q\"\npriority = -5\npolicy = \"simple\"\nmax_gpus = 1\nmax_clients = 9\n",
    );
    assert_eq!(site.tenants.iter().map(|tenant| tenant.share.of(8)).collect::<Vec<_>>(), [2, 6]);
    assert_eq!(
        (site.queues[0].priority.number(), site.queues[0].policy),
        (-5, Some(Policy::Simple))
    );
    assert_eq!(
        problems(
            "[[tenant]]\nname = \"a\"\nshare = 0.5\n[[tenant]]\nname = \"a\"\nshare = 0.6\nweight = 0\n\
             [[tenant]]\nshare = 2\n[[queue]]\nname = \"x y\"\npriority = 101\nparent = \"q\"\n[[queue]]\nmax_gpus = 0\n"
        ),
        [
            "5:8: tenant `a` is listed twice",
            "6:9: the tenants up to this one are guaranteed 1.100 of the GPUs, but there is only 1",
            "7:10: `tenant.weight`: 0 is out of range",
            "8:1: this [[tenant]] has no `name`",
            "9:9: `tenant.share`: 2 is out of range",
            "11:8: `queue.name`: \"x y\" is no name: a name has 1 to 64 letters, digits and _ - . @",
            "12:12: `queue.priority`: 101 is out of range",
            "13:1: unknown key `parent` in [queue]",
            "14:1: this [[queue]] has no `name`",
            "15:12: `queue.max_gpus`: 0 is out of range",
        ]
    );
}

/// Every key, as `section.key`, `environment` apart, whose keys are the site's own.
fn every_key() -> BTreeSet<String> {
    let read =
        read::site(example()).unwrap_or_else(|problems| panic!("the page's example: {problems:?}"));
    let keys: BTreeSet<String> = read.keys.into_iter().collect();
    let is_section = |key: &String| keys.iter().any(|other| other.starts_with(&format!("{key}.")));
    keys.iter().filter(|key| !key.contains('.') || !is_section(key)).cloned().collect()
}

/// The rows of the page's tables: `section.key` and the default as written.
fn rows() -> Vec<(String, String)> {
    let mut section = String::new();
    let mut rows = Vec::new();
    for line in PAGE.lines() {
        if let Some(title) = line.strip_prefix("### ") {
            section = title.trim_matches(['`', '[', ']']).to_owned();
        } else if let Some(row) = line.strip_prefix("| `") {
            let mut cells = row.split(" | ");
            let key = cells.next().expect("a key").trim_end_matches('`');
            rows.push((
                format!("{section}.{key}"),
                cells.next().expect("a default").trim_matches('`').to_owned(),
            ));
        }
    }
    rows
}

#[test]
fn the_example_has_every_key() {
    let example = example();
    for key in every_key() {
        let last = key.rsplit('.').next().expect("split yields one");
        assert!(
            example.contains(&format!("\n{last} = "))
                || example.contains(&format!("[{last}]\n"))
                || example.contains(&format!("[[{last}]]\n")),
            "the example lacks {key}"
        );
    }
}

#[test]
fn the_page_documents_every_key_and_no_other() {
    let documented: BTreeSet<String> = rows().into_iter().map(|(key, _)| key).collect();
    let keys: BTreeSet<String> = every_key().into_iter().filter(|key| key.contains('.')).collect();
    assert_eq!(documented, keys);
    for section in every_key().iter().filter(|key| !key.contains('.')) {
        assert!(
            PAGE.contains(&format!("[{section}]`\n"))
                || PAGE.contains(&format!("[[{section}]]`\n")),
            "{section}"
        );
    }
}

#[test]
fn the_page_tells_the_true_defaults() {
    let text: String = rows()
        .iter()
        .filter(|(key, default)| {
            default != "–" && !["node.", "queue.", "tenant."].iter().any(|s| key.starts_with(s))
        })
        .map(|(key, default)| format!("{key} = {default}\n"))
        .collect();
    assert_eq!(good(&text), SiteConfig::default(), "{text}");
}

#[test]
fn the_man_page_documents_every_key() {
    for key in every_key() {
        let last = key.rsplit('.').next().expect("split yields one");
        let shown = if key.contains('.') { format!("\n.It Ic {last}") } else { format!("{last}]") };
        assert!(MAN.contains(&shown), "man/acb-cluster.toml.5 lacks {key}");
    }
    for (key, default) in rows().iter().filter(|(_, default)| default != "–") {
        assert!(
            MAN.contains(default.trim_matches('"')),
            "man/acb-cluster.toml.5: default of {key}, {default}"
        );
    }
}

#[test]
fn the_sharing_of_memory() {
    let site = SiteConfig::parse(
        "t",
        "[memory]\nhost_budget = \"64G\"\nchunk_mib = 2\nheadroom = \"2%\"\n",
    )
    .unwrap();
    assert_eq!(site.memory.host_budget, crate::ByteSize::new(64 << 30));
    assert_eq!((site.memory.chunk_mib, site.memory.pager), (2, true));
    assert_eq!(site.memory.headroom.of(100 << 30), 2 << 30);
    for (text, word) in [
        ("chunk_mib = 3", "odd"),
        ("chunk_mib = 2048", "out of range"),
        ("host_share = 1.5", "out of range"),
        ("switch_share = 1", "nothing would be left"),
        ("host_budget = 64", "a string is needed"),
        ("host_budget = \"64GB\"", "10G, 512M"),
        ("headroom = 512", "a string is needed"),
        ("headroom = \"60%\"", "50%"),
    ] {
        let error = SiteConfig::parse("t", &format!("[memory]\n{text}\n")).unwrap_err().to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(\\PC|\\pC|\n|\t){0,200}") {
        if let Err(error) = SiteConfig::parse("t", &text) {
            // Whatever stands in the file, its report does not steer a terminal.
            prop_assert!(!error.to_string().contains(|c: char| c.is_control() && c != '\n'));
            prop_assert!(error.problems().count() > 0);
        }
    }

    #[test]
    fn anything_near_the_truth_is_read_or_refused(
        lines in prop::collection::vec(prop::sample::select(vec![
            "[paths]", "[driver]", "[environment]", "[scheduler]", "[failure]", "[network]", "[controller]",
            "[[node]]", "[node]", "[comment]", "[x", "run_dir = \"/a\"", "run_dir = 'é\u{7}'", "run_dir = \"\\u0000\"",
            "policy = \"é\"", "quantum_ms = 1", "quantum_ms = -0", "idle_us = 0xfff_ffff", "idle_us = 1e9",
            "base_port = 65535", "ports = 65535", "name = \"n[1-9],é\"", "name = '''\nn[1\n'''", "address = \"%n%n\"",
            "node = \"n1\"", "enabled = 1979-05-27", "A = \"\\t\"", "= ", "\"\" = 1", "é = 1", "# é", "\u{feff}", "\r",
        ]), 0..25),
    ) {
        if let Err(error) = SiteConfig::parse("t", &lines.join("\n")) {
            prop_assert!(!error.render(Style::Terminal).is_empty());
            prop_assert!(!error.to_string().contains(|c: char| c.is_control() && c != '\n'));
            for problem in error.problems() {
                prop_assert!(problem.line >= 1 && problem.column >= 1);
            }
        }
    }
}

//! Tenants of one job: steps that share its GPUs by what the cluster file guarantees them, and whose quota a step counts for.

use crate::stage;
use acb_tests::lab::{Account, Cluster, JobId, Lab, SIMULATED, wait_until};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;

/// Nobody gives a GPU back at the end of a quantum; who pauses for a tenth of a second does, and who computes without a pause
/// only where a guarantee wants it.
const HALVES: &str = r#"
[scheduler]
quantum_ms = 86_400_000
idle_us = 100_000

[[tenant]]
name = "a"
share = 0.5

[[tenant]]
name = "b"
share = 0.5
"#;

/// A lab with these lines in its cluster file.
fn lab(lines: &str) -> Result<Option<Lab>> {
    let text = format!("{SIMULATED}{lines}");
    stage::own(|options| options.cluster = Cluster::Text(text))
}

/// Of each client of a tenant.
fn of<'a>(status: &'a Value, tenant: &str) -> Vec<&'a Value> {
    stage::clients(status).into_iter().filter(|client| client["tenant"] == tenant).collect()
}

/// For each GPU the tenants of those that hold it.
fn holders(status: &Value) -> Vec<Vec<&str>> {
    let tenant = |number: &Value| {
        let clients = stage::clients(status).into_iter();
        clients.into_iter().find(|client| client["client"] == *number)?["tenant"].as_str()
    };
    let gpus = status["nodes"][0]["gpus"].as_array().into_iter().flatten();
    gpus.map(|gpu| gpu["holders"].as_array().into_iter().flatten().filter_map(tenant).collect())
        .collect()
}

/// Grants of all clients of a tenant.
fn grants(status: &Value, tenant: &str) -> u64 {
    of(status, tenant).iter().filter_map(|client| client["grants"].as_u64()).sum()
}

fn pids(status: &Value, tenant: &str) -> BTreeSet<u64> {
    of(status, tenant).iter().filter_map(|client| client["pid"].as_u64()).collect()
}

fn touch(lab: &Lab, user: &Account, name: &str) -> Result<()> {
    Ok(std::fs::write(lab.home(user)?.join(name), "")?)
}

/// All of a step's rounds so far, each with right data.
fn rounds(lab: &Lab, user: &Account, job: JobId, step: &str) -> Result<usize> {
    let path = lab.home(user)?.join(format!("{step}.{job}"));
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let rounds = stage::rounds(&text);
    ensure!(rounds.iter().all(|round| round.ok), "wrong data in {step}:\n{text}");
    Ok(rounds.len())
}

/// One step computes on both GPUs of its job without a pause; the other wants one of them again and again, and leaves it idle in
/// between. Nobody's quantum ends: each of the second one's turns is one that its guarantee has given back.
#[test]
fn two_steps_share_a_job_by_their_guarantees() -> Result<()> {
    let Some(lab) = lab(HALVES)? else { return Ok(()) };
    let user = stage::user()?;
    let phases = stage::program(&lab, "phases");
    let script = format!(
        "#!/bin/bash
#SBATCH --acb --nodes=1 --ntasks=3 --gres=gpu:2
srun --acb=tenant=a --ntasks=2 --gres=gpu:2 {phases} --cpu-ms 0 --gpu-ms 20 --until a.end > a.$SLURM_JOB_ID &
first=$!
until [[ -e b.begin ]]; do sleep 0.1; done
srun --acb=tenant=b --ntasks=1 --gres=gpu:2 {phases} --cpu-ms 300 --gpu-ms 60 --until b.end > b.$SLURM_JOB_ID && wait $first
"
    );
    let job = lab.submit(&user, &script)?;
    let node = stage::await_running(&lab, job)?;
    let await_status = |what: &str, wanted: &dyn Fn(&Value) -> bool| {
        stage::await_status(&lab, &user, &node, job, what, wanted)
    };
    let (all, shared) = (vec![vec!["a"]; 2], BTreeSet::from([vec!["a"], vec!["b"]]));
    let all_of_a = |status: &Value| holders(status) == all;

    // What nobody else wants is borrowed.
    let begin = await_status("a has both GPUs", &all_of_a)?;
    ensure!(pids(&begin, "a").len() == 2);

    // Then each has its share while both ask, and what is left idle is borrowed again, many times.
    touch(&lab, &user, "b.begin")?;
    let mut last = begin;
    for turn in 0..5 {
        let (had, lent) = (grants(&last, "b"), grants(&last, "a"));
        await_status(&format!("each has one GPU, time {turn}"), &|status| {
            let now: BTreeSet<_> = holders(status).into_iter().collect();
            now == shared && grants(status, "b") > had
        })?;
        last = await_status(&format!("a has both again, time {turn}"), &|status| {
            all_of_a(status) && grants(status, "a") > lent
        })?;
        ensure!(of(&last, "b").len() == 1, "b is idle, not gone");
    }

    // Nobody was killed for it, and both went on computing.
    let done = |step| rounds(&lab, &user, job, step);
    let (first, second) = (done("a")?, done("b")?);
    wait_until("both go on", stage::PATIENCE, || Ok(done("a")? > first && done("b")? > second))?;
    let end = await_status("both are there", &|status| of(status, "a").len() == 2)?;
    ensure!(pids(&end, "a") == pids(&last, "a") && pids(&end, "b") == pids(&last, "b"));
    touch(&lab, &user, "b.end")?;
    touch(&lab, &user, "a.end")?;
    let state = lab.await_end(job, stage::PATIENCE)?;
    ensure!(state == "COMPLETED", "{state}: {}", lab.output(&user, job)?);
    ensure!(done("a")? > 0 && done("b")? > 0);
    stage::assert_gone(&lab, job)
}

/// What a step's option names goes before its job's account, and that before its user; also where srun passes nothing on.
#[test]
fn an_account_and_a_user_are_tenants_where_they_are_listed() -> Result<()> {
    let user = stage::user()?;
    let named = format!("[[tenant]]\nname = \"{}\"\n", user.name);
    let lines = format!("[[tenant]]\nname = \"physics\"\n\n[[tenant]]\nname = \"a\"\n\n{named}");
    let Some(lab) = lab(&lines)? else { return Ok(()) };
    let phases = stage::program(&lab, "phases");
    let cases = [
        ("--account=physics", "", "physics"),
        ("--account=physics", "--export=NONE", "physics"),
        ("--account=physics", "--acb=tenant=a", "a"),
        ("--account=chemistry", "", user.name.as_str()),
        ("--comment=none", "", user.name.as_str()),
    ];
    for (of_job, of_step, tenant) in cases {
        let script = format!(
            "#!/bin/bash\n#SBATCH --acb --nodes=1 --ntasks=1 --gres=gpu:1 {of_job}\n\
             srun {of_step} {phases} --duration 600\n"
        );
        let job = lab.submit(&user, &script)?;
        let node = stage::await_running(&lab, job)?;
        let what = format!("{of_job} {of_step} is {tenant}'s");
        let status = stage::await_holder(&lab, &user, &node, job).context(what.clone())?;
        ensure!(of(&status, tenant).len() == 1, "{what}: {status}");
        ensure!(lab.run(&["scancel", &job.to_string()])?.success());
        lab.await_end(job, stage::PATIENCE)?;
    }
    // srun that makes its own allocation.
    let environment = "echo $ACB_TENANT";
    let words = ["srun", "--acb", "--account=physics", "--gres=gpu:1", "sh", "-c", environment];
    let outcome = lab.run_as(&user, &words)?;
    ensure!(outcome.success() && outcome.stdout.trim() == "physics", "{outcome}");
    // A name that is nobody's is refused where it is given.
    let words = ["srun", "--acb=tenant=bob", "--gres=gpu:1", "hostname"];
    let outcome = lab.run_as(&user, &words)?;
    let known = ["no tenant `bob`", "physics"].iter().all(|part| outcome.stderr.contains(part));
    ensure!(!outcome.success() && known, "{outcome}");
    stage::nodes_are_well(&lab)
}

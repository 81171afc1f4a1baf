//! What Slurm's variables and files say of GPUs. Pure: texts in, facts out.

/// What a step can open of its job's GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Devices {
    /// All of them.
    OfTheJob,
    /// Its own: ConstrainDevices of cgroup.conf.
    OfTheStep,
}

/// The GPUs of a job on a node, from the prolog's `SLURM_JOB_GPUS`; empty means all of the node's.
///
/// Where Slurm counts GPUs, a job that has asked for none gets none. Where it does not, because
/// whole nodes are handed out, the job has them all.
pub(crate) fn job_gpus(
    given: Option<&str>,
    slurm_conf: Option<&str>,
    node: &str,
) -> Result<Vec<u32>, String> {
    match given {
        Some(list) => list
            .split(',')
            .map(|index| index.trim().parse())
            .collect::<Result<_, _>>()
            .map_err(|_| format!("SLURM_JOB_GPUS is `{list}`: not a list of GPU numbers")),
        None if slurm_conf.is_none_or(counts_gpus) => Err(format!(
            "the job has no GPU on node {node}: --acb shares the job's GPUs, ask for some with --gres=gpu:N"
        )),
        None => Ok(Vec::new()),
    }
}

/// Whether a cgroup.conf keeps steps from the devices of others.
pub(crate) fn devices(cgroup_conf: &str) -> Devices {
    match setting(cgroup_conf, "ConstrainDevices") {
        Some(value) if value.eq_ignore_ascii_case("yes") => Devices::OfTheStep,
        _ => Devices::OfTheJob,
    }
}

/// Whether slurm.conf makes GPUs a countable resource.
fn counts_gpus(slurm_conf: &str) -> bool {
    setting(slurm_conf, "GresTypes")
        .is_some_and(|kinds| kinds.split(',').any(|kind| kind.trim().eq_ignore_ascii_case("gpu")))
}

/// A setting of one of Slurm's files, which has a line of its own.
fn setting<'a>(conf: &'a str, name: &str) -> Option<&'a str> {
    conf.lines().find_map(|line| {
        let (key, value) = line.split('#').next()?.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// The number in `SLURM_GPUS_PER_TASK`: `2`, `a100:2`, or `a100:1,h100:1`.
pub(crate) fn gpus_per_task(text: &str) -> Option<u32> {
    text.split(',')
        .map(|part| part.rsplit(':').next().and_then(|count| count.parse::<u32>().ok()))
        .try_fold(0_u32, |sum, count| sum.checked_add(count?))
        .filter(|count| *count > 0)
}

/// The number of GPUs in `SLURM_TRES_PER_TASK`, which srun sets since 23.11: `cpu=2,gres/gpu=1`, or
/// `gres/gpu:a100:2`.
pub(crate) fn tres_per_task(text: &str) -> Option<u32> {
    let counts: Vec<_> = text
        .split(',')
        .filter_map(|part| part.strip_prefix("gres/gpu"))
        .filter(|rest| rest.starts_with([':', '=']))
        .filter_map(|rest| rest.rsplit([':', '=']).next())
        .collect();
    gpus_per_task(&counts.join(","))
}

/// What srun's own options say of GPUs per task; the last one counts.
pub(crate) fn option_per_task(options: &[String]) -> Option<&str> {
    // getopt_long takes what begins like this and nothing else.
    const SHORTEST: &str = "--gpus-per-t";
    const WHOLE: &str = "--gpus-per-task";
    let is = |name: &str| name.starts_with(SHORTEST) && WHOLE.starts_with(name);
    options.iter().enumerate().rev().find_map(|(index, word)| match word.split_once('=') {
        Some((name, value)) => is(name).then_some(value),
        None if is(word) => options.get(index + 1).map(String::as_str),
        None => None,
    })
}

/// The number in a binding that srun makes of `--gpus-per-task`: `gpu:per_task:2`, and
/// `gres/gpu:per_task:2` since 23.11. Other bindings name none.
pub(crate) fn bound_per_task(bind: &str) -> Option<u32> {
    bind.split('+').find_map(|part| {
        let kind = part.strip_prefix("gres/").unwrap_or(part);
        kind.strip_prefix("gpu:per_task:")?.parse().ok().filter(|count| *count > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_have_the_gpus_that_slurm_gave() {
        let counts = Some("ClusterName=x\ngrestypes = mps, GPU # yes\n");
        let none = Some("#GresTypes=gpu\nClusterName=x\n");
        assert_eq!(job_gpus(Some("0,3"), counts, "n1"), Ok(vec![0, 3]));
        assert_eq!(job_gpus(None, none, "n1"), Ok(vec![]));
        for conf in [counts, None] {
            assert!(job_gpus(None, conf, "n1").unwrap_err().contains("--gres=gpu:N"));
        }
        assert!(job_gpus(Some("a,b"), counts, "n1").is_err());
    }

    #[test]
    fn bindings_name_gpus_per_task() {
        for (bind, count) in [
            ("gpu:per_task:2", Some(2)),
            ("gres/shard:none+gres/gpu:per_task:3", Some(3)),
            ("gpu:map_gpu:0,1", None),
            ("gpu:per_task:", None),
            ("gpu:per_task:0", None),
            ("", None),
        ] {
            assert_eq!(bound_per_task(bind), count, "{bind}");
        }
    }

    #[test]
    fn numbers_of_gpus_do_not_overflow() {
        assert_eq!(gpus_per_task("a100:1,h100:2"), Some(3));
        assert_eq!(gpus_per_task("4294967295,3"), None);
    }

    #[test]
    fn tres_name_gpus_per_task() {
        for (tres, count) in [
            ("cpu=2,gres/gpu=1", Some(1)),
            ("gres/gpu:a100:2", Some(2)),
            ("gres/gpu:a100=1,gres/gpu:h100=1", Some(2)),
            ("gres/gpumem=5", None),
            ("cpu=2", None),
            ("", None),
        ] {
            assert_eq!(tres_per_task(tres), count, "{tres}");
        }
    }

    #[test]
    fn options_name_gpus_per_task() {
        let per_task = |line: &str| {
            let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
            option_per_task(&words).map(str::to_owned)
        };
        assert_eq!(per_task("-n1 --gpus-per-task=2").as_deref(), Some("2"));
        assert_eq!(per_task("--gpus-per-t a100:2 -n1").as_deref(), Some("a100:2"));
        assert_eq!(per_task("--gpus-per-task=2 --gpus-per-task 1").as_deref(), Some("1"));
        for other in ["--gpus-per-socket=2", "--gpus=2", "--gpus-per-task", "--gpus-per-task-x=1"] {
            assert_eq!(per_task(other), None, "{other}");
        }
    }

    #[test]
    fn constrained_devices_are_seen() {
        assert_eq!(devices("A=b\nconstraindevices = YES # x\n"), Devices::OfTheStep);
        assert_eq!(devices("#ConstrainDevices=yes\n"), Devices::OfTheJob);
    }
}

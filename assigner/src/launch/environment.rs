//! The environment of the program (docs/architecture.md, "Environment of a client").
//!
//! Owns which variables are set for which way of running, and that what the user had in LD_PRELOAD
//! and LD_LIBRARY_PATH stays there. Pure, but for the place of the interposer.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use acb_cluster_conf::Name;

use super::request::{Device, Request};

/// File name of the interposer.
pub const INTERPOSER: &str = "libcuda.so.1";

/// File name of the library that leads paths of the driver to the interposer.
pub const AUDIT: &str = "libacb-audit.so";

/// How a program is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// As if there were no slurm-acb.
    Without,
    /// Without GPUs.
    Cpu,
    /// It asks for GPUs itself.
    Manual {
        /// Where.
        tools: PathBuf,
    },
    /// Under the interposer.
    Interposed {
        /// Folder of the interposer.
        folder: PathBuf,
        /// Socket of the assigner.
        client_socket: PathBuf,
        /// Whether paths of the driver lead to the interposer too.
        is_audited: bool,
        /// UUIDs of as many GPUs as the program sees; `cuInit` finds the right ones.
        uuids: String,
    },
}

impl Plan {
    /// The word for it in the history.
    pub fn mode(&self) -> &'static str {
        match self {
            Plan::Without => "without",
            Plan::Cpu => "cpu",
            Plan::Manual { .. } => "manual",
            Plan::Interposed { .. } => "automatic",
        }
    }
}

/// A variable and its new value; `None` removes it.
pub type Change = (&'static str, Option<OsString>);

/// The folder of the interposer: `ACB_LIB_DIR`, or beside this program.
pub fn interposer_folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("ACB_LIB_DIR").filter(|folder| !folder.is_empty()) {
        return PathBuf::from(folder);
    }
    let own = std::env::current_exe().unwrap_or_default();
    let prefix = own.parent().and_then(Path::parent).unwrap_or(Path::new("/usr"));
    prefix.join("lib/acb")
}

/// What is changed in the environment of this process for the program.
pub fn changes(plan: &Plan, request: &Request) -> Vec<Change> {
    changes_from(plan, request, &interposer_folder(), |name| std::env::var_os(name))
}

/// Where a program stands among others, as far as the user says.
fn standing(request: &Request) -> impl Iterator<Item = (&'static str, String)> + use<> {
    let standing = &request.standing;
    let said = [
        ("ACB_PRIORITY", standing.priority.map(|priority| priority.to_string())),
        ("ACB_QUEUE", standing.queue.as_ref().map(Name::to_string)),
        ("ACB_TENANT", standing.tenant.as_ref().map(Name::to_string)),
        ("ACB_GANG", standing.gang.as_ref().map(|(name, _)| name.to_string())),
        ("ACB_GANG_SIZE", standing.gang.as_ref().map(|(_, size)| size.to_string())),
    ];
    said.into_iter().filter_map(|(name, value)| Some((name, value?)))
}

fn changes_from(
    plan: &Plan,
    request: &Request,
    installed: &Path,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    let mut set = |name: &'static str, value: &OsStr| changes.push((name, Some(value.to_owned())));
    match plan {
        Plan::Interposed { folder, client_socket, is_audited, uuids } => {
            let preload =
                prepend(&folder.join(INTERPOSER), variable("LD_PRELOAD"), is_interposer, b": ");
            set("LD_PRELOAD", &preload);
            let is_folder = |entry: &OsStr| Path::new(entry) == folder;
            let path = prepend(folder, variable("LD_LIBRARY_PATH"), is_folder, b":;");
            set("LD_LIBRARY_PATH", &path);
            if *is_audited {
                let audit = folder.join(AUDIT);
                set("LD_AUDIT", &prepend(&audit, variable("LD_AUDIT"), is_audit, b":"));
            }
            set("ACB_SOCKET", client_socket.as_os_str());
            set("ACB_GPUS", OsStr::new(&request.gpus.to_string()));
            if let Some(memory) = request.memory {
                set("ACB_MEMORY", OsStr::new(&memory.to_string()));
            }
            set("ACB_STEP", OsStr::new(&request.step));
            set("ACB_UUIDS", OsStr::new(uuids));
            // Programs take the entries for numbers.
            let ordinals: Vec<String> = (0..request.gpus).map(|gpu| gpu.to_string()).collect();
            set("CUDA_VISIBLE_DEVICES", OsStr::new(&ordinals.join(",")));
            for (name, value) in standing(request) {
                set(name, OsStr::new(&value));
            }
            for (name, default) in [
                ("ACB_ON_FAILURE", "open"),
                ("ACB_GRACE_MS", "10000"),
                // Captured graphs' buffers must not be registered with NCCL: they may move.
                ("NCCL_GRAPH_REGISTER", "0"),
            ] {
                if variable(name).is_none() {
                    set(name, OsStr::new(default));
                }
            }
        }
        Plan::Manual { tools } => {
            set("ACB_TOOLS_SOCKET", tools.as_os_str());
            set("AGA_ENABLE_AUTO", OsStr::new("0"));
            // For the AllocRequests of the program.
            for (name, value) in standing(request) {
                set(name, OsStr::new(&value));
            }
        }
        Plan::Cpu => set("CUDA_VISIBLE_DEVICES", OsStr::new("")),
        Plan::Without => {}
    }
    if !matches!(plan, Plan::Without) {
        let device = match request.device {
            Device::Any => "any",
            Device::Gpu => "cuda",
            Device::Cpu => "cpu",
        };
        set("AGA_REQUEST_DEVICE", OsStr::new(device));
        set("AGA_GPU_ALLOC_SERVER_ADDRESS", OsStr::new(&request.address));
        set("AGA_GPU_ALLOC_SERVER_PORT", OsStr::new(&request.port.to_string()));
        set("AGA_LAUNCHED_FROM_AGARUN", OsStr::new("1"));
    }
    if !matches!(plan, Plan::Interposed { .. }) {
        // A Slurm job may have put the interposer there.
        let mut strip = |name: &'static str, ours: &dyn Fn(&OsStr) -> bool, separators: &[u8]| {
            let Some(old) = variable(name) else { return };
            let left = without(&old, ours, separators);
            if left != old {
                changes.push((name, (!left.is_empty()).then_some(left)));
            }
        };
        strip("LD_PRELOAD", &is_interposer, b": ");
        strip("LD_AUDIT", &is_audit, b":");
        strip("LD_LIBRARY_PATH", &|entry| Path::new(entry) == installed, b":;");
        if variable("ACB_SOCKET").is_some() {
            changes.push(("ACB_SOCKET", None));
        }
    }
    changes
}

fn is_interposer(entry: &OsStr) -> bool {
    Path::new(entry).file_name() == Some(OsStr::new(INTERPOSER))
}

fn is_audit(entry: &OsStr) -> bool {
    Path::new(entry).file_name() == Some(OsStr::new(AUDIT))
}

/// The user's own choice of GPUs, which the assigner's is about to replace. Inside a job it is
/// Slurm's or the job's.
pub fn replaced_choice(plan: &Plan) -> Option<OsString> {
    match plan {
        Plan::Interposed { .. } => replaced_choice_from(|name| std::env::var_os(name)),
        _ => None,
    }
}

fn replaced_choice_from(variable: impl Fn(&str) -> Option<OsString>) -> Option<OsString> {
    let is_own = variable("ACB_SOCKET").is_none() && variable("SLURM_JOB_ID").is_none();
    variable("CUDA_VISIBLE_DEVICES").filter(|_| is_own)
}

/// Puts an entry in front of a list, and drops those that it replaces.
fn prepend(
    first: &Path,
    list: Option<OsString>,
    replaced: impl Fn(&OsStr) -> bool,
    separators: &[u8],
) -> OsString {
    let rest = without(&list.unwrap_or_default(), &replaced, separators);
    let mut list = first.as_os_str().to_owned();
    if !rest.is_empty() {
        list.push(":");
        list.push(rest);
    }
    list
}

fn without(list: &OsStr, dropped: &dyn Fn(&OsStr) -> bool, separators: &[u8]) -> OsString {
    use std::os::unix::ffi::OsStrExt;
    let entries = list.as_bytes().split(|byte| separators.contains(byte));
    let kept: Vec<&[u8]> =
        entries.filter(|entry| !entry.is_empty() && !dropped(OsStr::from_bytes(entry))).collect();
    OsStr::from_bytes(&kept.join(&b':')).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::cli::Cli;
    use clap::Parser;

    fn request() -> Request {
        let cli = Cli::parse_from(["agarun", "--gpus", "2", "program"]);
        Request::read(&cli).unwrap()
    }

    fn changed(plan: &Plan, variables: &[(&str, &str)]) -> Vec<(String, Option<String>)> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        let text = |value: OsString| value.into_string().unwrap();
        changes_from(plan, &request(), Path::new("/opt/lib/acb"), variable)
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.map(text)))
            .collect()
    }

    fn value<'a>(
        changes: &'a [(String, Option<String>)],
        name: &str,
    ) -> Option<&'a Option<String>> {
        changes.iter().find(|(changed, _)| changed == name).map(|(_, value)| value)
    }

    fn interposed() -> Plan {
        Plan::Interposed {
            folder: "/opt/lib/acb".into(),
            client_socket: "/run/acb/n1/5/client.sock".into(),
            is_audited: false,
            uuids: "GPU-a,GPU-b".into(),
        }
    }

    #[test]
    fn paths_of_the_driver_are_audited_on_demand() {
        let audit = "/opt/lib/acb/libacb-audit.so";
        let plan = |is_audited| match interposed() {
            Plan::Interposed { folder, client_socket, uuids, .. } => {
                Plan::Interposed { folder, client_socket, is_audited, uuids }
            }
            other => other,
        };
        let had = [("LD_AUDIT", "/home/u/a.so")];
        assert_eq!(value(&changed(&plan(false), &had), "LD_AUDIT"), None);
        let both = format!("{audit}:/home/u/a.so");
        assert_eq!(value(&changed(&plan(true), &had), "LD_AUDIT"), Some(&Some(both.clone())));
        let left = changed(&Plan::Without, &[("LD_AUDIT", &both)]);
        assert_eq!(value(&left, "LD_AUDIT"), Some(&Some("/home/u/a.so".to_owned())));
    }

    #[test]
    fn a_choice_of_the_users_own_is_told_apart_from_slurms() {
        let choice = |variables: &[(&str, &str)]| {
            replaced_choice_from(|name| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| OsString::from(value))
            })
        };
        assert_eq!(choice(&[("CUDA_VISIBLE_DEVICES", "1")]), Some("1".into()));
        assert_eq!(choice(&[("CUDA_VISIBLE_DEVICES", "1"), ("SLURM_JOB_ID", "7")]), None);
        assert_eq!(choice(&[]), None);
    }

    #[test]
    fn the_interposer_stands_before_what_the_user_had_and_only_once() {
        let user = [
            ("LD_PRELOAD", "/opt/lib/acb/libcuda.so.1 /usr/lib/libjemalloc.so"),
            ("LD_LIBRARY_PATH", "/home/u/lib::/opt/lib/acb"),
            ("NCCL_GRAPH_REGISTER", "1"),
        ];
        let changes = changed(&interposed(), &user);
        let is = |name, text: &str| assert_eq!(value(&changes, name), Some(&Some(text.to_owned())));
        is("LD_PRELOAD", "/opt/lib/acb/libcuda.so.1:/usr/lib/libjemalloc.so");
        is("LD_LIBRARY_PATH", "/opt/lib/acb:/home/u/lib");
        is("CUDA_VISIBLE_DEVICES", "0,1");
        is("ACB_UUIDS", "GPU-a,GPU-b");
        is("ACB_GPUS", "2");
        assert_eq!(value(&changes, "NCCL_GRAPH_REGISTER"), None);
    }

    #[test]
    fn without_scheduling_the_jobs_interposer_is_taken_out() {
        let job = [
            ("LD_PRELOAD", "/opt/lib/acb/libcuda.so.1"),
            ("LD_LIBRARY_PATH", "/opt/lib/acb:/home/u/lib"),
            ("ACB_SOCKET", "/run/acb/n1/5/client.sock"),
        ];
        let changes = changed(&Plan::Without, &job);
        assert_eq!(value(&changes, "LD_PRELOAD"), Some(&None));
        assert_eq!(value(&changes, "LD_LIBRARY_PATH"), Some(&Some("/home/u/lib".to_owned())));
        assert_eq!(value(&changes, "ACB_SOCKET"), Some(&None));
        assert_eq!(changed(&Plan::Without, &[]), []);
    }

    #[test]
    fn on_the_cpu_no_gpu_is_seen() {
        let changes = changed(&Plan::Cpu, &[("CUDA_VISIBLE_DEVICES", "0")]);
        assert_eq!(value(&changes, "CUDA_VISIBLE_DEVICES"), Some(&Some(String::new())));
    }
}

//! The configuration file of the software GPU (`SIMCUDA_CONFIG`): how many GPUs,
//! how large and how fast, and which faults they show. Parsing only.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use crate::connection::{self, Connection, NvLinkEnd};
use crate::fault::FaultRule;
use crate::identity::{Uuid, fnv};
use crate::layout::GPUS_MAX;

/// Names the variable that holds the path of the file.
pub const CONFIG_VARIABLE: &str = "SIMCUDA_CONFIG";

/// What the file says, with defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Names the shared state; processes with the same name share GPUs.
    pub state: String,
    /// The GPUs, in order.
    pub gpus: Vec<GpuConfig>,
    /// The CUDA version that the driver reports, e.g. 13000.
    pub driver_version: i32,
    /// Whether GPUs reach each other's memory.
    pub peers: bool,
    /// Whether NVML tells of two GPUs how they reach each other; the oldest drivers do not.
    pub p2p_status: bool,
    /// Whether code that comes to the GPU waits for what runs in its context, and everybody else for that.
    pub load_waits: bool,
    /// NVML's compute mode of all GPUs.
    pub compute_mode: ComputeMode,
    /// Whether NVML says that the GPUs are in confidential computing mode.
    pub confidential: bool,
    /// Faults to show.
    pub faults: Vec<FaultRule>,
}

/// Who may have contexts on a GPU, by NVML's numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ComputeMode {
    /// Everybody.
    #[default]
    Default = 0,
    /// Nobody.
    Prohibited = 2,
    /// One process.
    ExclusiveProcess = 3,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuConfig {
    /// As the driver reports it.
    pub name: String,
    /// Bytes of device memory.
    pub memory: u64,
    /// Bytes of device memory that each context takes.
    pub context_bytes: u64,
    /// Bytes that the driver takes for each function that is launched for the first time.
    pub function_bytes: u64,
    /// Bytes that the driver takes for each executable graph.
    pub graph_bytes: u64,
    /// Bytes beside `memory` that NVML counts and no program can have.
    pub reserved: u64,
    /// Bytes per second from the GPU to the host.
    pub link_out: u64,
    /// Bytes per second from the host to the GPU.
    pub link_in: u64,
    /// Whether both directions run at full speed at once.
    pub duplex: bool,
    /// Bytes per second inside the GPU.
    pub memory_bandwidth: u64,
    /// What every kernel takes at least.
    pub launch_ns: u64,
    /// What every copy takes at least.
    pub copy_ns: u64,
    /// What `cuMemMap` costs the host per call.
    pub map_ns: u64,
    /// What `cuMemMap` costs the host per MiB.
    pub map_ns_per_mib: u64,
    /// What `cuMemSetAccess` costs the host per call.
    pub access_ns: u64,
    /// What `cuMemSetAccess` costs the host per MiB.
    pub access_ns_per_mib: u64,
    /// What `cuMemUnmap` costs the host per call.
    pub unmap_ns: u64,
    /// What `cuMemUnmap` costs the host per MiB.
    pub unmap_ns_per_mib: u64,
    /// What pinning host memory costs the host per MiB.
    pub pin_ns_per_mib: u64,
    /// How long kernels that the software GPU does not know take.
    pub unknown_kernel_ns: u64,
    /// How long one process keeps an engine while another waits for it.
    pub time_slice_ns: u64,
    /// How it is connected with the host and other GPUs.
    pub connection: Connection,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("simcuda: cannot read {path} (named by SIMCUDA_CONFIG): {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it must be.
    #[error("simcuda: {path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value cannot be used.
    #[error("simcuda: {path}: {what}")]
    Value {
        /// The file.
        path: PathBuf,
        /// What is wrong with which key, and what it must be.
        what: String,
    },
}

impl Config {
    /// The configuration that the environment names; without one, a single
    /// "Simulated GPU".
    ///
    /// # Errors
    /// When the file cannot be read or used.
    pub fn load() -> Result<Config, ConfigError> {
        match std::env::var_os(CONFIG_VARIABLE) {
            Some(path) if !path.is_empty() => Config::read(Path::new(&path)),
            _ => Ok(Config::default()),
        }
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read or used.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let file: ConfigFile = toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let fallback = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let fallback =
            format!("{:016x}", fnv(fallback.as_os_str().as_encoded_bytes(), 0xcbf2_9ce4_8422_2325));
        resolve(file, &fallback, |name| std::env::var(name).ok())
            .map_err(|what| ConfigError::Value { path: path.to_owned(), what })
    }

    /// The UUIDs of all GPUs.
    #[must_use]
    pub fn uuids(&self) -> Vec<Uuid> {
        (0..self.gpus.len()).map(|index| Uuid::of(&self.state, index)).collect()
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            state: "default".to_owned(),
            gpus: vec![GpuConfig::default()],
            driver_version: 13000,
            peers: true,
            p2p_status: true,
            load_waits: false,
            compute_mode: ComputeMode::Default,
            confidential: false,
            faults: Vec::new(),
        }
    }
}

impl Default for GpuConfig {
    fn default() -> GpuConfig {
        GpuConfig {
            name: "Simulated GPU".to_owned(),
            memory: 16 << 30,
            context_bytes: 256 << 20,
            function_bytes: 0,
            graph_bytes: 0,
            reserved: 0,
            link_out: 24_000_000_000,
            link_in: 24_000_000_000,
            duplex: true,
            memory_bandwidth: 1_000_000_000_000,
            launch_ns: 0,
            copy_ns: 0,
            map_ns: 0,
            map_ns_per_mib: 0,
            access_ns: 0,
            access_ns_per_mib: 0,
            unmap_ns: 0,
            unmap_ns_per_mib: 0,
            pin_ns_per_mib: 0,
            unknown_kernel_ns: 10_000,
            time_slice_ns: 2_000_000,
            connection: Connection::default(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    state: Option<String>,
    state_env: Option<String>,
    driver_version: Option<i32>,
    peers: Option<bool>,
    p2p_status: Option<bool>,
    load_waits: Option<bool>,
    compute_mode: Option<ComputeMode>,
    confidential: Option<bool>,
    gpus: Option<usize>,
    name: Option<String>,
    memory: Option<Bytes>,
    context_bytes: Option<Bytes>,
    function_bytes: Option<Bytes>,
    graph_bytes: Option<Bytes>,
    reserved: Option<Bytes>,
    link_out: Option<Bytes>,
    link_in: Option<Bytes>,
    duplex: Option<bool>,
    memory_bandwidth: Option<Bytes>,
    launch_ns: Option<u64>,
    copy_ns: Option<u64>,
    map_ns: Option<u64>,
    map_ns_per_mib: Option<u64>,
    access_ns: Option<u64>,
    access_ns_per_mib: Option<u64>,
    unmap_ns: Option<u64>,
    unmap_ns_per_mib: Option<u64>,
    pin_ns_per_mib: Option<u64>,
    unknown_kernel_ns: Option<u64>,
    time_slice_ns: Option<u64>,
    #[serde(default)]
    gpu: Vec<GpuFile>,
    #[serde(default)]
    fault: Vec<FaultRule>,
}

/// One `[[gpu]]` table: what differs from the keys at the top of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct GpuFile {
    name: Option<String>,
    memory: Option<Bytes>,
    context_bytes: Option<Bytes>,
    function_bytes: Option<Bytes>,
    graph_bytes: Option<Bytes>,
    reserved: Option<Bytes>,
    link_out: Option<Bytes>,
    link_in: Option<Bytes>,
    duplex: Option<bool>,
    memory_bandwidth: Option<Bytes>,
    #[serde(default)]
    node: u32,
    switch: Option<u32>,
    #[serde(default)]
    nvlinks: Vec<usize>,
    #[serde(default)]
    nvswitch_links: usize,
}

fn resolve(
    file: ConfigFile,
    fallback: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Config, String> {
    let mut state = file.state.clone().unwrap_or_else(|| fallback.to_owned());
    if let Some(name) = &file.state_env
        && let Some(value) = variable(name)
    {
        state = format!("{state}-{value}");
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if state.is_empty() || state.len() > 100 || !state.chars().all(plain) {
        return Err(format!(
            "`state` gives the name {state:?}: use 1 to 100 letters, digits, '-', '_' and '.'"
        ));
    }
    let usual = GpuConfig::default();
    let bytes = |value: Option<Bytes>, other: u64| value.map_or(other, |Bytes(bytes)| bytes);
    let usual = GpuConfig {
        name: file.name.unwrap_or(usual.name),
        memory: bytes(file.memory, usual.memory),
        context_bytes: bytes(file.context_bytes, usual.context_bytes),
        function_bytes: bytes(file.function_bytes, usual.function_bytes),
        graph_bytes: bytes(file.graph_bytes, usual.graph_bytes),
        reserved: bytes(file.reserved, usual.reserved),
        link_out: bytes(file.link_out, usual.link_out),
        link_in: bytes(file.link_in, usual.link_in),
        duplex: file.duplex.unwrap_or(usual.duplex),
        memory_bandwidth: bytes(file.memory_bandwidth, usual.memory_bandwidth),
        launch_ns: file.launch_ns.unwrap_or(usual.launch_ns),
        copy_ns: file.copy_ns.unwrap_or(usual.copy_ns),
        map_ns: file.map_ns.unwrap_or(usual.map_ns),
        map_ns_per_mib: file.map_ns_per_mib.unwrap_or(usual.map_ns_per_mib),
        access_ns: file.access_ns.unwrap_or(usual.access_ns),
        access_ns_per_mib: file.access_ns_per_mib.unwrap_or(usual.access_ns_per_mib),
        unmap_ns: file.unmap_ns.unwrap_or(usual.unmap_ns),
        unmap_ns_per_mib: file.unmap_ns_per_mib.unwrap_or(usual.unmap_ns_per_mib),
        pin_ns_per_mib: file.pin_ns_per_mib.unwrap_or(usual.pin_ns_per_mib),
        unknown_kernel_ns: file.unknown_kernel_ns.unwrap_or(usual.unknown_kernel_ns),
        time_slice_ns: file.time_slice_ns.unwrap_or(usual.time_slice_ns),
        connection: Connection::default(),
    };
    let gpus: Vec<GpuConfig> = if file.gpu.is_empty() {
        vec![usual; file.gpus.unwrap_or(1)]
    } else {
        if let Some(count) = file.gpus
            && count != file.gpu.len()
        {
            return Err(format!(
                "`gpus` says {count}, but there are {} [[gpu]] tables: leave one of the two out",
                file.gpu.len()
            ));
        }
        let one = |own: GpuFile| GpuConfig {
            name: own.name.unwrap_or_else(|| usual.name.clone()),
            memory: bytes(own.memory, usual.memory),
            context_bytes: bytes(own.context_bytes, usual.context_bytes),
            function_bytes: bytes(own.function_bytes, usual.function_bytes),
            graph_bytes: bytes(own.graph_bytes, usual.graph_bytes),
            reserved: bytes(own.reserved, usual.reserved),
            link_out: bytes(own.link_out, usual.link_out),
            link_in: bytes(own.link_in, usual.link_in),
            duplex: own.duplex.unwrap_or(usual.duplex),
            memory_bandwidth: bytes(own.memory_bandwidth, usual.memory_bandwidth),
            connection: Connection {
                node: own.node,
                switch: own.switch,
                nvlinks: (own.nvlinks.into_iter().map(NvLinkEnd::Gpu))
                    .chain((0..own.nvswitch_links).map(NvLinkEnd::Switch))
                    .collect(),
            },
            ..usual.clone()
        };
        file.gpu.into_iter().map(one).collect()
    };
    check(&gpus)?;
    Ok(Config {
        state,
        gpus,
        driver_version: file.driver_version.unwrap_or(13000),
        peers: file.peers.unwrap_or(true),
        p2p_status: file.p2p_status.unwrap_or(true),
        load_waits: file.load_waits.unwrap_or(false),
        compute_mode: file.compute_mode.unwrap_or_default(),
        confidential: file.confidential.unwrap_or(false),
        faults: file.fault,
    })
}

fn check(gpus: &[GpuConfig]) -> Result<(), String> {
    if gpus.len() > GPUS_MAX {
        return Err(format!("{} GPUs: there may be at most {GPUS_MAX}", gpus.len()));
    }
    for (index, gpu) in gpus.iter().enumerate() {
        let speeds = [
            ("link_out", gpu.link_out),
            ("link_in", gpu.link_in),
            ("memory_bandwidth", gpu.memory_bandwidth),
            ("memory", gpu.memory),
            ("time_slice_ns", gpu.time_slice_ns),
        ];
        for (key, value) in speeds {
            if value == 0 {
                return Err(format!("`{key}` of GPU {index} is 0: it must be larger"));
            }
        }
        if gpu.context_bytes > gpu.memory {
            return Err(format!(
                "`context_bytes` of GPU {index} is {}, more than its `memory` of {}",
                gpu.context_bytes, gpu.memory
            ));
        }
        if gpu.name.len() > 95 {
            return Err(format!("`name` of GPU {index} is longer than 95 bytes"));
        }
    }
    connection::check(gpus)
}

/// A number of bytes: an integer, or a string such as "16 GiB" or "24 GB".
#[derive(Debug, Clone, Copy, PartialEq)]
struct Bytes(u64);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Bytes;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of bytes, or a string such as \"16 GiB\" or \"24 GB\"")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Bytes, E> {
                u64::try_from(value)
                    .map(Bytes)
                    .map_err(|_| E::custom("a number of bytes cannot be negative"))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                parse_bytes(text).map(Bytes).ok_or_else(|| {
                    E::custom(format!(
                        "{text:?} is not a number of bytes such as \"16 GiB\" or \"24 GB\""
                    ))
                })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    let unit: f64 = match text[end..].trim().trim_end_matches("/s") {
        "" | "B" => 1.0,
        "KB" | "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        "KiB" => 1024.0,
        "MiB" => 1_048_576.0,
        "GiB" => 1_073_741_824.0,
        "TiB" => 1_099_511_627_776.0,
        _ => return None,
    };
    Some((number * unit) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let file: ConfigFile = toml::from_str(text).map_err(|error| error.to_string())?;
        resolve(file, "fallback", |name| (name == "NODE").then(|| "n1".to_owned()))
    }

    #[test]
    fn an_empty_file_is_the_default_but_for_the_state() {
        let config = parse("").unwrap();
        assert_eq!(config.state, "fallback");
        assert_eq!(config.gpus, Config::default().gpus);
    }

    #[test]
    fn keys_at_the_top_hold_for_all_gpus_and_tables_override_them() {
        let config = parse(
            "state = 's'\nstate_env = 'NODE'\nmemory = '2 GiB'\nduplex = false\n\
             [[gpu]]\n[[gpu]]\nname = 'big'\nmemory = 4000000000\n",
        )
        .unwrap();
        assert_eq!(config.state, "s-n1");
        assert_eq!(config.gpus[0].memory, 2 << 30);
        assert_eq!(config.gpus[1].memory, 4_000_000_000);
        assert_eq!(config.gpus[1].name, "big");
        assert!(!config.gpus[1].duplex);
        assert_eq!(parse("gpus = 3").unwrap().gpus.len(), 3);
        assert_eq!(parse("gpus = 0").unwrap().gpus.len(), 0);
    }

    #[test]
    fn connections_are_each_gpus_own() {
        let config = parse(
            "peers = false\np2p_status = false\n[[gpu]]\nswitch = 3\nnvlinks = [1, 1]\n\
             [[gpu]]\nswitch = 3\nnvlinks = [0, 0]\nnvswitch_links = 2\n[[gpu]]\nnode = 1\n",
        )
        .unwrap();
        assert!(!config.peers && !config.p2p_status);
        let [one, two, three] = [0, 1, 2].map(|gpu| &config.gpus[gpu].connection);
        assert_eq!(one.switch, Some(3));
        assert_eq!(one.nvlinks, [NvLinkEnd::Gpu(1); 2]);
        assert_eq!(two.nvlinks[2..], [NvLinkEnd::Switch(0), NvLinkEnd::Switch(1)]);
        assert_eq!(*three, Connection { node: 1, ..Connection::default() });
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("memroy = 1", "memroy"),
            ("[[gpu]]\ncolour = 1", "colour"),
            ("memory = '16 XB'", "16 XB"),
            ("memory = -1", "negative"),
            ("memory = 0", "memory"),
            ("gpus = 17", "at most"),
            ("gpus = 1\n[[gpu]]\n[[gpu]]", "leave one of the two out"),
            ("state = 'a/b'", "a/b"),
            ("memory = 1\ncontext_bytes = 2", "context_bytes"),
            ("[[fault]]\nkind = 'explodes'", "explodes"),
            ("[[gpu]]\nnvlinks = [0]", "itself"),
            ("[[gpu]]\nnvlinks = [1]", "there is none"),
            ("[[gpu]]\nnvlinks = [1, 1]\n[[gpu]]\nnvlinks = [0]", "two ends"),
            ("[[gpu]]\nnvswitch_links = 19", "at most 18"),
            ("[[gpu]]\nswitch = 0\n[[gpu]]\nswitch = 0\nnode = 1", "same `node`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}

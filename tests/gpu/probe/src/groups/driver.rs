//! Group `driver`: what this driver is, the functions that it exports against our list, and what
//! cuGetProcAddress gives for every name by version and kind of default stream.

use std::collections::{BTreeMap, BTreeSet};

use acb_cuda_abi::{Class, FUNCTIONS, StreamForm, resolve};
use anyhow::Context;
use serde_json::{Value, json};

use crate::bench::{Bench, GIB};
use crate::driver::device::{Attribute, Gpu};
use crate::driver::table::{Driver, symbol_at};
use crate::elf;
use crate::row::Row;

/// CU_GET_PROC_ADDRESS_LEGACY_STREAM and …_PER_THREAD_DEFAULT_STREAM.
const FLAGS: [(StreamForm, u64); 2] = [(StreamForm::Legacy, 1), (StreamForm::PerThread, 2)];

/// Versions that the toolkits pass; those of the list come in addition.
const TOOLKITS: [i32; 18] = [
    11000, 11010, 11020, 11030, 11040, 11050, 11060, 11070, 11080, 12000, 12010, 12020, 12030,
    12040, 12060, 12080, 12090, 13000,
];

pub(crate) fn run(bench: &Bench) -> anyhow::Result<()> {
    let gpu = Gpu::open()?;
    facts(bench, &gpu)?;
    let (missing, unknown) = symbols(bench, gpu.driver)?;
    let answers = proc_addresses(bench, gpu.driver)?;
    bench.detail(json!({
        "listed_but_not_exported": missing,
        "exported_but_not_listed": unknown,
        "proc_address": answers,
    }));
    Ok(())
}

fn facts(bench: &Bench, gpu: &Gpu) -> anyhow::Result<()> {
    let mut version = 0;
    crate::driver::device::version(gpu.driver, &mut version)?;
    let name = gpu.name()?;
    let memory = gpu.memory()?;
    let capability =
        format!("{}.{}", gpu.attribute(Attribute::Major)?, gpu.attribute(Attribute::Minor)?);
    let kernel_module = std::fs::read_to_string("/proc/driver/nvidia/version")
        .ok()
        .and_then(|text| text.lines().next().map(str::to_owned));
    let release = kernel_module.as_deref().map(driver_release);
    bench.machine("gpu", &name);
    bench.machine("gpu_memory_gib", format!("{:.1}", memory.total as f64 / GIB as f64));
    bench.machine("gpu_uuid", gpu.uuid()?);
    bench.machine("compute_capability", &capability);
    bench.machine("cuda_version", format!("{}.{}", version / 1000, version % 1000 / 10));
    bench.machine("driver", release.clone().unwrap_or_else(|| "unknown".into()));
    let path = gpu.driver.path().context("dladdr does not know cuInit")?;
    bench.machine(
        "driver_library",
        std::fs::canonicalize(&path).unwrap_or(path).display().to_string(),
    );
    bench.text("gpu", name);
    bench.text("driver_release", release.unwrap_or_else(|| "unknown".into()));
    bench.value("cuda_version", "number", f64::from(version));
    bench.text("compute_capability", capability);
    bench.value("gpu_memory_gib", "GiB", memory.total as f64 / GIB as f64);
    bench.value("multiprocessors", "count", f64::from(gpu.attribute(Attribute::Multiprocessors)?));
    Ok(())
}

/// `580.159.03` of the kernel module's first line.
fn driver_release(line: &str) -> String {
    let is_release =
        |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    line.split_whitespace().find(is_release).unwrap_or(line).to_owned()
}

/// The driver's exports against our list: what it lacks, and what we do not know.
fn symbols(bench: &Bench, driver: &Driver) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let path = driver.path().context("dladdr does not know cuInit")?;
    let file = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let exported: BTreeSet<String> = elf::exported_functions(&file)
        .with_context(|| format!("reading {}", path.display()))?
        .into_iter()
        .filter(|name| name.starts_with("cu"))
        .collect();
    let listed: BTreeSet<String> =
        FUNCTIONS.iter().map(|function| function.symbol.to_owned()).collect();
    let missing: Vec<String> = listed.difference(&exported).cloned().collect();
    let unknown: Vec<String> = exported.difference(&listed).cloned().collect();
    bench.value("exported_symbols", "count", exported.len() as f64);
    bench.value("listed_symbols", "count", listed.len() as f64);
    bench.row(
        Row::value(bench.group, "listed_but_not_exported", "count", missing.len() as f64)
            .note(some_of(&missing)),
    );
    bench.row(
        Row::value(bench.group, "exported_but_not_listed", "count", unknown.len() as f64)
            .note(some_of(&unknown)),
    );
    Ok((missing, unknown))
}

/// Names for a table's cell: all are in the details.
fn some_of(names: &[impl AsRef<str>]) -> String {
    let mut text: Vec<&str> = names.iter().take(12).map(AsRef::as_ref).collect();
    if names.len() > text.len() {
        text.push("…");
    }
    text.join(" ")
}

/// What cuGetProcAddress gives for a name, asked for the versions in order.
#[derive(Default)]
struct Answers {
    /// Version from which on the answer holds, and the answer.
    changes: Vec<(i32, String)>,
}

impl Answers {
    fn add(&mut self, version: i32, answer: String) {
        if self.changes.last().is_none_or(|(_, last)| *last != answer) {
            self.changes.push((version, answer));
        }
    }
}

/// Asks for every name of the list, for every version and kind of stream, and compares with the list.
fn proc_addresses(bench: &Bench, driver: &Driver) -> anyhow::Result<BTreeMap<String, Value>> {
    let mut installed = 0;
    crate::driver::device::version(driver, &mut installed)?;
    let names: BTreeSet<&str> = FUNCTIONS.iter().map(|function| function.name).collect();
    let hooked: BTreeSet<&str> =
        FUNCTIONS.iter().filter(|f| f.class != Class::Pass).map(|function| function.name).collect();
    let listed = FUNCTIONS.iter().map(|function| function.version as i32);
    let versions: BTreeSet<i32> =
        listed.chain(TOOLKITS).chain([installed]).filter(|version| *version <= installed).collect();
    let mut table = BTreeMap::new();
    let (mut asked, mut not_exported, mut differ) = (0u32, BTreeSet::new(), BTreeSet::new());
    let mut hooked_differ = BTreeSet::new();
    for name in &names {
        let mut forms = BTreeMap::new();
        for (form, flags) in FLAGS {
            let mut answers = Answers::default();
            for version in versions.iter().copied() {
                asked += 1;
                let answer = match driver.proc_address(name, version, flags) {
                    Err((code, status)) => format!("error {code} status {status}"),
                    Ok(address) => match symbol_at(address) {
                        Some((Some(symbol), _)) => exported_alias(driver, name, symbol, address),
                        _ => {
                            not_exported.insert(format!("{name}@{version}"));
                            "an address that is not exported".into()
                        }
                    },
                };
                let expected = resolve(name, version as u32, form).map(|at| FUNCTIONS[at].symbol);
                if let Some(expected) = expected
                    && answer != expected
                    && driver.address(expected) != 0
                {
                    differ.insert(format!("{name}@{version}:{answer}≠{expected}"));
                    if hooked.contains(name) {
                        hooked_differ.insert(format!("{name}@{version}:{answer}≠{expected}"));
                    }
                }
                answers.add(version, answer);
            }
            forms.insert(format!("{form:?}"), json!(answers.changes));
        }
        table.insert((*name).to_owned(), json!(forms));
    }
    let rows = [
        ("proc_address_asked", f64::from(asked), String::new()),
        ("proc_address_not_exported", not_exported.len() as f64, note(&not_exported)),
        ("proc_address_other_than_listed", differ.len() as f64, note(&differ)),
        ("proc_address_hooked_other_than_listed", hooked_differ.len() as f64, note(&hooked_differ)),
    ];
    for (name, value, text) in rows {
        bench.row(Row::value(bench.group, name, "count", value).note(text));
    }
    Ok(table)
}

fn note(names: &BTreeSet<String>) -> String {
    some_of(&names.iter().collect::<Vec<_>>())
}

/// Several exported names may share an address: then the one that our list has for it is the answer.
fn exported_alias(driver: &Driver, name: &str, symbol: String, address: usize) -> String {
    let listed = FUNCTIONS.iter().filter(|function| function.name == name);
    let mut same = listed.filter(|function| driver.address(function.symbol) == address);
    same.next_back().map_or(symbol, |function| function.symbol.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_found_in_the_modules_line() {
        let line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.03  Tue Jan 1 2026";
        assert_eq!(driver_release(line), "580.159.03");
        let open =
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build";
        assert_eq!(driver_release(open), "570.86.15");
        assert_eq!(driver_release("nothing"), "nothing");
    }

    #[test]
    fn answers_are_kept_where_they_change() {
        let mut answers = Answers::default();
        for (version, answer) in [(1, "a"), (2, "a"), (3, "b"), (4, "b"), (5, "a")] {
            answers.add(version, answer.into());
        }
        let kept: Vec<i32> = answers.changes.iter().map(|(version, _)| *version).collect();
        assert_eq!(kept, [1, 3, 5]);
    }
}

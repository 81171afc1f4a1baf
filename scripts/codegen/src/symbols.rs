//! The one list of driver functions, from NVIDIA's public headers.
//!
//! Owns: headers to `preload/abi/functions.txt` (names, versions, C parameters), and that file with
//! the hand-written `preload/abi/classes.txt` to `preload/abi/src/generated/functions.rs`.
//! Does not own: where the headers come from (`scripts/regen`), and what the classes mean
//! (preload). The second step needs no headers, so that it can be repeated anywhere.

use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Headers that declare exported functions; what a release does not have is skipped.
const HEADERS: [&str; 4] = ["cuda.h", "cudaGL.h", "cudaEGL.h", "cudaVDPAU.h"];

/// Structs and handles that cudarc's bindings (of CUDA 13.0, without graphics) lack. They become
/// `c_void`, which says no less about a pointer; nobody calls the one function that takes such a
/// struct by value (cuEGLStreamProducerPresentFrame) other than through its trampoline.
const NOT_IN_CUDARC: [&str; 9] = [
    "CUDA_FABRIC_COPY_BATCH_OP",
    "CU_DEV_SM_RESOURCE_GROUP_PARAMS",
    "CUcheckpointOperationHandle",
    "CUcliqueInfo",
    "CUcoredumpCallbackHandle",
    "CUeglFrame",
    "CUeglStreamConnection",
    "CUlogicalEndpointProp",
    "CUstreamCigCaptureParams",
];

/// One exported symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Function {
    symbol: String,
    /// The name that programs use and that cuGetProcAddress takes.
    name: String,
    /// CUDA version since which cuGetProcAddress answers `name` with this symbol.
    version: u32,
    form: Form,
    /// The parameter list in C.
    parameters: String,
}

/// What functions.txt holds.
struct List {
    functions: Vec<Function>,
    /// Enums among the parameters' types.
    enums: BTreeSet<String>,
}

/// What the default stream means to a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    Legacy,
    Ptds,
    Ptsz,
}

impl Form {
    fn of(suffix: &str) -> Self {
        match suffix {
            "_ptds" => Form::Ptds,
            "_ptsz" => Form::Ptsz,
            _ => Form::Legacy,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Form::Legacy => "legacy",
            Form::Ptds => "ptds",
            Form::Ptsz => "ptsz",
        }
    }
}

/// `codegen symbols ROOT [HEADERS_DIR…]`: without headers only the second step.
pub(crate) fn symbols(root: &Path, headers: &[PathBuf]) -> Result<()> {
    let list = root.join("preload/abi/functions.txt");
    if !headers.is_empty() {
        std::fs::write(&list, list_text(&read_headers(headers)?)).context("write functions.txt")?;
    }
    let List { functions, enums } = parse_list(&read(&list)?)?;
    let classes = parse_classes(&read(&root.join("preload/abi/classes.txt"))?, &functions)?;
    let folder = root.join("preload/abi/src/generated");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("functions.rs"), rust_text(&functions, &enums, &classes)?)
        .context("write functions.rs")
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

// ---------------------------------------------------------------- headers to functions

/// Everything that the releases in `folders` declare together, by symbol.
fn read_headers(folders: &[PathBuf]) -> Result<List> {
    let mut parameters = BTreeMap::new();
    let mut enums = BTreeSet::new();
    let mut versions: BTreeMap<(String, Form), BTreeMap<u32, String>> = BTreeMap::new();
    for folder in folders {
        ensure!(folder.join("cuda.h").exists(), "no cuda.h in {}", folder.display());
        for header in HEADERS.map(|name| folder.join(name)).iter().filter(|path| path.exists()) {
            let header = read(header)?;
            for (symbol, list) in declarations(&header)? {
                parameters.entry(symbol).or_insert(list);
            }
            enums.extend(enum_names(&header)?);
        }
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with("cuda") && name.ends_with("Typedefs.h") {
                for (name, form, version, list) in typedefs(&read(&path)?)? {
                    versions.entry((name, form)).or_default().entry(version).or_insert(list);
                }
            }
        }
    }
    let functions = pair(parameters, versions)?;
    let word = Regex::new(r"\w+")?;
    let used: BTreeSet<&str> =
        functions.iter().flat_map(|f| word.find_iter(&f.parameters).map(|m| m.as_str())).collect();
    enums.retain(|name| used.contains(name.as_str()));
    Ok(List { functions, enums })
}

fn enum_names(header: &str) -> Result<Vec<String>> {
    let text = Regex::new(r"(?s)/\*.*?\*/|//[^\n]*")?.replace_all(header, " ");
    let direct = Regex::new(r"typedef\s+enum\s+\w*\s*(?:\{[^}]*\})?\s*(\w+)\s*;")?;
    let mut names: Vec<String> = direct.captures_iter(&text).map(|c| c[1].to_owned()).collect();
    // `typedef CUlaunchAttributeID CUkernelNodeAttrID;`
    let alias = Regex::new(r"typedef\s+(\w+)\s+(\w+)\s*;")?;
    for c in alias.captures_iter(&text) {
        if names.iter().any(|name| *name == c[1]) {
            names.push(c[2].to_owned());
        }
    }
    Ok(names)
}

/// The symbols of one header with their parameters. The upper part declares plain names that
/// macros turn into symbols; the part after the first `#undef` declares symbols as they are.
fn declarations(header: &str) -> Result<Vec<(String, String)>> {
    let text = Regex::new(r"(?s)/\*.*?\*/|//[^\n]*")?.replace_all(header, " ").into_owned();
    let split = Regex::new(r"#\s*undef\s+cu[A-Z]")?.find(&text).map_or(text.len(), |m| m.start());
    let (public, internal) = text.split_at(split);

    let define = Regex::new(
        r"#[ \t]*define[ \t]+(cu[A-Z]\w*)[ \t]+(?:__CUDA_API_(PTDS|PTSZ)\(\s*)?(cu[A-Z]\w*)",
    )?;
    let renamed: BTreeMap<&str, (&str, Option<&str>)> = define
        .captures_iter(public)
        .map(|c| {
            let [_, name, form, symbol] = [0, 1, 2, 3].map(|i| c.get(i).map(|m| m.as_str()));
            (name.unwrap_or_default(), (symbol.unwrap_or_default(), form))
        })
        .collect();

    let declaration = Regex::new(
        r"\bCUresult\s+(?:CUDAAPI\s+)?(cu[A-Z]\w*)\s*\(([^;{}()]*(?:\([^()]*\)[^;{}()]*)*)\)\s*;",
    )?;
    let mut all = Vec::new();
    for c in declaration.captures_iter(public) {
        let list = squeeze(&c[2]);
        let (symbol, form) =
            renamed.get(&c[1]).copied().unwrap_or((c.get(1).map_or("", |m| m.as_str()), None));
        if let Some(form) = form {
            all.push((format!("{symbol}_{}", form.to_lowercase()), list.clone()));
        }
        all.push((symbol.to_owned(), list));
    }
    all.extend(declaration.captures_iter(internal).map(|c| (c[1].to_owned(), squeeze(&c[2]))));
    Ok(all)
}

/// Name, form, version and parameters of every `PFN_…` type of a Typedefs header.
fn typedefs(header: &str) -> Result<Vec<(String, Form, u32, String)>> {
    let typedef = Regex::new(
        r"\*\s*PFN_(cu\w+?)_v(\d+)(_ptds|_ptsz)?\)\s*\(([^;{}()]*(?:\([^()]*\)[^;{}()]*)*)\)\s*;",
    )?;
    typedef
        .captures_iter(header)
        .map(|c| {
            let form = Form::of(c.get(3).map_or("", |m| m.as_str()));
            Ok((c[1].to_owned(), form, c[2].parse()?, squeeze(&c[4])))
        })
        .collect()
}

/// Symbols of a name in the order of their `_vN` belong to its versions in ascending order. The
/// headers never say so, but the counts agree for every name; where they do not, stop.
fn pair(
    mut parameters: BTreeMap<String, String>,
    versions: BTreeMap<(String, Form), BTreeMap<u32, String>>,
) -> Result<Vec<Function>> {
    // Declared in cudaProfiler.h, which the wheels lack; the Typedefs header has them.
    for ((name, form), by_version) in &versions {
        if *form == Form::Legacy && by_version.len() == 1 && !parameters.contains_key(name) {
            let known = parameters.keys().any(|symbol| split_symbol(symbol).0 == name);
            if !known {
                parameters.extend(by_version.values().map(|list| (name.clone(), list.clone())));
            }
        }
    }
    let mut groups: BTreeMap<(String, Form), Vec<(u32, String)>> = BTreeMap::new();
    for symbol in parameters.keys() {
        let (name, number, form) = split_symbol(symbol);
        groups.entry((name.to_owned(), form)).or_default().push((number, symbol.clone()));
    }
    let mut functions = Vec::new();
    for ((name, form), mut symbols) in groups {
        symbols.sort();
        let known = versions.get(&(name.clone(), form)).map_or(0, BTreeMap::len);
        ensure!(
            known == symbols.len(),
            "{name} ({}): {} symbols, but {known} versions in the Typedefs headers",
            form.word(),
            symbols.len(),
        );
        for ((_, symbol), version) in
            symbols.into_iter().zip(versions[&(name.clone(), form)].keys())
        {
            let parameters = parameters[&symbol].clone();
            functions.push(Function {
                symbol,
                name: name.clone(),
                version: *version,
                form,
                parameters,
            });
        }
    }
    functions.sort_by(|a, b| a.symbol.cmp(&b.symbol));
    Ok(functions)
}

/// `cuMemcpyHtoD_v2_ptds` is version 2 of `cuMemcpyHtoD` in the form `ptds`.
fn split_symbol(symbol: &str) -> (&str, u32, Form) {
    let (rest, form) = match symbol.len().checked_sub(5).map(|at| symbol.split_at(at)) {
        Some((rest, suffix @ ("_ptds" | "_ptsz"))) => (rest, Form::of(suffix)),
        _ => (symbol, Form::Legacy),
    };
    match rest.rsplit_once("_v").and_then(|(name, n)| Some((name, n.parse().ok()?))) {
        Some((name, number)) => (name, number, form),
        None => (rest, 1, form),
    }
}

fn squeeze(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

// ---------------------------------------------------------------- functions.txt

fn list_text(list: &List) -> String {
    let mut text = String::from(
        "# Every symbol that NVIDIA's public headers give libcuda.so.1. Generated: scripts/regen.\n\
         # enum NAME: a type that is passed as an integer.\n\
         # symbol  name  version (of cuGetProcAddress)  default stream  (C parameters)\n",
    );
    for name in &list.enums {
        writeln!(text, "enum {name}").expect("a String takes everything");
    }
    for f in &list.functions {
        writeln!(
            text,
            "{} {} {} {} ({})",
            f.symbol,
            f.name,
            f.version,
            f.form.word(),
            f.parameters
        )
        .expect("a String takes everything");
    }
    text
}

fn parse_list(text: &str) -> Result<List> {
    let lines = || text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let enums = lines().filter_map(|line| line.strip_prefix("enum ")).map(str::to_owned).collect();
    let functions: Result<Vec<Function>> = lines()
        .filter(|line| !line.starts_with("enum "))
        .map(|line| {
            let parts: Vec<&str> = line.splitn(5, ' ').collect();
            let [symbol, name, version, form, parameters] = parts[..] else {
                bail!("functions.txt: not five columns: {line}");
            };
            Ok(Function {
                symbol: symbol.into(),
                name: name.into(),
                version: version.parse().with_context(|| format!("version in: {line}"))?,
                form: Form::of(&format!("_{form}")),
                parameters: parameters.trim_matches(['(', ')']).into(),
            })
        })
        .collect();
    Ok(List { functions: functions?, enums })
}

/// Class of each symbol that classes.txt names.
fn parse_classes(text: &str, functions: &[Function]) -> Result<BTreeMap<String, String>> {
    let names: BTreeSet<&str> = functions.iter().map(|f| f.name.as_str()).collect();
    let symbols: BTreeSet<&str> = functions.iter().map(|f| f.symbol.as_str()).collect();
    let mut by_word = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        if line.starts_with('#') || line.trim().is_empty() {
            continue;
        }
        let place = format!("classes.txt:{}", number + 1);
        let Some((class, words)) = line.split_once(':') else {
            bail!("{place}: no `class:` in front: {line}");
        };
        for word in words.split_whitespace() {
            ensure!(names.contains(word) || symbols.contains(word), "{place}: no function {word}");
            let before = by_word.insert(word, class.trim());
            ensure!(before.is_none(), "{place}: {word} has a class already");
        }
    }
    Ok(functions
        .iter()
        .filter_map(|f| {
            let class = by_word.get(f.symbol.as_str()).or_else(|| by_word.get(f.name.as_str()))?;
            Some((f.symbol.clone(), (*class).to_owned()))
        })
        .collect())
}

// ---------------------------------------------------------------- functions.rs

fn rust_text(
    functions: &[Function],
    enums: &BTreeSet<String>,
    classes: &BTreeMap<String, String>,
) -> Result<String> {
    let mut text = String::from(
        "// Generated by scripts/regen from functions.txt and classes.txt. Do not edit.\n\n\
         /// Hands the one list of driver functions to the macro `$callback`, one line a symbol:\n\
         ///\n\
         /// ```text\n\
         /// [class] symbol \"symbol\" \"name\" version Form (parameter: type, …);\n\
         /// ```\n\
         ///\n\
         /// Names in the types mean this crate's `sys` and `std::ffi`; bring both into scope.\n\
         #[macro_export]\n\
         macro_rules! driver_functions {\n    ($callback:ident) => {\n        $callback! {\n",
    );
    for f in functions {
        let class = classes.get(&f.symbol).map_or("pass", String::as_str);
        let form = match f.form {
            Form::Legacy => "Legacy",
            Form::Ptds | Form::Ptsz => "PerThread",
        };
        let parameters = rust_parameters(&f.parameters, enums).with_context(|| f.symbol.clone())?;
        writeln!(
            text,
            "            [{class}] {0} \"{0}\" \"{1}\" {2} {form} ({parameters});",
            f.symbol, f.name, f.version
        )?;
    }
    text.push_str("        }\n    };\n}\n");
    Ok(text)
}

fn rust_parameters(list: &str, enums: &BTreeSet<String>) -> Result<String> {
    if list == "void" || list.is_empty() {
        return Ok(String::new());
    }
    let parts: Result<Vec<String>> = list
        .split(',')
        .enumerate()
        .map(|(i, part)| rust_parameter(part.trim(), i, enums))
        .collect();
    Ok(parts?.join(", "))
}

/// `const size_t *sizes` becomes `sizes: *const usize`.
fn rust_parameter(part: &str, position: usize, enums: &BTreeSet<String>) -> Result<String> {
    let pattern =
        Regex::new(r"^([\w ]*?\w)\s*((?:\*\s*(?:const\s+)?)*)(?:\b(\w+))?\s*(\[\d*\])?$")?;
    let c = pattern.captures(part).with_context(|| format!("cannot read parameter `{part}`"))?;
    let constant = c[1].split_whitespace().any(|word| word == "const");
    let mut words: Vec<&str> =
        c[1].split_whitespace().filter(|word| !["const", "struct"].contains(word)).collect();
    let mut name = c.get(3).map(|m| m.as_str().to_owned());
    // `unsigned int` without a name: the pattern took the last word for one.
    if name.as_deref().is_some_and(|n| ["int", "long", "char", "short"].contains(&n)) {
        words.push(match name.as_deref() {
            Some("int") => "int",
            Some("long") => "long",
            Some("char") => "char",
            _ => "short",
        });
        name = None;
    }
    let stars = c[2].matches('*').count() + usize::from(c.get(4).is_some());
    let base = rust_type(&words.join(" "), stars > 0, enums);
    let kind = match stars {
        0 => base,
        _ => {
            let inner = format!("{}{base}", "*mut ".repeat(stars - 1));
            format!("{} {inner}", if constant { "*const" } else { "*mut" })
        }
    };
    let name = match name.as_deref() {
        Some(name @ ("fn" | "in" | "mod" | "ref" | "self" | "type" | "use")) => format!("{name}_"),
        Some(name) => name.to_owned(),
        None => format!("parameter{position}"),
    };
    Ok(format!("{name}: {kind}"))
}

/// Enums become the integer they are passed as: a value unknown to this list must not be undefined
/// behaviour. Function pointers become addresses, which is all that is ever done with them here.
fn rust_type(c: &str, behind_pointer: bool, enums: &BTreeSet<String>) -> String {
    let plain = match c {
        "void" => "c_void",
        "char" => "c_char",
        "unsigned char" => "c_uchar",
        "unsigned short" => "c_ushort",
        "int" | "CUdevice" | "CUdevice_v1" | "EGLint" => "c_int",
        "unsigned int"
        | "unsigned"
        | "cuuint32_t"
        | "GLuint"
        | "GLenum"
        | "CUdeviceptr_v1"
        | "VdpDevice"
        | "VdpOutputSurface"
        | "VdpVideoSurface"
        | "CUlogicalEndpointId" => "c_uint",
        "unsigned long long"
        | "cuuint64_t"
        | "CUdeviceptr"
        | "CUdeviceptr_v2"
        | "CUtexObject"
        | "CUsurfObject"
        | "CUgraphConditionalHandle"
        | "CUmemGenericAllocationHandle" => "u64",
        "size_t" => "usize",
        "float" => "f32",
        "EGLImageKHR"
        | "EGLStreamKHR"
        | "EGLSyncKHR"
        | "HGPUNV"
        | "CUhostFn"
        | "CUstreamCallback"
        | "CUoccupancyB2DSize"
        | "CUasyncCallback"
        | "CUcoredumpStatusCallback"
        | "CUgraphRecaptureCallback"
        | "CUlogsCallback" => "*mut c_void",
        "VdpGetProcAddress" => "c_void",
        _ => "",
    };
    if !plain.is_empty() {
        return plain.to_owned();
    }
    let name = c.strip_suffix("_v2").unwrap_or(c);
    if enums.contains(name) {
        return "c_uint".to_owned();
    }
    if name.ends_with("_v1") || NOT_IN_CUDARC.contains(&name) {
        return if behind_pointer { "c_void".into() } else { "*mut c_void".into() };
    }
    format!("sys::{name}")
}

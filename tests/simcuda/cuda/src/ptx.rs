//! Reads of PTX what the driver's API shows of it: entry points with their
//! parameters, and global variables. Also the images that are not text.

use crate::code::{INVALID_IMAGE, INVALID_PTX, Outcome};

/// What a module holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Image {
    pub(crate) entries: Vec<Entry>,
    pub(crate) globals: Vec<Global>,
}

/// A kernel.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) parameters: Vec<Parameter>,
}

/// Where a parameter lies in the kernel's parameter buffer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Parameter {
    pub(crate) offset: usize,
    pub(crate) size: usize,
}

/// A module's global variable.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Global {
    pub(crate) name: String,
    pub(crate) size: usize,
}

/// Reads a PTX text.
pub(crate) fn parse(text: &str) -> Outcome<Image> {
    let text = without_comments(text);
    if !text.contains(".version") || !text.contains(".target") {
        return Err(INVALID_IMAGE);
    }
    if text.matches('{').count() != text.matches('}').count() {
        return Err(INVALID_PTX);
    }
    let mut image = Image::default();
    let mut depth = 0_usize;
    let mut statement = String::new();
    for c in text.chars() {
        match c {
            '{' | ';' => {
                if depth == 0 {
                    read_statement(&statement, &mut image)?;
                    statement.clear();
                }
                depth += usize::from(c == '{');
            }
            '}' => {
                depth = depth.checked_sub(1).ok_or(INVALID_PTX)?;
                statement.clear();
            }
            _ if depth == 0 => statement.push(c),
            _ => {}
        }
    }
    Ok(image)
}

fn without_comments(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('/') {
        plain.push_str(&rest[..at]);
        let tail = &rest[at..];
        let (end, skipped) = if tail.starts_with("//") {
            (tail.find('\n'), 0)
        } else if tail.starts_with("/*") {
            (tail.find("*/"), 2)
        } else {
            plain.push('/');
            (Some(1), 0)
        };
        rest = end.map_or("", |end| &tail[end + skipped..]);
    }
    plain + rest
}

fn read_statement(statement: &str, image: &mut Image) -> Outcome {
    let words: Vec<&str> = statement.split_whitespace().collect();
    if let Some(at) = words.iter().position(|&word| word == ".entry") {
        let rest = words[at + 1..].join(" ");
        let name_end = rest.find(|c: char| c == '(' || c.is_whitespace()).unwrap_or(rest.len());
        let name = rest[..name_end].to_owned();
        let parameters = match (rest.find('('), rest.find(')')) {
            (Some(open), Some(close)) if open < close => parameters(&rest[open + 1..close])?,
            (None, None) => Vec::new(),
            _ => return Err(INVALID_PTX),
        };
        if name.is_empty() {
            return Err(INVALID_PTX);
        }
        image.entries.push(Entry { name, parameters });
    } else if words.iter().any(|&word| word == ".global" || word == ".const") {
        let declared = statement.split('=').next().unwrap_or_default();
        if let Some((size, _, name, count)) = declaration(declared) {
            image.globals.push(Global { name, size: size * count });
        }
    }
    Ok(())
}

fn parameters(list: &str) -> Outcome<Vec<Parameter>> {
    let mut offset = 0_usize;
    let mut all = Vec::new();
    for one in list.split(',').map(str::trim).filter(|one| !one.is_empty()) {
        let (size, align, _, count) = declaration(one).ok_or(INVALID_PTX)?;
        offset = offset.next_multiple_of(align);
        all.push(Parameter { offset, size: size * count });
        offset += size * count;
    }
    Ok(all)
}

/// Size of an element, alignment, name and number of elements of a declaration
/// such as `.param .align 8 .b8 name[16]`.
fn declaration(text: &str) -> Option<(usize, usize, String, usize)> {
    let spaced = text.replace('[', " [ ").replace(']', " ] ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let size = words.iter().find_map(|word| type_size(word))?;
    let explicit = words.iter().position(|&word| word == ".align");
    let align = explicit.and_then(|at| words.get(at + 1)?.parse().ok()).unwrap_or(size);
    let bracket = words.iter().position(|&word| word == "[").unwrap_or(words.len());
    let name = (*words.get(bracket.checked_sub(1)?)?).to_owned();
    let mut count = 1;
    for pair in words[bracket..].windows(2) {
        if pair[0] == "[" && pair[1] != "]" {
            count *= pair[1].parse::<usize>().ok()?;
        }
    }
    (align.is_power_of_two()).then_some((size, align, name, count))
}

fn type_size(word: &str) -> Option<usize> {
    Some(match word {
        ".b8" | ".u8" | ".s8" => 1,
        ".b16" | ".u16" | ".s16" | ".f16" | ".bf16" => 2,
        ".b32" | ".u32" | ".s32" | ".f32" | ".f16x2" => 4,
        ".b64" | ".u64" | ".s64" | ".f64" => 8,
        ".b128" => 16,
        ".texref" | ".samplerref" | ".surfref" => 8,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = ".version 6.4\n.target sm_52\n.address_size 64\n";

    #[test]
    fn entries_parameters_and_globals() {
        let text = format!(
            "{HEAD}// .entry not_this()\n.global .align 4 .b8 table[12];\n.visible .global .u64 one = 5;\n\
             .visible .entry a(\n .param .u64 a_p,\n .param .u32 a_n /* how many */,\n .param .u64 a_s\n)\n.maxntid 128, 1, 1\n{{ .reg .b32 %r; ret; }}\n\
             .entry b() {{ ret; }}\n.visible .entry c(.param .align 8 .b8 c_0[24], .param .u8 c_1){{ {{ }} }}"
        );
        let image = parse(&text).unwrap();
        let names: Vec<&str> = image.entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        let at = |offset, size| Parameter { offset, size };
        assert_eq!(image.entries[0].parameters, [at(0, 8), at(8, 4), at(16, 8)]);
        assert_eq!(image.entries[2].parameters, [at(0, 24), at(24, 1)]);
        assert_eq!(image.globals[0], Global { name: "table".into(), size: 12 });
        assert_eq!(image.globals[1], Global { name: "one".into(), size: 8 });
    }

    #[test]
    fn what_is_no_ptx() {
        assert_eq!(parse("hello"), Err(INVALID_IMAGE));
        assert_eq!(parse(&format!("{HEAD}.entry a() {{")), Err(INVALID_PTX));
        assert_eq!(parse(&format!("{HEAD}.entry a(.param .colour x) {{ }}")), Err(INVALID_PTX));
    }
}

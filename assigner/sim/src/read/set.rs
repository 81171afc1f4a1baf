//! `--set PATH=VALUE`: one value of a scenario file is another one.
//!
//! Owns: which place of the text a path means. The text is changed, and read as if the file had been written so: keys, rules and
//! places in messages are those of the file. Does not own: what values mean ([`read`](super::read())).

use std::ops::Range;

use acb_cluster_conf::nearest;
use thiserror::Error;
use toml::de::{DeTable, DeValue};

/// Why a value cannot be set; the texts say what to write instead.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SetError {
    /// There is no `=`, or nothing on one side of it.
    #[error("\"{0}\" sets nothing: write PATH=VALUE, such as client.fold.count=8")]
    NoValue(String),
    /// Sections are lists: one of them must be named.
    #[error("there are {count} sections [[{section}]]: say which, as in {section}.NAME.{key}=…")]
    Which {
        /// The sections' title.
        section: String,
        /// How many there are.
        count: usize,
        /// The key.
        key: String,
    },
    /// No section has this name.
    #[error("there is no [[{section}]] named \"{name}\"{}", hint(.meant))]
    NoSection {
        /// The sections' title.
        section: String,
        /// The name.
        name: String,
        /// One with a similar name.
        meant: Option<String>,
    },
    /// Something on the way is no section.
    #[error("`{0}` is no section")]
    NotASection(String),
    /// The text is not TOML; where and why, reading it will tell.
    #[error("the file is no TOML")]
    Syntax,
}

fn hint(meant: &Option<String>) -> String {
    meant.as_ref().map_or_else(String::new, |meant| format!("; did you mean \"{meant}\"?"))
}

/// The text of a scenario in which one value is another one: `PATH=VALUE`, with a path such as `stop_s`, `costs.message_us`,
/// `client.NAME.count`, or `node.gpus` where there is one `[[node]]`. A value that is no TOML is a string.
///
/// # Errors
/// There is no such place.
pub fn set(text: &str, assignment: &str) -> Result<String, SetError> {
    let nothing = || SetError::NoValue(assignment.to_owned());
    let (path, value) = assignment.split_once('=').ok_or_else(nothing)?;
    let (path, value) = (path.trim(), value.trim());
    if path.is_empty() || value.is_empty() || path.split('.').any(str::is_empty) {
        return Err(nothing());
    }
    let is_toml = DeTable::parse(&format!("v = {value}")).is_ok() && !value.contains('\n');
    let value = match is_toml {
        true => value.to_owned(),
        false => toml::Value::String(value.to_owned()).to_string(),
    };
    let document = DeTable::parse(text).map_err(|_| SetError::Syntax)?;
    let (place, new) = match place(text, document.get_ref(), path)? {
        Place::Value(place) => (place, value),
        Place::Line(at, key) => (at..at, format!("{key} = {value}\n")),
        Place::Section(title, key) => {
            (text.len()..text.len(), format!("\n[{title}]\n{key} = {value}\n"))
        }
    };
    Ok([&text[..place.start], &new, &text[place.end..]].concat())
}

/// Where a value is to stand.
enum Place {
    /// Instead of this one.
    Value(Range<usize>),
    /// On a line of its own, from this byte on, with its key.
    Line(usize, String),
    /// In a section that is still to be written, with its key.
    Section(String, String),
}

fn place(text: &str, top: &DeTable<'_>, path: &str) -> Result<Place, SetError> {
    let Some((mut walked, key)) = path.rsplit_once('.') else {
        return Ok(value_or(top, path, || Place::Line(0, path.to_owned())));
    };
    let (first, name) = walked.split_once('.').map_or((walked, None), |(a, b)| (a, Some(b)));
    if let Some(DeValue::Array(sections)) = top.get(first).map(|value| value.get_ref()) {
        let section = one_of(sections.iter().map(|item| item.get_ref()), first, name, key)?;
        let start = sections[section].span().start;
        let DeValue::Table(table) = sections[section].get_ref() else {
            return Err(SetError::NotASection(first.to_owned()));
        };
        return Ok(value_or(table, key, || Place::Line(next_line(text, start), key.to_owned())));
    }
    let title = path[..path.len() - key.len()].trim_end_matches('.');
    let (mut table, mut start) = (top, 0);
    while !walked.is_empty() {
        let (part, rest) = walked.split_once('.').unwrap_or((walked, ""));
        let Some(value) = table.get(part) else {
            return Ok(Place::Section(title.to_owned(), key.to_owned()));
        };
        let DeValue::Table(next) = value.get_ref() else {
            return Err(SetError::NotASection(part.to_owned()));
        };
        (table, start, walked) = (next, value.span().start, rest);
    }
    Ok(value_or(table, key, || match text[start..].starts_with(&format!("[{title}]")) {
        true => Place::Line(next_line(text, start), key.to_owned()),
        // There are only sections below it.
        false => Place::Section(title.to_owned(), key.to_owned()),
    }))
}

/// The place of a key's value in a section, or where a new one goes.
fn value_or(table: &DeTable<'_>, key: &str, new: impl FnOnce() -> Place) -> Place {
    table.get(key).map_or_else(new, |value| Place::Value(value.span()))
}

fn next_line(text: &str, from: usize) -> usize {
    text[from..].find('\n').map_or(text.len(), |end| from + end + 1)
}

/// The number of the section that a name means.
fn one_of<'v, 'i: 'v>(
    sections: impl Iterator<Item = &'v DeValue<'i>>,
    title: &str,
    name: Option<&str>,
    key: &str,
) -> Result<usize, SetError> {
    let name_of = |section: &DeValue<'_>| match section {
        DeValue::Table(table) => match table.get("name").map(|name| name.get_ref()) {
            Some(DeValue::String(name)) => name.to_string(),
            _ => String::new(),
        },
        _ => String::new(),
    };
    let names: Vec<String> = sections.map(name_of).collect();
    match name {
        None if names.len() == 1 => Ok(0),
        None => Err(SetError::Which {
            section: title.to_owned(),
            count: names.len(),
            key: key.to_owned(),
        }),
        Some(wanted) => names.iter().position(|name| name == wanted).ok_or_else(|| {
            let meant = nearest(wanted, names.iter().map(String::as_str)).map(str::to_owned);
            SetError::NoSection { section: title.to_owned(), name: wanted.to_owned(), meant }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "stop_s = 60 # a minute\n\n[scheduler]\nquantum_ms = 5\n\n[[node]] # one\ngpus = 1\n\n\
        [[client]]\nname = \"a.b\"\ngpu_s = 1\n[[client]]\nname = \"c\"\ncount = 4";

    #[test]
    fn values_are_replaced_or_added_where_they_belong() {
        let with = |assignment| set(FILE, assignment).unwrap();
        assert!(with("stop_s=7").starts_with("stop_s = 7 # a minute\n"));
        assert!(with("seed = 3").starts_with("seed = 3\nstop_s"));
        assert!(with("scheduler.quantum_ms=1_000").contains("[scheduler]\nquantum_ms = 1_000\n\n"));
        assert!(with("scheduler.policy=simple").contains("[scheduler]\npolicy = \"simple\"\n"));
        assert!(with("costs.message_us=20").ends_with("\n[costs]\nmessage_us = 20\n"));
        let deeper = with("scheduler.estimator.percentile=0.5");
        assert!(deeper.ends_with("\n[scheduler.estimator]\npercentile = 0.5\n"), "{deeper}");
        let above = set(&deeper, "scheduler.estimator.ratio=2").unwrap();
        assert!(above.ends_with("[scheduler.estimator]\nratio = 2\npercentile = 0.5\n"), "{above}");
        let first = set("[[node]]\ngpus = 1\n[a.b]\n", "node.name=n").unwrap();
        assert_eq!(first, "[[node]]\nname = \"n\"\ngpus = 1\n[a.b]\n");
        assert!(set(&first, "a.c=1").unwrap().ends_with("[a.b]\n\n[a]\nc = 1\n"));
        assert!(with("node.gpus=2").contains("[[node]] # one\ngpus = 2\n"));
        assert!(with("node.links=[0]").contains("[[node]] # one\nlinks = [0]\ngpus = 1\n"));
        assert!(with("client.c.count=8").ends_with("name = \"c\"\ncount = 8"));
        assert!(with("client.a.b.count=2").contains("[[client]]\ncount = 2\nname = \"a.b\""));
        let twice = set(&with("costs.message_us=20"), "costs.death_ms=1").unwrap();
        assert!(twice.ends_with("\n[costs]\ndeath_ms = 1\nmessage_us = 20\n"), "{twice}");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = |assignment| set(FILE, assignment).unwrap_err().to_string();
        assert!(error("client.count=2").contains("2 sections [[client]]"));
        assert!(error("client.d.count=2").contains("no [[client]] named \"d\""));
        assert!(error("client.a.c.count=2").contains("did you mean \"a.b\"?"));
        assert!(error("stop_s.more=2").contains("`stop_s` is no section"));
        assert!(error("stop_s").contains("PATH=VALUE"));
        assert!(error("a..b=1").contains("PATH=VALUE"));
        assert_eq!(set("a = [", "b=1"), Err(SetError::Syntax));
    }
}

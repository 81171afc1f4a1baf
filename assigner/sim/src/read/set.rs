//! `--set PATH=VALUE`: one value of a scenario file is another one.
//!
//! Owns: which place of the text a path means. The text is changed, and read as if the file had been written so: keys and rules
//! are those of the file, and so are places in messages, but that a value for a key that was not there takes a line of its own, at
//! the end of its section. Does not own: what values mean ([`read`](super::read())).

use acb_cluster_conf::nearest;
use thiserror::Error;
use toml_edit::{DocumentMut, InlineTable, Item, Table, TableLike, Value};

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
    let value = value.parse::<Value>().unwrap_or_else(|_| Value::from(value));
    let mut document: DocumentMut = text.parse().map_err(|_| SetError::Syntax)?;
    match path.rsplit_once('.') {
        Some((sections, key)) => {
            replace(section(document.as_table_mut(), sections, key)?, key, value)
        }
        None => replace(document.as_table_mut(), path, value),
    }
    Ok(document.to_string())
}

/// Gives a key of a section its value; what stands around an earlier one, comments for example, stays.
fn replace(section: &mut dyn TableLike, key: &str, mut value: Value) {
    let earlier = section.get(key).and_then(Item::as_value);
    *value.decor_mut() = earlier.map(|value| value.decor().clone()).unwrap_or_default();
    match section.get_mut(key) {
        Some(item) => *item = Item::Value(value),
        None => _ = section.insert(key, Item::Value(value)),
    }
}

/// The section that a path names, for a key in it; made if it is not there.
fn section<'d>(
    top: &'d mut dyn TableLike,
    path: &str,
    key: &str,
) -> Result<&'d mut dyn TableLike, SetError> {
    let (first, name) = path.split_once('.').map_or((path, None), |(a, b)| (a, Some(b)));
    let is_list = top.get(first).is_some_and(|item| item.is_array_of_tables() || item.is_array());
    if !is_list {
        let mut is_inline = false;
        return path.split('.').try_fold(top, |table, part| {
            if table.get(part).is_none() {
                let new = match is_inline {
                    true => Item::Value(InlineTable::new().into()),
                    false => Item::Table(Table::new()),
                };
                table.insert(part, new);
            }
            let item = table.get_mut(part).expect("it is there, or was just made");
            is_inline = item.is_inline_table();
            item.as_table_like_mut().ok_or_else(|| SetError::NotASection(part.to_owned()))
        });
    }
    let mut sections: Vec<&mut dyn TableLike> = match top.get_mut(first) {
        Some(Item::ArrayOfTables(sections)) => {
            sections.iter_mut().map(|section| section as &mut dyn TableLike).collect()
        }
        Some(Item::Value(Value::Array(sections))) => {
            let sections = sections.iter_mut().map(|section| match section {
                Value::InlineTable(section) => Ok(section as &mut dyn TableLike),
                _ => Err(SetError::NotASection(first.to_owned())),
            });
            sections.collect::<Result<_, _>>()?
        }
        _ => unreachable!("it is a list"),
    };
    let at = one_of(&sections, first, name, key)?;
    Ok(sections.swap_remove(at))
}

/// The number of the section that a name means.
fn one_of(
    sections: &[&mut dyn TableLike],
    title: &str,
    name: Option<&str>,
    key: &str,
) -> Result<usize, SetError> {
    let name_of = |section: &&mut dyn TableLike| {
        section.get("name").and_then(Item::as_str).unwrap_or_default().to_owned()
    };
    let names: Vec<String> = sections.iter().map(name_of).collect();
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
        assert_eq!(with("stop_s=7"), FILE.replace("60", "7") + "\n");
        assert!(with("seed = 3").starts_with("stop_s = 60 # a minute\nseed = 3\n\n[scheduler]"));
        assert!(with("scheduler.quantum_ms=1_000").contains("[scheduler]\nquantum_ms = 1_000\n\n"));
        let policy = with("scheduler.policy=simple");
        assert!(policy.contains("[scheduler]\nquantum_ms = 5\npolicy = \"simple\"\n"), "{policy}");
        let costs = with("costs.message_us=20");
        assert!(costs.contains("[costs]\nmessage_us = 20\n"), "{costs}");
        let deeper = with("scheduler.estimator.percentile=0.5");
        assert!(deeper.contains("[scheduler.estimator]\npercentile = 0.5\n"), "{deeper}");
        let above = set(&deeper, "scheduler.estimator.ratio=2").unwrap();
        assert!(above.contains("[scheduler.estimator]\npercentile = 0.5\nratio = 2\n"), "{above}");
        let first = set("[[node]]\ngpus = 1\n[a.b]\n", "node.name=n").unwrap();
        assert_eq!(first, "[[node]]\ngpus = 1\nname = \"n\"\n[a.b]\n");
        assert!(with("node.gpus=2").contains("[[node]] # one\ngpus = 2\n"));
        assert!(with("node.links=[0]").contains("[[node]] # one\ngpus = 1\nlinks = [0]\n"));
        assert!(with("client.c.count=8").ends_with("name = \"c\"\ncount = 8\n"));
        assert!(with("client.a.b.count=2").contains("name = \"a.b\"\ngpu_s = 1\ncount = 2\n"));
        let twice = set(&costs, "costs.death_ms=1").unwrap();
        assert!(twice.contains("[costs]\nmessage_us = 20\ndeath_ms = 1\n"), "{twice}");
    }

    /// Whichever way of TOML a section is written in, what is set is what is read.
    #[test]
    fn every_way_to_write_a_section_is_understood() {
        let files = [
            "[costs]\nmessage_us = 3\n[[client]]\nname = \"c\"\n",
            "[ costs ] # spaced\nmessage_us = 3\n[[ client ]]\nname = \"c\"\n",
            "[\"costs\"]\n\"message_us\" = 3\n[['client']]\n'name' = 'c'\n",
            "costs = { message_us = 3 }\nclient = [{ name = \"c\" }]\n",
            "costs = {message_us = 3}\nclient = [\n  {name = \"c\"}, # the one\n]\n",
            "costs.message_us = 3\n[[client]]\nname = \"c\"\n",
        ];
        for file in files {
            let mut wanted: toml::Table = file.parse().unwrap();
            let costs = wanted["costs"].as_table_mut().unwrap();
            costs.insert("message_us".into(), 4.into());
            costs.insert("death_ms".into(), 1.into());
            let client = wanted["client"][0].as_table_mut().unwrap();
            client.insert("count".into(), 2.into());
            let set = ["costs.message_us=4", "costs.death_ms=1", "client.c.count=2"]
                .iter()
                .try_fold(file.to_owned(), |text, assignment| set(&text, assignment))
                .unwrap();
            let read: toml::Table = set.parse().unwrap_or_else(|error| panic!("{set}: {error}"));
            assert_eq!(read, wanted, "{set}");
        }
        let read: toml::Table = set("[a.b]\nd = 1\n", "a.c=1").unwrap().parse().unwrap();
        assert_eq!(read, "a = { b = { d = 1 }, c = 1 }".parse().unwrap());
        let read: toml::Table = set("a = { d = 1 }", "a.b.c=1").unwrap().parse().unwrap();
        assert_eq!(read, "a = { b = { c = 1 }, d = 1 }".parse().unwrap());
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

//! Typed reading of a TOML table with places: every key is taken at most once, and what was not taken is unknown.
//! Other files of this project than the cluster file are read with it, too (scenarios of `gpu_assigner simulate`).
//!
//! Owns wrong types, wrong values and unknown keys, as problems with a suggestion. Does not own which keys there
//! are: the reader of a file asks for them.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostics::{Problem, nearest};
use crate::headroom::{Headroom, NoHeadroom};
use crate::size::{ByteSize, NoSize};
use crate::values::Part;

/// Why a value is not accepted; the place is the value's.
#[derive(Debug)]
pub struct Fault {
    message: String,
    help: Option<String>,
    /// Byte offset in a string value, where one character is to blame.
    offset: Option<usize>,
}

impl Fault {
    /// What is wrong with the value.
    pub fn new(message: impl Into<String>) -> Self {
        Fault { message: message.into(), help: None, offset: None }
    }

    /// What to write instead.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The byte of a string value that is to blame.
    #[must_use]
    pub fn offset(mut self, offset: usize) -> Self {
        self.offset = Some(offset);
        self
    }

    /// The problem, at the place of the value.
    #[must_use]
    pub fn at(self, span: Range<usize>) -> Problem {
        let problem = Problem::new(span, self.message);
        match self.help {
            Some(help) => problem.help(help),
            None => problem,
        }
    }
}

/// The table that a whole file is. What the parser had to guess would only lead to problems that are none.
pub fn document(text: &str) -> Result<Spanned<DeTable<'_>>, Vec<Problem>> {
    let (document, syntax) = DeTable::parse_recoverable(text);
    let problem =
        |error: &toml::de::Error| Problem::new(error.span().unwrap_or(0..0), error.message());
    if syntax.is_empty() { Ok(document) } else { Err(syntax.iter().map(problem).collect()) }
}

/// A table that is being read.
pub struct Fields<'t, 'i> {
    /// As people write it: `[scheduler]`; empty for the file itself.
    title: String,
    /// The whole file.
    text: &'t str,
    table: &'t DeTable<'i>,
    known: Vec<&'static str>,
}

impl<'t, 'i> Fields<'t, 'i> {
    /// A table of the file `text`, by the title that people see.
    pub fn new(title: impl Into<String>, text: &'t str, table: &'t DeTable<'i>) -> Self {
        Fields { title: title.into(), text, table, known: Vec::new() }
    }

    /// The raw value of a key, with its place.
    pub fn take(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'i>>> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.table.get(key)
    }

    /// The value of a key, read by `parse`; what `parse` objects to becomes a problem.
    pub fn read<T>(
        &mut self,
        key: &'static str,
        problems: &mut Vec<Problem>,
        parse: impl FnOnce(&DeValue<'i>) -> Result<T, Fault>,
    ) -> Option<Spanned<T>> {
        let value = self.take(key)?;
        match parse(value.get_ref()) {
            Ok(parsed) => Some(Spanned::new(value.span(), parsed)),
            Err(fault) => {
                let message = format!("`{}`: {}", self.path(key), fault.message);
                let span = self.narrowed(value, fault.offset);
                problems.push(Problem { message, ..fault.at(span) });
                None
            }
        }
    }

    /// The one character of a string value that is to blame, where the string is written without escapes.
    fn narrowed(&self, value: &Spanned<DeValue<'_>>, offset: Option<usize>) -> Range<usize> {
        let span = value.span();
        let (Some(offset), DeValue::String(content)) = (offset, value.get_ref()) else {
            return span;
        };
        let start = span.start + 1 + offset;
        let plain = span.len() == content.len() + 2
            && self.text.get(span.start + 1..span.end - 1) == Some(content.as_ref());
        match content.get(offset..).and_then(|rest| rest.chars().next()) {
            Some(c) if plain => start..start + c.len_utf8(),
            _ => span,
        }
    }

    /// A table under this one.
    pub fn section(
        &mut self,
        key: &'static str,
        problems: &mut Vec<Problem>,
    ) -> Option<Fields<'t, 'i>> {
        let value = self.take(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(Fields::new(self.path(key), self.text, table)),
            other => {
                problems.push(
                    Problem::new(
                        value.span(),
                        format!("`{}` is a section, not {}", self.path(key), kind(other)),
                    )
                    .help(format!("write [{key}] on a line of its own, and its keys below")),
                );
                None
            }
        }
    }

    /// A list of tables under this one, `[[key]]`.
    pub fn sections(
        &mut self,
        key: &'static str,
        problems: &mut Vec<Problem>,
    ) -> Vec<(Range<usize>, Fields<'t, 'i>)> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let title = self.path(key);
        let mut found = Vec::new();
        let mut refuse = |span, what: &DeValue<'_>| {
            problems.push(
                Problem::new(span, format!("`{title}` is a list of sections, not {}", kind(what)))
                    .help(format!("write [[{key}]], with two brackets, for each of them")),
            );
        };
        match value.get_ref() {
            DeValue::Array(items) => {
                for item in items.iter() {
                    match item.get_ref() {
                        DeValue::Table(table) => {
                            found.push((item.span(), Fields::new(title.clone(), self.text, table)));
                        }
                        other => refuse(item.span(), other),
                    }
                }
            }
            other => refuse(value.span(), other),
        }
        found
    }

    /// Every entry, for tables whose keys are the user's own.
    pub fn entries(
        &self,
    ) -> impl Iterator<Item = (&'t str, Range<usize>, &'t Spanned<DeValue<'i>>)> + use<'t, 'i> {
        self.table.iter().map(|(key, value)| (key.get_ref().as_ref(), key.span(), value))
    }

    /// Reports the keys that nobody took. Returns those that were asked for, as `section.key`.
    pub fn finish(self, problems: &mut Vec<Problem>) -> Vec<String> {
        for (key, _) in self.table.iter() {
            let word = key.get_ref().as_ref();
            if self.known.contains(&word) {
                continue;
            }
            let place = match self.title.as_str() {
                "" => "at the top of the file".to_owned(),
                title => format!("in [{title}]"),
            };
            let problem =
                Problem::new(key.span(), format!("unknown key `{}` {place}", word.escape_debug()));
            problems.push(match nearest(word, self.known.iter().copied()) {
                Some(meant) => problem.label(format!("did you mean `{meant}`?")),
                None => problem.help(format!("known here: {}", self.known.join(", "))),
            });
        }
        self.known.iter().map(|key| self.path(key)).collect()
    }

    /// The full name of a key of this table.
    #[must_use]
    pub fn path(&self, key: &str) -> String {
        match self.title.as_str() {
            "" => key.to_owned(),
            title => format!("{title}.{key}"),
        }
    }
}

/// A string.
pub fn string(value: &DeValue<'_>) -> Result<String, Fault> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        other => {
            let fault = Fault::new(format!("a string is needed, not {}", kind(other)));
            Err(match other {
                DeValue::Array(_) | DeValue::Table(_) => fault,
                _ => fault.help("put it in double quotes"),
            })
        }
    }
}

/// `true` or `false`.
pub fn boolean(value: &DeValue<'_>) -> Result<bool, Fault> {
    match value {
        DeValue::Boolean(flag) => Ok(*flag),
        other => Err(Fault::new(format!("true or false is needed, not {}", kind(other)))),
    }
}

/// A whole number between two bounds; `unit` is for the message.
pub fn integer<T: TryFrom<i64>>(
    value: &DeValue<'_>,
    low: i64,
    high: i64,
    unit: &str,
) -> Result<T, Fault> {
    let DeValue::Integer(number) = value else {
        let needed = if unit.is_empty() { String::new() } else { format!(" of {unit}") };
        return Err(Fault::new(format!("a whole number{needed} is needed, not {}", kind(value)))
            .help(format!("write it without quotes, between {low} and {high}")));
    };
    let out_of_range = || {
        Fault::new(format!("{number} is out of range")).help(format!(
            "allowed are {low} to {high}{}{unit}",
            if unit.is_empty() { "" } else { " " }
        ))
    };
    let digits: String = number.as_str().chars().filter(|&c| c != '_').collect();
    let parsed = i64::from_str_radix(&digits, number.radix()).map_err(|_| out_of_range())?;
    if parsed < low || parsed > high {
        return Err(out_of_range());
    }
    T::try_from(parsed).map_err(|_| out_of_range())
}

/// A number, whole or decimal, between two bounds; `unit` is for the message.
pub fn number(value: &DeValue<'_>, low: f64, high: f64, unit: &str) -> Result<f64, Fault> {
    let digits = match value {
        DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
        DeValue::Float(number) => number.as_str(),
        other => {
            let needed = if unit.is_empty() { String::new() } else { format!(" of {unit}") };
            return Err(Fault::new(format!("a number{needed} is needed, not {}", kind(other)))
                .help("write it in decimal digits, without quotes"));
        }
    };
    let digits: String = digits.chars().filter(|&c| c != '_').collect();
    match digits.parse::<f64>() {
        Ok(parsed) if (low..=high).contains(&parsed) => Ok(parsed),
        _ => Err(Fault::new(format!("{digits} is out of range")).help(format!(
            "allowed are {low} to {high}{}{unit}",
            if unit.is_empty() { "" } else { " " }
        ))),
    }
}

/// A share: a decimal number from 0.001 to 1.
pub(crate) fn share(value: &DeValue<'_>) -> Result<Part, Fault> {
    let number: Option<f64> = match value {
        DeValue::Float(number) => number.as_str().replace('_', "").parse().ok(),
        DeValue::Integer(number) => number.as_str().parse().ok(),
        other => {
            return Err(Fault::new(format!("a decimal number is needed, not {}", kind(other)))
                .help("write it without quotes, like 0.5"));
        }
    };
    number.and_then(Part::new).ok_or_else(|| {
        Fault::new("the number is out of range").help("allowed are 0.001 to 1, the whole")
    })
}

/// An amount of memory, as a string with its unit.
pub(crate) fn size(value: &DeValue<'_>) -> Result<ByteSize, Fault> {
    let help = "write it with a unit, in double quotes: \"64G\", \"512M\"";
    let DeValue::String(text) = value else {
        return Err(Fault::new(format!("a string is needed, not {}", kind(value))).help(help));
    };
    text.parse().map_err(|error: NoSize| {
        Fault::new(format!("\"{}\" is {error}", text.escape_debug())).help(help)
    })
}

/// What of each GPU is kept free.
pub(crate) fn headroom(value: &DeValue<'_>) -> Result<Headroom, Fault> {
    let help = "write it in double quotes: \"512M\", \"1%\", \"0\", \"auto\"";
    let DeValue::String(text) = value else {
        return Err(Fault::new(format!("a string is needed, not {}", kind(value))).help(help));
    };
    text.parse().map_err(|error: NoHeadroom| {
        Fault::new(format!("\"{}\" is {error}", text.escape_debug())).help(help)
    })
}

/// One of a closed set of names.
pub fn choice<T: Copy>(
    value: &DeValue<'_>,
    all: &[T],
    name: impl Fn(T) -> &'static str,
) -> Result<T, Fault> {
    let text = string(value)?;
    all.iter().copied().find(|&candidate| name(candidate) == text).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|&candidate| name(candidate)).collect();
        let allowed = format!("allowed are {}", names.join(", "));
        let help = match nearest(&text, names) {
            Some(meant) => format!("did you mean \"{meant}\"? {allowed}"),
            None => allowed,
        };
        Fault::new(format!("\"{}\" is not known", text.escape_debug())).help(help)
    })
}

/// What a value is, with its article.
#[must_use]
pub fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

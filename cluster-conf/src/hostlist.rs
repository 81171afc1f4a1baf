//! Slurm's notation for many host names: `n[1-3,07-09],m[1-2]x[0-1]`.
//!
//! Owns reading and writing it. Does not own which hosts there are. Several brackets in one name multiply; a range
//! keeps the width that its lower bound is written with.

#[cfg(test)]
mod tests;

use std::fmt;

/// No list expands to more names than this.
pub const MAX_NAMES: usize = 65_536;

/// No name is longer than this.
const MAX_NAME: usize = 255;

/// Digits of a number in brackets that still fit into 64 bits.
const MAX_DIGITS: usize = 18;

/// Why a text is no hostlist, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostlistError {
    /// Byte offset in the text.
    pub at: usize,
    /// What is wrong there.
    pub problem: HostlistProblem,
}

/// What can be wrong with a hostlist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostlistProblem {
    /// Nothing between two commas, or nothing at all.
    #[error("a host name is missing")]
    EmptyName,
    /// Letters, digits, `-`, `_` and `.` make names.
    #[error("{0:?} cannot stand in a host name")]
    BadCharacter(char),
    /// `[` in brackets.
    #[error("brackets cannot be nested")]
    Nested,
    /// `[` without `]`.
    #[error("this bracket is not closed")]
    Unclosed,
    /// `]` without `[`.
    #[error("this bracket was not opened")]
    Unopened,
    /// In brackets stand numbers and ranges alone.
    #[error("a number or a range like 1-8 is needed in the brackets")]
    BadRange,
    /// A lower bound above the upper one.
    #[error("the range goes downwards")]
    Downwards,
    /// A number of too many digits.
    #[error("a number has at most {MAX_DIGITS} digits")]
    TooManyDigits,
    /// A name longer than DNS allows.
    #[error("a host name has at most {MAX_NAME} characters")]
    NameTooLong,
    /// A list that explodes.
    #[error("the list names more than {MAX_NAMES} hosts")]
    TooMany,
}

impl fmt::Display for HostlistError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at character {}: {}", self.at + 1, self.problem)
    }
}

impl std::error::Error for HostlistError {}

/// The names that a list stands for, in its order; a name given twice comes twice.
pub fn expand(list: &str) -> Result<Vec<String>, HostlistError> {
    let patterns = parse(list)?;
    let mut total = 0_usize;
    for pattern in &patterns {
        total = pattern.count().and_then(|count| total.checked_add(count)).unwrap_or(usize::MAX);
        if total > MAX_NAMES {
            return Err(HostlistError { at: pattern.at, problem: HostlistProblem::TooMany });
        }
    }
    let mut names = Vec::with_capacity(total);
    for pattern in &patterns {
        pattern.expand_into(&mut names);
    }
    Ok(names)
}

/// A list that expands to these host names, in their order. Numbers at the end of neighbours with the same
/// beginning are put together.
pub fn compress<N: AsRef<str>>(names: &[N]) -> String {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for name in names {
        let (prefix, number) = split_number(name.as_ref());
        match (groups.last_mut(), number) {
            (Some(group), Some(number)) if group.prefix == prefix && !group.runs.is_empty() => {
                group.add(number);
            }
            (_, Some(number)) => {
                groups.push(Group { prefix, runs: vec![Run { first: number, last: number }] });
            }
            (_, None) => groups.push(Group { prefix: name.as_ref(), runs: Vec::new() }),
        }
    }
    groups.iter().map(Group::to_string).collect::<Vec<_>>().join(",")
}

/// One name with brackets: the parts between the commas of a list.
struct Pattern<'a> {
    at: usize,
    parts: Vec<Part<'a>>,
}

enum Part<'a> {
    Text(&'a str),
    Ranges(Vec<NumberRange>),
}

struct NumberRange {
    low: u64,
    high: u64,
    width: usize,
}

impl NumberRange {
    fn count(&self) -> Option<usize> {
        usize::try_from(self.high - self.low).ok()?.checked_add(1)
    }
}

impl Pattern<'_> {
    /// How many names it makes; `None` beyond any bound.
    fn count(&self) -> Option<usize> {
        self.parts.iter().try_fold(1_usize, |product, part| match part {
            Part::Text(_) => Some(product),
            Part::Ranges(ranges) => {
                let sum = ranges
                    .iter()
                    .try_fold(0_usize, |sum, range| sum.checked_add(range.count()?))?;
                product.checked_mul(sum)
            }
        })
    }

    /// The order is Slurm's, so that a node's position is what Slurm says: the last brackets vary fastest, and of
    /// those before them the first ones.
    fn expand_into(&self, names: &mut Vec<String>) {
        let mut choices: Vec<Vec<String>> = self.parts.iter().filter_map(Part::choices).collect();
        let fastest = choices.pop();
        let order = fastest.iter().chain(&choices);
        let total: usize = order.clone().map(Vec::len).product();
        for index in 0..total {
            let mut rest = index;
            let mut chosen: Vec<&str> = order
                .clone()
                .map(|numbers| {
                    let number = &numbers[rest % numbers.len()];
                    rest /= numbers.len();
                    number.as_str()
                })
                .collect();
            // Back from the order of variation to the order of writing.
            if !chosen.is_empty() {
                chosen.rotate_left(1);
            }
            let mut chosen = chosen.into_iter();
            names.push(
                self.parts
                    .iter()
                    .map(|part| match part {
                        Part::Text(text) => text,
                        Part::Ranges(_) => chosen.next().expect("a choice for each brackets"),
                    })
                    .collect(),
            );
        }
    }
}

impl Part<'_> {
    /// The numbers that may stand in these brackets, as written.
    fn choices(&self) -> Option<Vec<String>> {
        let Part::Ranges(ranges) = self else { return None };
        let numbers = ranges.iter().flat_map(|range| {
            let width = range.width;
            (range.low..=range.high).map(move |n| format!("{n:0width$}"))
        });
        Some(numbers.collect())
    }
}

fn parse(list: &str) -> Result<Vec<Pattern<'_>>, HostlistError> {
    let mut patterns = Vec::new();
    let mut rest = Cursor { list, at: 0 };
    loop {
        patterns.push(rest.pattern()?);
        match rest.peek() {
            None => return Ok(patterns),
            Some(_) => rest.at += 1, // the comma that ended the pattern
        }
    }
}

struct Cursor<'a> {
    list: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<char> {
        self.list[self.at..].chars().next()
    }

    fn fail<T>(&self, at: usize, problem: HostlistProblem) -> Result<T, HostlistError> {
        Err(HostlistError { at, problem })
    }

    /// Up to the next comma outside brackets.
    fn pattern(&mut self) -> Result<Pattern<'a>, HostlistError> {
        let start = self.at;
        let mut pattern = Pattern { at: start, parts: Vec::new() };
        let mut length = 0;
        loop {
            match self.peek() {
                None | Some(',') if pattern.parts.is_empty() => {
                    return self.fail(start, HostlistProblem::EmptyName);
                }
                None | Some(',') => return Ok(pattern),
                Some('[') => pattern.parts.push(Part::Ranges(self.brackets(&mut length)?)),
                Some(']') => return self.fail(self.at, HostlistProblem::Unopened),
                Some(_) => pattern.parts.push(Part::Text(self.text(&mut length)?)),
            }
            if length > MAX_NAME {
                return self.fail(start, HostlistProblem::NameTooLong);
            }
        }
    }

    fn text(&mut self, length: &mut usize) -> Result<&'a str, HostlistError> {
        let start = self.at;
        while let Some(c) = self.peek() {
            match c {
                ',' | '[' | ']' => break,
                c if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') => self.at += 1,
                c => return self.fail(self.at, HostlistProblem::BadCharacter(c)),
            }
        }
        *length += self.at - start;
        Ok(&self.list[start..self.at])
    }

    fn brackets(&mut self, length: &mut usize) -> Result<Vec<NumberRange>, HostlistError> {
        let open = self.at;
        let inside = &self.list[open + 1..];
        let Some(end) = inside.find(']') else { return self.fail(open, HostlistProblem::Unclosed) };
        if let Some(nested) = inside[..end].find('[') {
            return self.fail(open + 1 + nested, HostlistProblem::Nested);
        }
        let mut ranges = Vec::new();
        let mut at = open + 1;
        let mut longest = 0;
        for item in inside[..end].split(',') {
            let range = number_range(item).map_err(|problem| HostlistError { at, problem })?;
            longest = longest.max(range.width).max(range.high.to_string().len());
            ranges.push(range);
            at += item.len() + 1;
        }
        *length += longest;
        self.at = open + 1 + end + 1;
        Ok(ranges)
    }
}

fn number_range(item: &str) -> Result<NumberRange, HostlistProblem> {
    let (low_text, high_text) = item.split_once('-').unwrap_or((item, item));
    let (low, high) = (number(low_text)?, number(high_text)?);
    if low > high {
        return Err(HostlistProblem::Downwards);
    }
    Ok(NumberRange { low, high, width: low_text.len() })
}

fn number(text: &str) -> Result<u64, HostlistProblem> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(HostlistProblem::BadRange);
    }
    if text.len() > MAX_DIGITS {
        return Err(HostlistProblem::TooManyDigits);
    }
    text.parse().map_err(|_| HostlistProblem::BadRange)
}

/// Neighbours with the same beginning; without runs it is one plain name.
struct Group<'a> {
    prefix: &'a str,
    runs: Vec<Run<'a>>,
}

#[derive(Clone, Copy)]
struct Run<'a> {
    first: &'a str,
    last: &'a str,
}

impl<'a> Group<'a> {
    fn add(&mut self, number: &'a str) {
        let run = self.runs.last_mut().expect("a group with numbers has a run");
        // The range must give the very text back, zeros included.
        let width = run.first.len();
        let next = run.last.parse::<u64>().ok().map(|last| format!("{:0width$}", last + 1));
        if next.as_deref() == Some(number) {
            run.last = number;
        } else {
            self.runs.push(Run { first: number, last: number });
        }
    }
}

impl fmt::Display for Group<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.prefix)?;
        match self.runs.as_slice() {
            [] => Ok(()),
            [only] if only.first == only.last => f.write_str(only.first),
            runs => {
                for (i, run) in runs.iter().enumerate() {
                    f.write_str(if i == 0 { "[" } else { "," })?;
                    f.write_str(run.first)?;
                    if run.first != run.last {
                        write!(f, "-{}", run.last)?;
                    }
                }
                f.write_str("]")
            }
        }
    }
}

/// A name and the number at its end, if there is one that fits.
fn split_number(name: &str) -> (&str, Option<&str>) {
    let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
    match digits {
        1..=MAX_DIGITS => {
            let (prefix, number) = name.split_at(name.len() - digits);
            (prefix, Some(number))
        }
        _ => (name, None),
    }
}

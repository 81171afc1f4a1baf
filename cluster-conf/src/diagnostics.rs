//! What is wrong with a configuration text: all of it, each with its place.
//!
//! Owns the wording's frame: `file:line:col`, the line, what is underlined, the remedy. Does not own the rules:
//! those who read a text add [`Problem`]s.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// How a report is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Text alone, for logs.
    Plain,
    /// With the colours of a terminal.
    Terminal,
}

/// One thing that is wrong, at a place of the text (byte offsets).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The place: what is underlined.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// Stands beside the underline.
    pub label: Option<String>,
    /// Another place that belongs to it, with a word on why.
    pub related: Option<(Range<usize>, String)>,
    /// The remedy.
    pub help: Option<String>,
}

impl Problem {
    /// Something wrong at a place.
    pub fn new(span: Range<usize>, message: impl Into<String>) -> Self {
        Problem { span, message: message.into(), label: None, related: None, help: None }
    }

    /// Words beside the underline.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Another place that belongs to it.
    #[must_use]
    pub fn related(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.related = Some((span, label.into()));
        self
    }

    /// The remedy.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// A text that cannot be used, with everything that is wrong with it. Its `Display` is the whole report.
#[derive(Clone, PartialEq, Eq)]
pub struct ConfigError {
    name: String,
    text: String,
    problems: Vec<Problem>,
}

/// One problem of a [`ConfigError`], for those who make their own report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<'a> {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: &'a str,
    /// What to do, where there is something to say.
    pub help: Option<&'a str>,
}

/// Beyond this many, the rest is only counted.
const SHOWN: usize = 20;

impl ConfigError {
    /// What is wrong with the text of the file `name`. `problems` must not be empty; their spans are trimmed to the
    /// text.
    #[must_use]
    pub fn new(name: &str, text: &str, mut problems: Vec<Problem>) -> Self {
        debug_assert!(!problems.is_empty());
        for problem in &mut problems {
            problem.message = harmless(&problem.message);
            problem.span = within(text, problem.span.clone());
            if let Some((span, _)) = &mut problem.related {
                *span = within(text, span.clone());
            }
        }
        problems.sort_by_key(|problem| problem.span.start);
        ConfigError { name: harmless(name), text: harmless(text), problems }
    }

    /// The problems in the order of the text.
    pub fn problems(&self) -> impl Iterator<Item = Located<'_>> {
        self.problems.iter().map(|problem| {
            let (line, column) = line_and_column(&self.text, problem.span.start);
            Located { line, column, message: &problem.message, help: problem.help.as_deref() }
        })
    }

    /// The whole report, many lines.
    pub fn render(&self, style: Style) -> String {
        let renderer = match style {
            Style::Plain => Renderer::plain(),
            Style::Terminal => Renderer::styled(),
        };
        let mut out = String::new();
        for problem in self.problems.iter().take(SHOWN) {
            if !out.is_empty() {
                out.push_str("\n\n");
            }
            out.push_str(&renderer.render(&self.report(problem)));
        }
        let hidden = self.problems.len().saturating_sub(SHOWN);
        if hidden > 0 {
            out.push_str(&format!("\n\n{}: and {hidden} more problems", self.name));
        }
        out
    }

    fn report<'a>(&'a self, problem: &'a Problem) -> Vec<Group<'a>> {
        let primary =
            AnnotationKind::Primary.span(problem.span.clone()).label(problem.label.as_deref());
        let mut snippet =
            Snippet::source(self.text.as_str()).path(self.name.as_str()).annotation(primary);
        if let Some((span, label)) = &problem.related {
            snippet = snippet
                .annotation(AnnotationKind::Context.span(span.clone()).label(label.as_str()));
        }
        let mut group = Level::ERROR.primary_title(problem.message.as_str()).element(snippet);
        if let Some(help) = &problem.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        vec![group]
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(Style::Plain))
    }
}

impl fmt::Debug for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigError")
            .field("name", &self.name)
            .field("problems", &self.problems)
            .finish()
    }
}

impl std::error::Error for ConfigError {}

/// Line and column in characters, both from 1, of a byte offset.
pub(crate) fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..floor_boundary(text, offset)];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// The nearest of `candidates`, if it is near enough to be what was meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= 1 + candidate.chars().count() / 4
                || (word.len() >= 3 && (candidate.starts_with(word) || word.starts_with(candidate)))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The text without the control characters from U+0080 on, with which a terminal can be steered; those below are
/// the renderer's. Every place stays where it is: `·` is as long as they are.
fn harmless(text: &str) -> String {
    text.chars().map(|c| if matches!(c, '\u{80}'..='\u{9f}') { '·' } else { c }).collect()
}

fn within(text: &str, span: Range<usize>) -> Range<usize> {
    let start = floor_boundary(text, span.start);
    let end = floor_boundary(text, span.end).max(start);
    start..end
}

fn floor_boundary(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

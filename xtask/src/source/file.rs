//! A file: its text, its syntax tree, and what is on each line.

use std::ops::RangeInclusive;

use anyhow::{Result, anyhow};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::calls;
use super::lines::{self, Line};
use super::names::names;

/// A parsed file.
pub struct Source {
    /// Path relative to the workspace, for messages.
    pub path: String,
    pub text: String,
    pub file: syn::File,
    lines: Vec<Line>,
    /// First and last lines of the items that are compiled for tests only.
    tests: Vec<RangeInclusive<usize>>,
}

/// The lines of a file outside its tests: lines with code, and lines with only a comment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub code: usize,
    pub comments: usize,
}

impl Source {
    pub fn parse(path: &str, text: &str) -> Result<Source> {
        // syn's error has a line, but does not print it.
        let file = syn::parse_file(text).map_err(|e| anyhow!("{path}:{}: {e}", e.span().start().line))?;
        let mut tests = Tests(Vec::new());
        tests.visit_file(&file);
        let (path, text) = (path.to_owned(), text.to_owned());
        Ok(Source { path, lines: lines::lines(&text), text, file, tests: tests.0 })
    }

    /// `tests.rs` and the files of a folder `tests` belong to a module for tests.
    pub fn is_test_file(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    pub fn size(&self) -> Size {
        let outside = |line: usize| !self.is_test(line);
        let shown: Vec<Line> = (1..).zip(&self.lines).filter(|(n, _)| outside(*n)).map(|(_, line)| *line).collect();
        let count = |kind| shown.iter().filter(|line| **line == kind).count();
        Size { code: count(Line::Code), comments: count(Line::Comment) }
    }

    /// The calls outside tests, with their lines.
    pub fn calls(&self) -> Vec<(String, usize)> {
        let mut calls = calls::calls(self.text.parse().unwrap_or_default());
        calls.retain(|(_, line)| !self.is_test(*line));
        calls
    }

    /// The line on which the first `while` or `loop` outside tests begins.
    pub fn first_loop(&self) -> Option<usize> {
        let words = names(self.text.parse().unwrap_or_default());
        let loops = words.iter().filter(|word| *word == "while" || *word == "loop");
        loops.map(|word| word.span().start().line).find(|line| !self.is_test(*line))
    }

    /// True if a line belongs to an item that is compiled for tests only.
    pub fn is_test(&self, line: usize) -> bool {
        self.tests.iter().any(|range| range.contains(&line))
    }

    /// Lines of code between these two lines.
    pub fn code_lines(&self, lines: RangeInclusive<usize>) -> usize {
        let (skipped, end) = (lines.start().saturating_sub(1), *lines.end());
        self.lines.iter().take(end).skip(skipped).filter(|line| **line == Line::Code).count()
    }

    /// The lines with more columns than `most`, with their columns.
    pub fn wide_lines(&self, most: usize) -> Vec<(usize, usize)> {
        let columns = (1..).zip(self.text.lines().map(|line| line.chars().count()));
        columns.filter(|(_, columns)| *columns > most).collect()
    }
}

struct Tests(Vec<RangeInclusive<usize>>);

impl<'a> Visit<'a> for Tests {
    fn visit_item(&mut self, item: &'a syn::Item) {
        let attributes = match item {
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Macro(item) => &item.attrs,
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Struct(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            _ => return,
        };
        if is_test(attributes) {
            self.0.push(item.span().start().line..=item.span().end().line);
        } else {
            visit::visit_item(self, item);
        }
    }
}

/// True for `#[cfg(test)]` and `#[test]`.
fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::Path(path) => path.is_ident("test"),
        syn::Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        syn::Meta::NameValue(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_code_comment_or_blank() {
        let text = "//! Title\n\nuse a::b; // why\n/// Doc\nfn f() {\n    // why\n}\n#[cfg(test)]\nmod tests {}\n";
        let source = Source::parse("x.rs", text).unwrap();
        assert_eq!(source.size(), Size { code: 3, comments: 3 });
    }

    #[test]
    fn lines_after_the_tests_are_counted_too() {
        let text = "use a;\n#[cfg(test)]\nmod tests {\n    fn f() {}\n}\nfn g() {}\n";
        let source = Source::parse("x.rs", text).unwrap();
        assert_eq!(source.size(), Size { code: 2, comments: 0 });
    }

    #[test]
    fn calls_and_loops_in_tests_are_left_out() {
        let text =
            "#[cfg(test)]\nmod t {\n    fn g() { loop { accept(); } }\n}\nfn f() { \"loop\"; while b { a(); } }\n";
        let source = Source::parse("x.rs", text).unwrap();
        assert_eq!((source.calls(), source.first_loop()), (vec![("a".to_owned(), 5)], Some(5)));
    }

    #[test]
    fn syntax_error_names_file_and_line() {
        let error = Source::parse("x.rs", "fn f() {}\nfn {").err().unwrap();
        assert!(format!("{error:#}").starts_with("x.rs:2: "), "{error:#}");
    }

    #[test]
    fn wide_line_is_counted_in_characters() {
        let source = Source::parse("x.rs", "// 1234\n// äöüß\n// 12345\n").unwrap();
        assert_eq!(source.wide_lines(7), [(3, 8)]);
    }
}

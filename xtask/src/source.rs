//! A Rust source file as the rules see it.

mod calls;
mod lexer;

use std::ops::RangeInclusive;

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

pub use calls::{Calls, calls};
use lexer::Line;

/// A parsed file.
pub struct Source {
    /// Path relative to the workspace, for messages.
    pub path: String,
    pub text: String,
    pub file: syn::File,
    lines: Vec<Line>,
    /// First and last lines of what is compiled for tests only.
    tests: Vec<RangeInclusive<usize>>,
}

/// How long a file is, and in what. Tests are not counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub code: usize,
    pub comments: usize,
    pub total: usize,
}

/// A function and its size: lines of code, without comments and blanks.
pub struct Function {
    pub name: String,
    pub line: usize,
    pub lines: usize,
    pub depth: usize,
}

impl Source {
    pub fn parse(path: &str, text: &str) -> Result<Source> {
        // syn's error knows its place, but does not print it.
        let file = syn::parse_file(text).map_err(|e| anyhow!("{path}:{}: {e}", e.span().start().line))?;
        let mut tests = Tests(Vec::new());
        tests.visit_file(&file);
        let (path, text) = (path.to_owned(), text.to_owned());
        Ok(Source { path, lines: lexer::lines(&text), text, file, tests: tests.0 })
    }

    pub fn size(&self) -> Size {
        let shown: Vec<&Line> = self.numbered().map(|(_, line)| line).collect();
        let code = shown.iter().filter(|line| line.code).count();
        let comments = shown.iter().filter(|line| line.comment && !line.code).count();
        Size { code, comments, total: shown.len() }
    }

    /// The lines outside tests, from 1.
    fn numbered(&self) -> impl Iterator<Item = (usize, &Line)> {
        let outside = |(number, _): &(usize, &Line)| !self.tests.iter().any(|range| range.contains(number));
        (1..).zip(&self.lines).filter(outside)
    }

    /// All functions outside tests.
    pub fn functions(&self) -> Vec<Function> {
        let mut found = Functions { source: self, found: Vec::new() };
        found.visit_file(&self.file);
        found.found
    }

    pub fn unsafe_blocks(&self) -> usize {
        struct Count(usize);
        impl<'a> Visit<'a> for Count {
            fn visit_expr_unsafe(&mut self, block: &'a syn::ExprUnsafe) {
                self.0 += 1;
                visit::visit_expr_unsafe(self, block);
            }
        }
        let mut count = Count(0);
        count.visit_file(&self.file);
        count.0
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

struct Functions<'s> {
    source: &'s Source,
    found: Vec<Function>,
}

impl Functions<'_> {
    fn add(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let (start, end) = (signature.span().start().line, block.span().end().line);
        let lines = self.source.lines.iter().take(end).skip(start - 1).filter(|line| line.code).count();
        let text = block.span().source_text().unwrap_or_default();
        let depth = depth(text.parse().unwrap_or_default());
        self.found.push(Function { name: signature.ident.to_string(), line: start, lines, depth });
    }
}

impl<'a> Visit<'a> for Functions<'_> {
    fn visit_item_mod(&mut self, module: &'a syn::ItemMod) {
        if !is_test(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, function: &'a syn::ItemFn) {
        if !is_test(&function.attrs) {
            self.add(&function.sig, &function.block);
            visit::visit_item_fn(self, function);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'a syn::ImplItemFn) {
        self.add(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'a syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.add(&function.sig, block);
        }
        visit::visit_trait_item_fn(self, function);
    }
}

/// True for `#[cfg(test)]` and `#[test]`.
pub fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::Path(path) => path.is_ident("test"),
        syn::Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        syn::Meta::NameValue(_) => false,
    })
}

/// How deep braces are nested.
fn depth(tokens: TokenStream) -> usize {
    let inner = |token| match token {
        TokenTree::Group(group) => depth(group.stream()) + usize::from(group.delimiter() == Delimiter::Brace),
        _ => 0,
    };
    tokens.into_iter().map(inner).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_code_comment_or_blank() {
        let text = "//! Title\n\nuse a::b; // why\n/// Doc\nfn f() {\n    // why\n}\n#[cfg(test)]\nmod tests {}\n";
        let source = Source::parse("x.rs", text).unwrap();
        assert_eq!(source.size(), Size { code: 3, comments: 3, total: 7 });
    }

    #[test]
    fn what_follows_the_tests_is_counted_too() {
        let text = "use a;\n#[cfg(test)]\nmod tests {\n    fn f() {}\n}\nfn g() {}\n";
        let source = Source::parse("x.rs", text).unwrap();
        assert_eq!(source.size(), Size { code: 2, comments: 0, total: 2 });
        assert_eq!(source.functions().iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["g"]);
    }

    #[test]
    fn functions_have_length_and_depth() {
        let text = "fn f() {\n    // why\n    loop {\n        if x {\n\n            y();\n        }\n    }\n}\n#[test]\nfn t() {}\n";
        let functions = Source::parse("x.rs", text).unwrap().functions();
        assert_eq!(functions.len(), 1);
        assert_eq!((functions[0].lines, functions[0].depth), (7, 3));
    }

    #[test]
    fn what_does_not_parse_is_named() {
        let error = Source::parse("x.rs", "fn f() {}\nfn {").err().unwrap();
        assert!(format!("{error:#}").starts_with("x.rs:2: "), "{error:#}");
    }
}

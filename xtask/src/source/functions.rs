//! The functions of a file, with their sizes and with the text that other functions are compared with.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::depth::depth;
use super::file::Source;

/// A function.
pub struct Function {
    pub name: String,
    pub line: usize,
    /// Lines of code, without comments and blank lines.
    pub lines: usize,
    /// Levels of control flow.
    pub depth: usize,
    pub statements: usize,
    /// Tokens of the body.
    pub tokens: usize,
    /// Signature without the name, and body, in one form for every layout and without comments.
    pub normal: String,
    /// As in `normal`, without the body.
    pub signature: String,
    /// Comments and attributes in front of the function, byte for byte.
    pub head: String,
    /// The body, byte for byte.
    pub body: String,
}

/// All functions outside tests.
pub fn functions(source: &Source) -> Vec<Function> {
    let mut found = Functions { source, found: Vec::new() };
    found.visit_file(&source.file);
    found.found.retain(|function| !source.is_test(function.line));
    found.found
}

struct Functions<'s> {
    source: &'s Source,
    found: Vec<Function>,
}

impl Functions<'_> {
    fn add(&mut self, attributes: &[syn::Attribute], signature: &syn::Signature, block: &syn::Block) {
        let (start, end) = (signature.span().start().line, block.span().end().line);
        let name = signature.ident.to_string();
        let text = |span: proc_macro2::Span| span.source_text().unwrap_or_default();
        let body = text(block.span());
        let tokens = normal(&body);
        let declared = normal(&text(signature.span())).replacen(&format!("fn {name} "), "fn ", 1);
        let first = attributes.first().map_or(start, |attribute| attribute.span().start().line);
        let head: Vec<&str> = self.source.text.lines().take(start - 1).skip(first - 1).map(str::trim).collect();
        self.found.push(Function {
            line: start,
            lines: self.source.code_lines(start..=end),
            depth: depth(body.parse().unwrap_or_default()),
            statements: block.stmts.len(),
            tokens: tokens.split(' ').count(),
            normal: format!("{declared} {tokens}"),
            signature: declared,
            head: head.join("\n"),
            name,
            body,
        });
    }
}

/// One form for every layout: comments, line breaks and a comma before a closing parenthesis do not count.
fn normal(text: &str) -> String {
    let mut words = Vec::new();
    push_words(text.parse().unwrap_or_default(), &mut words);
    words.join(" ")
}

fn push_words(tokens: TokenStream, words: &mut Vec<String>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                words.push(open.to_owned());
                push_words(group.stream(), words);
                words.pop_if(|word| word == ",");
                words.push(close.to_owned());
            }
            other => words.push(other.to_string()),
        }
    }
}

impl<'a> Visit<'a> for Functions<'_> {
    fn visit_item_fn(&mut self, function: &'a syn::ItemFn) {
        self.add(&function.attrs, &function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'a syn::ImplItemFn) {
        self.add(&function.attrs, &function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'a syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.add(&function.attrs, &function.sig, block);
        }
        visit::visit_trait_item_fn(self, function);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(text: &str) -> Function {
        functions(&Source::parse("x.rs", text).unwrap()).remove(0)
    }

    #[test]
    fn length_counts_code_only() {
        let text = "fn f() {\n    // why\n    loop {\n        if x {\n\n            y();\n        }\n    }\n}\n";
        let function = function(text);
        assert_eq!((function.lines, function.depth, function.statements), (7, 2, 1));
    }

    #[test]
    fn normal_form_ignores_name_layout_and_comments() {
        let one = function("/// One.\nfn one(a: u8, b: u8) -> u8 { a + b }");
        let two = function("fn two(\n    a: u8,\n    b: u8,\n) -> u8 {\n    // the sum\n    a + b\n}");
        assert_eq!(one.normal, two.normal);
        assert_ne!(one.normal, function("fn one(a: u8, b: u8) -> u8 { a - b }").normal);
        assert_eq!((one.head.as_str(), two.head.as_str()), ("/// One.", ""));
    }

    #[test]
    fn test_functions_are_left_out() {
        let text = "#[test]\nfn t() {}\n#[cfg(test)]\nmod tests {\n    fn f() {}\n}\nfn g() {}\n";
        let functions = functions(&Source::parse("x.rs", text).unwrap());
        assert_eq!(functions.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["g"]);
    }
}

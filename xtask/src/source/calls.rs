//! The calls in a piece of code, those in the arguments of macros included.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::visit::{self, Visit};

use super::attributes::is_test;

/// Words that stand before a parenthesis and call nothing.
const KEYWORDS: &[&str] = &["if", "while", "match", "in", "return", "let", "else", "for", "move", "as", "mut", "ref"];

/// Names with their lines: for a function the last two parts of its path, as `libc::shutdown` and `accept`; for a
/// method its name; for a macro its name and `!`. Tests are passed over.
pub fn calls(visit: impl FnOnce(&mut Calls)) -> Vec<(String, usize)> {
    let mut calls = Calls(Vec::new());
    visit(&mut calls);
    calls.0
}

/// Collects calls.
pub struct Calls(Vec<(String, usize)>);

impl Calls {
    fn add(&mut self, parts: &[String], line: usize) {
        let start = parts.len().saturating_sub(2);
        self.0.push((parts.get(start..).unwrap_or_default().join("::"), line));
    }

    /// A macro's arguments are tokens: a name before a parenthesis is taken for a call.
    fn scan(&mut self, tokens: TokenStream) {
        let mut parts: Vec<String> = Vec::new();
        let mut joined = false;
        for token in tokens {
            match token {
                TokenTree::Ident(name) => {
                    if !joined {
                        parts.clear();
                    }
                    parts.push(name.to_string());
                    joined = false;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => joined = true,
                TokenTree::Punct(punct) if punct.as_char() == '!' => {
                    if let Some(name) = parts.last_mut() {
                        name.push('!');
                    }
                }
                TokenTree::Group(group) => {
                    let called = parts.last().is_some_and(|name| {
                        let parenthesis = group.delimiter() == Delimiter::Parenthesis;
                        (parenthesis && !KEYWORDS.contains(&name.as_str())) || name.ends_with('!')
                    });
                    if called {
                        self.add(&parts, group.span_open().start().line);
                    }
                    parts.clear();
                    self.scan(group.stream());
                }
                _ => parts.clear(),
            }
        }
    }
}

impl<'a> Visit<'a> for Calls {
    fn visit_item_mod(&mut self, module: &'a syn::ItemMod) {
        if !is_test(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, function: &'a syn::ItemFn) {
        if !is_test(&function.attrs) {
            visit::visit_item_fn(self, function);
        }
    }

    fn visit_expr_call(&mut self, call: &'a syn::ExprCall) {
        if let syn::Expr::Path(path) = &*call.func {
            let parts: Vec<String> = path.path.segments.iter().map(|part| part.ident.to_string()).collect();
            self.add(&parts, call.paren_token.span.open().start().line);
        }
        visit::visit_expr_call(self, call);
    }

    fn visit_expr_method_call(&mut self, call: &'a syn::ExprMethodCall) {
        self.add(&[call.method.to_string()], call.method.span().start().line);
        visit::visit_expr_method_call(self, call);
    }

    fn visit_macro(&mut self, call: &'a syn::Macro) {
        if let Some(name) = call.path.segments.last() {
            self.add(&[format!("{}!", name.ident)], name.ident.span().start().line);
        }
        // What a macro_rules definition holds is judged where it is used by name.
        self.scan(call.tokens.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        let file = syn::parse_file(text).unwrap();
        calls(|calls| calls.visit_file(&file)).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn calls_are_found_but_not_in_tests() {
        let text = "fn f() { libc::shutdown(a.load(x)); panic!(); }\n#[cfg(test)]\nmod t { fn g() { accept(); } }";
        assert_eq!(names(text), ["libc::shutdown", "load", "panic!"]);
        assert_eq!(names("#[test]\nfn t() { accept(); }"), Vec::<String>::new());
    }

    #[test]
    fn calls_are_found_in_the_arguments_of_macros() {
        let text = "fn f() { writeln!(out, \"{}\", unsafe { nix::unistd::fork() }).ok(); }";
        assert_eq!(names(text), ["ok", "writeln!", "unistd::fork"]);
        assert_eq!(names("fn f() { vec![if (a) { b.poll(c) } else { write!{} }]; }"), ["vec!", "poll", "write!"]);
    }

    #[test]
    fn a_call_has_a_line() {
        let file = syn::parse_file("fn f() {\n    a\n        .b(\n            c(),\n        );\n}").unwrap();
        assert_eq!(calls(|calls| calls.visit_file(&file)), [("b".to_owned(), 3), ("c".to_owned(), 4)]);
    }
}

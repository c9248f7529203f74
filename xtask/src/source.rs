//! A Rust source file as the rules see it.

use anyhow::{Context, Result};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// A parsed file.
pub struct Source {
    /// Path relative to the workspace, for messages.
    pub path: String,
    pub text: String,
    pub file: syn::File,
}

/// How long a file is, and in what.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub code: usize,
    pub comments: usize,
    pub total: usize,
}

/// A function and its size.
pub struct Function {
    pub name: String,
    pub line: usize,
    pub lines: usize,
    pub depth: usize,
}

impl Source {
    pub fn parse(path: &str, text: &str) -> Result<Source> {
        let file = syn::parse_file(text).with_context(|| path.to_owned())?;
        Ok(Source { path: path.to_owned(), text: text.to_owned(), file })
    }

    /// Lines of the file before its unit tests.
    pub fn without_tests(&self) -> &str {
        self.text.split("\n#[cfg(test)]").next().unwrap_or_default()
    }

    pub fn size(&self) -> Size {
        let mut size = Size::default();
        for line in self.without_tests().lines().map(str::trim) {
            size.total += 1;
            match line {
                "" => {}
                line if line.starts_with("//") => size.comments += 1,
                _ => size.code += 1,
            }
        }
        size
    }

    /// All functions outside `#[cfg(test)]`.
    pub fn functions(&self) -> Vec<Function> {
        let mut found = Functions(Vec::new());
        found.visit_file(&self.file);
        found.0
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

struct Functions(Vec<Function>);

impl Functions {
    fn add(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let (start, end) = (signature.span().start().line, block.span().end().line);
        let body = block.stmts.iter().map(|statement| depth(quote(statement))).max().unwrap_or(0);
        let name = signature.ident.to_string();
        self.0.push(Function { name, line: start, lines: end + 1 - start, depth: 1 + body });
    }
}

impl<'a> Visit<'a> for Functions {
    fn visit_item_mod(&mut self, module: &'a syn::ItemMod) {
        if !is_test(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, function: &'a syn::ItemFn) {
        if !is_test(&function.attrs) {
            self.add(&function.sig, &function.block);
        }
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'a syn::ImplItemFn) {
        self.add(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
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

/// The tokens of a statement, by way of its source text.
fn quote(statement: &syn::Stmt) -> TokenStream {
    let text = statement.span().source_text().unwrap_or_default();
    text.parse().unwrap_or_default()
}

/// How deep braces are nested.
fn depth(tokens: TokenStream) -> usize {
    let inner = |token| match token {
        TokenTree::Group(group) => depth(group.stream()) + usize::from(group.delimiter() == Delimiter::Brace),
        _ => 0,
    };
    tokens.into_iter().map(inner).max().unwrap_or(0)
}

/// The names of all functions and methods called in a piece of code: the last part of a path, and after `::` the
/// part before it, as `libc::shutdown` and `accept`.
pub fn calls<'a>(visit: impl FnOnce(&mut Calls<'a>)) -> Vec<(String, usize)> {
    let mut calls = Calls { found: Vec::new(), marker: std::marker::PhantomData };
    visit(&mut calls);
    calls.found
}

/// Collects calls; tests are passed over.
pub struct Calls<'a> {
    found: Vec<(String, usize)>,
    marker: std::marker::PhantomData<&'a ()>,
}

impl<'a> Visit<'a> for Calls<'a> {
    fn visit_item_mod(&mut self, module: &'a syn::ItemMod) {
        if !is_test(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_expr_call(&mut self, call: &'a syn::ExprCall) {
        if let syn::Expr::Path(path) = &*call.func {
            let names: Vec<String> = path.path.segments.iter().map(|part| part.ident.to_string()).collect();
            let name = names.iter().rev().take(2).rev().cloned().collect::<Vec<_>>().join("::");
            self.found.push((name, call.span().start().line));
        }
        visit::visit_expr_call(self, call);
    }

    fn visit_expr_method_call(&mut self, call: &'a syn::ExprMethodCall) {
        self.found.push((call.method.to_string(), call.method.span().start().line));
        visit::visit_expr_method_call(self, call);
    }

    fn visit_expr_macro(&mut self, call: &'a syn::ExprMacro) {
        let name = call.mac.path.segments.last().map(|part| part.ident.to_string()).unwrap_or_default();
        self.found.push((format!("{name}!"), call.span().start().line));
        visit::visit_expr_macro(self, call);
    }

    fn visit_stmt_macro(&mut self, call: &'a syn::StmtMacro) {
        let name = call.mac.path.segments.last().map(|part| part.ident.to_string()).unwrap_or_default();
        self.found.push((format!("{name}!"), call.span().start().line));
        visit::visit_stmt_macro(self, call);
    }
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
    fn functions_have_length_and_depth() {
        let text = "fn f() {\n    loop {\n        if x {\n            y();\n        }\n    }\n}\n#[test]\nfn t() {}\n";
        let functions = Source::parse("x.rs", text).unwrap().functions();
        assert_eq!(functions.len(), 1);
        assert_eq!((functions[0].lines, functions[0].depth), (7, 3));
    }

    #[test]
    fn calls_are_found_but_not_in_tests() {
        let text = "fn f() { libc::shutdown(a.load(x)); panic!(); }\n#[cfg(test)]\nmod t { fn g() { accept(); } }";
        let source = Source::parse("x.rs", text).unwrap();
        let names: Vec<_> = calls(|calls| calls.visit_file(&source.file)).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["libc::shutdown", "load", "panic!"]);
    }
}

//! Control flow: how deep it is nested, and where the first loop begins.
//!
//! A level is the body of `if`, `else`, `match`, `while`, `loop` or `for`, or of a macro with braces such as `select!`.
//! `else if` stays on the level of its `if`. A closure adds no level, and functions inside a function count apart.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::visit::{self, Visit};

use super::attributes::is_test;

const KEYWORDS: &[&str] = &["if", "else", "match", "while", "loop", "for"];

/// The levels of control flow in a function's body.
pub fn of(block: &syn::Block) -> usize {
    let mut levels = Levels::default();
    levels.visit_block(block);
    levels.most
}

#[derive(Default)]
struct Levels {
    now: usize,
    most: usize,
}

impl Levels {
    fn inside(&mut self, visit: impl FnOnce(&mut Levels)) {
        self.now += 1;
        self.most = self.most.max(self.now);
        visit(self);
        self.now -= 1;
    }
}

impl<'a> Visit<'a> for Levels {
    fn visit_item(&mut self, _: &'a syn::Item) {}

    fn visit_expr_if(&mut self, branch: &'a syn::ExprIf) {
        self.visit_expr(&branch.cond);
        self.inside(|levels| levels.visit_block(&branch.then_branch));
        match branch.else_branch.as_ref().map(|(_, other)| &**other) {
            Some(syn::Expr::If(next)) => self.visit_expr_if(next),
            Some(other) => self.inside(|levels| levels.visit_expr(other)),
            None => {}
        }
    }

    fn visit_expr_match(&mut self, branch: &'a syn::ExprMatch) {
        self.visit_expr(&branch.expr);
        self.inside(|levels| branch.arms.iter().for_each(|arm| levels.visit_arm(arm)));
    }

    fn visit_expr_while(&mut self, repeat: &'a syn::ExprWhile) {
        self.visit_expr(&repeat.cond);
        self.inside(|levels| levels.visit_block(&repeat.body));
    }

    fn visit_expr_loop(&mut self, repeat: &'a syn::ExprLoop) {
        self.inside(|levels| levels.visit_block(&repeat.body));
    }

    fn visit_expr_for_loop(&mut self, repeat: &'a syn::ExprForLoop) {
        self.visit_expr(&repeat.expr);
        self.inside(|levels| levels.visit_block(&repeat.body));
    }

    /// The arguments of a macro are tokens: a brace after a keyword is a level.
    fn visit_macro(&mut self, call: &'a syn::Macro) {
        let own = usize::from(matches!(call.delimiter, syn::MacroDelimiter::Brace(_)));
        self.most = self.most.max(self.now + own + in_tokens(call.tokens.clone()));
    }
}

fn in_tokens(tokens: TokenStream) -> usize {
    let (mut most, mut control, mut is_unsafe) = (0, false, false);
    for token in tokens {
        match token {
            TokenTree::Ident(word) => {
                control |= KEYWORDS.iter().any(|keyword| word == keyword);
                is_unsafe = word == "unsafe";
            }
            TokenTree::Group(group) => {
                let is_body = control && !is_unsafe && group.delimiter() == Delimiter::Brace;
                most = most.max(in_tokens(group.stream()) + usize::from(is_body));
                control &= !is_body;
                is_unsafe = false;
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => is_unsafe = false,
        }
    }
    most
}

/// The line on which the first `while` or `loop` outside tests begins.
pub fn first_loop(file: &syn::File) -> Option<usize> {
    let mut loops = Loops(Vec::new());
    loops.visit_file(file);
    loops.0.into_iter().min()
}

struct Loops(Vec<usize>);

impl<'a> Visit<'a> for Loops {
    fn visit_item_mod(&mut self, module: &'a syn::ItemMod) {
        if !is_test(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_expr_while(&mut self, repeat: &'a syn::ExprWhile) {
        self.0.push(repeat.while_token.span.start().line);
        visit::visit_expr_while(self, repeat);
    }

    fn visit_expr_loop(&mut self, repeat: &'a syn::ExprLoop) {
        self.0.push(repeat.loop_token.span.start().line);
        visit::visit_expr_loop(self, repeat);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth(body: &str) -> usize {
        of(&syn::parse_str(&format!("{{ {body} }}")).unwrap())
    }

    #[test]
    fn only_control_flow_is_a_level() {
        assert_eq!(depth("let a = S { b: { 1 } }; unsafe { f() }; g(|| { h() });"), 0);
        assert_eq!(depth("loop { if a { match b { _ => for c in d { while e { f() } } } } }"), 5);
    }

    #[test]
    fn else_if_stays_on_its_level() {
        assert_eq!(depth("if a { } else if b { } else if c { } else { if d { } }"), 2);
    }

    #[test]
    fn closure_adds_no_level_and_inner_function_counts_apart() {
        assert_eq!(depth("if a { f(|| if b { }) } fn g() { if a { if b { if c { } } } }"), 2);
    }

    #[test]
    fn macros_count_too() {
        assert_eq!(depth("loop { select! { a = b => if c { match unsafe { d() } { _ => {} } } } }"), 4);
        assert_eq!(depth("println!(\"{}\", if a { 1 } else { 2 });"), 1);
    }

    #[test]
    fn first_loop_is_the_first_in_the_text() {
        let at = |text: &str| first_loop(&syn::parse_file(text).unwrap());
        assert_eq!(at("fn f() {\n    for a in b {}\n    while c {\n        loop {}\n    }\n}"), Some(3));
        assert_eq!(at("fn f() { for a in b {} }\n#[cfg(test)] mod t { fn g() { loop {} } }"), None);
        assert_eq!(at("// while\nfn f() { let s = \"loop {\"; }"), None);
    }
}

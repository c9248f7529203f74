//! How deep control flow is nested.
//!
//! A level is a body of `if`, `else`, `match`, `while`, `loop` or `for`, or of a macro with braces such as `select!`.
//! `else if` stays on the level of its `if`. Closures and `let ... else` add no level.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

const KEYWORDS: [&str; 6] = ["if", "else", "match", "while", "loop", "for"];

/// The levels of control flow in a function's body.
pub fn depth(tokens: TokenStream) -> usize {
    let mut tokens = tokens.into_iter().peekable();
    let (mut most, mut control, mut before) = (0, false, String::new());
    while let Some(token) = tokens.next() {
        match &token {
            // Rust has no brace in front of the `else` of a `let ... else`.
            TokenTree::Ident(word) if word == "else" && before != "{" => {}
            TokenTree::Ident(word) => control |= KEYWORDS.iter().any(|keyword| word == keyword),
            TokenTree::Punct(punct) => control &= !(punct.as_char() == '>' && before == "="),
            TokenTree::Group(group) => {
                let is_brace = group.delimiter() == Delimiter::Brace;
                let is_pattern = tokens.peek().is_some_and(|next| ["=", "in"].contains(&next.to_string().as_str()));
                let is_body = is_brace && (control || before == "!") && before != "unsafe" && !is_pattern;
                most = most.max(depth(group.stream()) + usize::from(is_body));
                control &= !is_body;
            }
            TokenTree::Literal(_) => {}
        }
        before = match &token {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => "{".to_owned(),
            token => token.to_string(),
        };
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(body: &str) -> usize {
        depth(body.parse().unwrap())
    }

    #[test]
    fn only_control_flow_is_a_level() {
        assert_eq!(levels("let a = S { b: { 1 } }; unsafe { f() }; g(|| { h() });"), 0);
        assert_eq!(levels("loop { if a { match b { _ => for c in d { while e { f() } } } } }"), 5);
    }

    #[test]
    fn else_if_stays_on_its_level() {
        assert_eq!(levels("if a { } else if b { } else if c { } else { if d { } }"), 2);
    }

    #[test]
    fn closures_patterns_and_let_else_add_no_level() {
        assert_eq!(levels("if a { f(|| { g() }) }"), 1);
        assert_eq!(levels("let Some(a) = b else { return };"), 0);
        assert_eq!(levels("while let A { b, .. } = c { if d {} }"), 2);
        assert_eq!(levels("match a { A { b } if c => { d() } B { e } => {} }"), 1);
        assert_eq!(levels("match unsafe { a() } { _ => {} }"), 1);
    }

    #[test]
    fn macros_count_too() {
        assert_eq!(levels("loop { select! { a = b => if c { match unsafe { d() } { _ => {} } } } }"), 4);
        assert_eq!(levels("println!(\"{}\", if a { 1 } else { 2 });"), 1);
    }
}

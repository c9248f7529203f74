//! The calls in a piece of code, also in the arguments of macros.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Words that may stand before a parenthesis without a call.
const KEYWORDS: &str = "if while match in return let else for move as mut ref fn";

/// Names with their lines: the last two parts of a function's path, such as `libc::shutdown` or `accept`; the name of
/// a method; the name of a macro with its `!`. A name before a parenthesis counts as a call, so `Some` is one too.
pub fn calls(tokens: TokenStream) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    scan(tokens, &mut found);
    found
}

fn scan(tokens: TokenStream, found: &mut Vec<(String, usize)>) {
    let mut parts: Vec<String> = Vec::new();
    let (mut joined, mut defines, mut generics) = (false, false, 0);
    for token in tokens {
        match token {
            // The types between `::<` and `>` belong to the name in front of them.
            TokenTree::Punct(punct) if punct.as_char() == '<' && (joined || generics > 0) => generics += 1,
            TokenTree::Punct(punct) if punct.as_char() == '>' && generics > 0 => generics -= 1,
            _ if generics > 0 => joined = false,
            TokenTree::Ident(name) => {
                defines = parts.last().is_some_and(|last| last == "fn");
                if !joined {
                    parts.clear();
                }
                parts.push(name.to_string());
                joined = false;
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' => joined = true,
            TokenTree::Punct(punct) if punct.as_char() == '!' => {
                parts.iter_mut().next_back().into_iter().for_each(|name| name.push('!'))
            }
            TokenTree::Group(group) => {
                let is_call = parts.last().is_some_and(|name| {
                    let parenthesis = group.delimiter() == Delimiter::Parenthesis;
                    let is_keyword = KEYWORDS.split(' ').any(|keyword| keyword == name);
                    (parenthesis && !is_keyword && !defines) || name.ends_with('!')
                });
                if is_call {
                    let path = parts.get(parts.len().saturating_sub(2)..).unwrap_or_default();
                    found.push((path.join("::"), group.span_open().start().line));
                }
                parts.clear();
                scan(group.stream(), found);
            }
            _ => parts.clear(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        calls(text.parse().unwrap()).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn functions_methods_and_macros_are_calls() {
        assert_eq!(
            names("fn f(a: B) { nix::libc::shutdown(a.load(x)); panic!(); }"),
            ["libc::shutdown", "load", "panic!"]
        );
        assert_eq!(names("a::b::<C<D>>(e); F::<G>::h(i)"), ["a::b", "F::h"]);
        assert_eq!(names("fn f() { if (a) {} while (b) {} let s = \"g(1)\"; } // h(1)"), Vec::<String>::new());
    }

    #[test]
    fn calls_are_found_in_the_arguments_of_macros() {
        let text = "fn f() { writeln!(out, \"{}\", unsafe { nix::unistd::fork() }).ok(); }";
        assert_eq!(names(text), ["writeln!", "unistd::fork", "ok"]);
        assert_eq!(names("fn f() { vec![if (a) { b.poll(c) } else { write!{} }]; }"), ["vec!", "poll", "write!"]);
    }

    #[test]
    fn call_has_a_line() {
        let text = "fn f() {\n    a\n        .b(\n            c(),\n        );\n}";
        assert_eq!(calls(text.parse().unwrap()), [("b".to_owned(), 3), ("c".to_owned(), 4)]);
    }
}

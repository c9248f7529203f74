//! The names in a piece of code.

use proc_macro2::{Ident, TokenStream, TokenTree};

/// All identifiers and keywords, in their order. Comments and strings have none.
pub fn names(tokens: TokenStream) -> Vec<Ident> {
    let names = tokens.into_iter().map(|token| match token {
        TokenTree::Ident(name) => vec![name],
        TokenTree::Group(group) => names(group.stream()),
        TokenTree::Punct(_) | TokenTree::Literal(_) => Vec::new(),
    });
    names.flatten().collect()
}

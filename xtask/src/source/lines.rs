//! Which lines of a Rust file hold code, and which hold only a comment.

use proc_macro2::{TokenStream, TokenTree};

/// The content of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    Blank,
    Comment,
    Code,
}

/// A line with a token is code. Another line that is not blank is a comment.
pub fn lines(text: &str) -> Vec<Line> {
    let kind = |line: &str| if line.trim().is_empty() { Line::Blank } else { Line::Comment };
    let mut lines: Vec<Line> = text.lines().map(kind).collect();
    let texts: Vec<&str> = text.lines().collect();
    mark(text.parse().unwrap_or_default(), &texts, &mut lines);
    lines
}

fn mark(tokens: TokenStream, texts: &[&str], lines: &mut [Line]) {
    for token in tokens {
        let (start, end) = (token.span().start(), token.span().end());
        let line = texts.get(start.line - 1).into_iter();
        let text: String = line.flat_map(|line| line.chars().skip(start.column)).take(2).collect();
        // The tokens of a doc comment have the position of the comment. They are not code.
        if text == "//" || text == "/*" {
            continue;
        }
        let mut mark_lines = |first: usize, last: usize| {
            let inside = lines.iter_mut().take(last).skip(first - 1);
            // A string may have blank lines. They stay blank.
            inside.filter(|line| **line != Line::Blank).for_each(|line| *line = Line::Code);
        };
        match token {
            TokenTree::Group(group) => {
                mark_lines(start.line, start.line);
                mark_lines(end.line, end.line);
                mark(group.stream(), texts, lines);
            }
            _ => mark_lines(start.line, end.line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One letter a line: c code, k comment, - blank.
    fn kinds(text: &str) -> String {
        let letter = |line: Line| match line {
            Line::Code => 'c',
            Line::Comment => 'k',
            Line::Blank => '-',
        };
        lines(text).into_iter().map(letter).collect()
    }

    #[test]
    fn code_comment_and_blank_lines_differ() {
        assert_eq!(
            kinds("//! Title\n\nuse a; // why\n/// Doc\nfn f() {\n}\n/* one\n\n   /* two */ still */ x!();\n"),
            "k-ckcck-c"
        );
    }

    #[test]
    fn string_has_no_comments_and_comment_has_no_strings() {
        assert_eq!(kinds("const A: &str = \"// no\n/* no\";\n// \"yes\nconst B: u8 = 1;\n"), "cckc");
        assert_eq!(kinds("const A: &str = r#\"\"// no\n\n\"#;\n// yes\n"), "c-ck");
    }
}

//! Which lines of a Rust file hold code, which hold only a comment. Comments inside strings are strings, and quotes
//! inside comments are comments.

/// What is on one line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line {
    pub code: bool,
    pub comment: bool,
}

#[derive(Clone, Copy)]
enum State {
    Code,
    LineComment,
    /// Block comments nest in Rust.
    BlockComment(usize),
    String,
    /// Ended by a quote and that many `#`.
    RawString(usize),
}

/// What is on each line.
pub fn lines(text: &str) -> Vec<Line> {
    let chars: Vec<char> = text.chars().collect();
    let mut lines = Vec::new();
    let mut line = Line::default();
    let mut state = State::Code;
    let mut at = 0;
    while let Some(rest) = chars.get(at..).filter(|rest| !rest.is_empty()) {
        let before = at.checked_sub(1).and_then(|at| chars.get(at)).copied();
        let (taken, next) = step(state, before, rest);
        // A comment is marked where it begins as well as where it goes on.
        let comment = [state, next].iter().any(|s| matches!(s, State::LineComment | State::BlockComment(_)));
        for c in rest.iter().take(taken) {
            match c {
                '\n' => lines.push(std::mem::take(&mut line)),
                c if c.is_whitespace() => {}
                _ if comment => line.comment = true,
                _ => line.code = true,
            }
        }
        state = next;
        at += taken;
    }
    if line != Line::default() {
        lines.push(line);
    }
    lines
}

/// How many characters belong together, and what comes after them.
fn step(state: State, before: Option<char>, rest: &[char]) -> (usize, State) {
    match (state, rest) {
        (State::Code, ['/', '/', ..]) => (2, State::LineComment),
        (State::Code, ['/', '*', ..]) => (2, State::BlockComment(1)),
        (State::Code, ['"', ..]) => (1, State::String),
        (State::Code, ['r', hashes @ ..]) if !is_name(before) => match raw_string(hashes) {
            Some(count) => (count + 2, State::RawString(count)),
            None => (1, State::Code),
        },
        (State::Code, ['b' | 'c', 'r', hashes @ ..]) if !is_name(before) => match raw_string(hashes) {
            Some(count) => (count + 3, State::RawString(count)),
            None => (2, State::Code),
        },
        // '"' and '\'' are characters; 'a without a second quote is a lifetime.
        (State::Code, ['\'', '\\', _, tail @ ..]) => {
            (4 + tail.iter().position(|c| *c == '\'').unwrap_or(0), State::Code)
        }
        (State::Code, ['\'', _, '\'', ..]) => (3, State::Code),
        (State::LineComment, ['\n', ..]) => (1, State::Code),
        (State::BlockComment(depth), ['/', '*', ..]) => (2, State::BlockComment(depth + 1)),
        (State::BlockComment(1), ['*', '/', ..]) => (2, State::Code),
        (State::BlockComment(depth), ['*', '/', ..]) => (2, State::BlockComment(depth - 1)),
        (State::String, ['\\', _, ..]) => (2, State::String),
        (State::String, ['"', ..]) => (1, State::Code),
        (State::RawString(count), ['"', tail @ ..])
            if tail.len() >= count && tail.iter().take(count).all(|c| *c == '#') =>
        {
            (count + 1, State::Code)
        }
        _ => (1, state),
    }
}

fn is_name(c: Option<char>) -> bool {
    c.is_some_and(|c| c.is_alphanumeric() || c == '_')
}

/// The number of `#` between an `r` and its quote; `r#name` is no string.
fn raw_string(rest: &[char]) -> Option<usize> {
    let count = rest.iter().take_while(|c| **c == '#').count();
    (rest.get(count) == Some(&'"')).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One letter a line: c code, k comment, b both, - blank.
    fn kinds(text: &str) -> String {
        let kind = |line: &Line| match (line.code, line.comment) {
            (true, true) => 'b',
            (true, false) => 'c',
            (false, true) => 'k',
            (false, false) => '-',
        };
        lines(text).iter().map(kind).collect()
    }

    #[test]
    fn lines_are_told_apart() {
        assert_eq!(kinds("//! Title\n\nuse a; // why\nfn f() {}\n/* one\n\n   /* two */ still */ x\n"), "k-bck-b");
    }

    #[test]
    fn strings_hold_no_comments_and_comments_no_strings() {
        assert_eq!(kinds("let a = \"// no\n/* no\";\n// \"yes\nlet b = 1;\n"), "cckc");
        assert_eq!(kinds("let a = r#\"\"// no\"#;\n// yes\nlet r#type = br\"\\\";\n// yes\n"), "ckck");
        assert_eq!(kinds("let q = '\"';\n// yes\nlet q = '\\'';\n// yes\nfn f<'a>(x: &'a u8) {}\n// yes\n"), "ckckck");
        assert_eq!(kinds("let u = '\\u{1f}'; // yes\nlet s = \"\\\"// no\";\n"), "bc");
    }
}

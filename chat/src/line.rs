//! From bytes to lines: framing, the length limit, UTF-8, and escaping for terminals.

use std::fmt::Write;

/// The longest line that a client may send, in bytes with the LF.
pub const LINE_MAX: usize = 1024;
/// The longest first line. A nick is short; a client that sends more is not a chat client.
pub const FIRST_MAX: usize = 256;
/// The longest line that a server sends: an escaped byte takes at most four bytes, and the time, a tag and a nick precede
/// the text.
pub const SENT_MAX: usize = 4 * LINE_MAX + 128;

/// The result of [`LineBuf::next`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Framed {
    /// A whole line without its line end, escaped (see [`escape`]).
    Line(String),
    /// A whole line that is not UTF-8. It is discarded; the next line may be valid.
    NotUtf8,
    /// No LF within the limit. What follows may be the middle of a line, so the buffer is closed.
    TooLong,
}

/// Collects received bytes and returns whole lines. It finds the line end first and decodes UTF-8 after that, so a character
/// that is split between two reads arrives whole.
///
/// Its memory is bounded by the limit and the longest slice pushed, if the caller takes all lines before it pushes again.
#[derive(Debug)]
pub struct LineBuf {
    bytes: Vec<u8>,
    /// The index at which the next line begins.
    start: usize,
    /// There is no LF before this index.
    searched: usize,
    limit: usize,
    closed: bool,
}

impl LineBuf {
    /// An empty buffer for lines of at most `limit` bytes with the LF.
    pub fn new(limit: usize) -> LineBuf {
        LineBuf { bytes: Vec::new(), start: 0, searched: 0, limit, closed: false }
    }

    /// Sets the limit for the lines that have not been taken yet.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Takes received bytes. A closed buffer discards them.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.closed {
            return;
        }
        self.bytes.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// True if [`next`](Self::next) will return something.
    pub fn is_ready(&mut self) -> bool {
        !self.closed && (self.line_end().is_some() || self.bytes.len() - self.start >= self.limit)
    }

    /// Takes the next line.
    #[expect(clippy::should_implement_trait, reason = "more may follow after None")]
    pub fn next(&mut self) -> Option<Framed> {
        if !self.is_ready() {
            return None;
        }
        let line =
            self.line_end().and_then(|end| self.bytes.get(self.start..end)).filter(|line| line.len() < self.limit);
        let Some(line) = line else {
            (self.bytes, self.start, self.searched, self.closed) = (Vec::new(), 0, 0, true);
            return Some(Framed::TooLong);
        };
        let end = self.start + line.len() + 1;
        let text = line.strip_suffix(b"\r").unwrap_or(line);
        let framed = str::from_utf8(text).map_or(Framed::NotUtf8, |text| Framed::Line(escape(text)));
        (self.start, self.searched) = (end, end);
        Some(framed)
    }

    /// The number of bytes that have been pushed and not taken.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// True if all bytes have been taken.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The index of the first LF. No byte is searched twice: a line that arrives byte by byte costs no more than a line that
    /// arrives whole.
    fn line_end(&mut self) -> Option<usize> {
        let rest = self.bytes.get(self.searched..)?;
        match rest.iter().position(|byte| *byte == b'\n') {
            Some(at) => {
                self.searched += at;
                Some(self.searched)
            }
            None => {
                self.searched = self.bytes.len();
                None
            }
        }
    }
}

/// Makes text safe for terminals and for the log. Control characters (C0, DEL, C1), invisible characters and characters that
/// change the direction of writing become visible: `\x1b` or `\u{202e}`. (The joiner inside an emoji is invisible too, so a
/// joined emoji is shown as its parts.)
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        let _ = match u32::from(c) {
            code if c.is_control() => write!(escaped, "\\x{code:02x}"),
            code if is_deceptive(c) => write!(escaped, "\\u{{{code:x}}}"),
            _ => escaped.write_char(c),
        };
    }
    escaped
}

/// Characters of Unicode's category Cf, and the separators of lines and paragraphs. They are invisible, or move what is
/// visible.
fn is_deceptive(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{115f}' | '\u{1160}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(buffer: &mut LineBuf) -> Vec<Framed> {
        std::iter::from_fn(|| buffer.next()).collect()
    }

    fn framed(chunks: &[&[u8]]) -> Vec<Framed> {
        let mut buffer = LineBuf::new(LINE_MAX);
        chunks
            .iter()
            .flat_map(|chunk| {
                buffer.push(chunk);
                lines(&mut buffer)
            })
            .collect()
    }

    fn line(text: &str) -> Framed {
        Framed::Line(text.into())
    }

    /// The obvious way, with all bytes at hand.
    fn naive(bytes: &[u8], cap: usize) -> Vec<Framed> {
        let mut found = Vec::new();
        let mut rest = bytes;
        loop {
            let end = rest.iter().position(|byte| *byte == b'\n');
            match end {
                Some(end) if end < cap => {
                    let text = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
                    found.push(String::from_utf8(text.to_vec()).map_or(Framed::NotUtf8, |text| line(&escape(&text))));
                    rest = &rest[end + 1..];
                }
                None if rest.len() < cap => return found,
                _ => {
                    found.push(Framed::TooLong);
                    return found;
                }
            }
        }
    }

    proptest! {
        #[test]
        fn as_the_naive_splitter(
            bytes in prop::collection::vec(prop_oneof![
                4 => Just(b'\n'), 2 => Just(b'\r'), 8 => 0x20u8..0x7f, 4 => any::<u8>(), 1 => Just(0xc3), 1 => Just(0xa9),
            ], 0..300),
            cuts in prop::collection::vec(0usize..300, 0..20),
            cap in 2usize..40,
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut buffer = LineBuf::new(cap);
            let mut found = Vec::new();
            for cut in cuts.windows(2) {
                buffer.push(&bytes[cut[0]..cut[1]]);
                found.extend(lines(&mut buffer));
                prop_assert!(buffer.len() < cap);
            }
            prop_assert_eq!(found, naive(&bytes, cap));
        }

        #[test]
        fn escaped_text_is_harmless_and_stays_so(text in any::<String>()) {
            let escaped = escape(&text);
            prop_assert!(escaped.chars().all(|c| !c.is_control() && !is_deceptive(c)));
            prop_assert_eq!(escape(&escaped), escaped.clone());
            prop_assert!(escaped.len() <= 4 * text.len());
        }
    }

    #[test]
    fn framing() {
        assert_eq!(framed(&[b"hi\r\n"]), [line("hi")]); // K5
        assert_eq!(framed(&[b"caf\xc3", b"\xa9\n"]), [line("caf\u{e9}")]); // K8
        assert_eq!(framed(&[b"a\n\nb", b"c\n"]), [line("a"), line(""), line("bc")]);
        assert_eq!(framed(&[b"x\xff\xfe\n", b"y\n"]), [Framed::NotUtf8, line("y")]); // K7
        assert_eq!(framed(&[b"half"]), []); // K11
    }

    #[test]
    fn the_cap_counts_the_line_end() {
        let text = [b'x'; LINE_MAX];
        assert_eq!(framed(&[&text[1..], b"\n"]), [line(&"x".repeat(LINE_MAX - 1))]);
        assert_eq!(framed(&[&text[2..], b"\r\n"]), [line(&"x".repeat(LINE_MAX - 2))]);
        assert_eq!(framed(&[&text, b"\nhi\n"]), [Framed::TooLong]);
        assert_eq!(framed(&[&text[1..], b"\r\nhi\n"]), [Framed::TooLong]);
    }

    #[test]
    fn a_megabyte_without_a_line_end_is_not_kept() {
        let mut buffer = LineBuf::new(LINE_MAX);
        let mut found = Vec::new();
        for _ in 0..256 {
            buffer.push(&[b'x'; 4096]);
            found.extend(lines(&mut buffer));
            assert!(buffer.is_empty());
        }
        assert_eq!(found, [Framed::TooLong]);
    }

    #[test]
    fn what_a_terminal_must_not_see() {
        for (text, shown) in [
            ("\x1b[2J\x1b]0;pwn\x07", r"\x1b[2J\x1b]0;pwn\x07"),
            ("a\rb\x08\x7f\x00\t", r"a\x0db\x08\x7f\x00\x09"),
            ("\u{9b}31m", r"\x9b31m"),
            ("\u{202e}txt\u{200b}\u{feff}\u{2066}\u{2028}", r"\u{202e}txt\u{200b}\u{feff}\u{2066}\u{2028}"),
            ("caf\u{e9} \u{1f600} \u{4f60}\u{597d} \\x1b", "caf\u{e9} \u{1f600} \u{4f60}\u{597d} \\x1b"),
        ] {
            assert_eq!(escape(text), shown);
        }
    }
}

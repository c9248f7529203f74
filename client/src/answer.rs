//! One answer: fed with bytes as they come, in any pieces, it says when the answer is complete or why it is wrong.

use common::service;

use crate::failure::Failure;
use crate::plan::Verify;

const ERR: &[u8] = b"ERR ";
/// Of an error line so much is kept, in bytes.
const LINE_KEPT: usize = 120;

/// What the bytes so far make of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// More bytes belong to it.
    Incomplete,
    /// It is here, whole and right, and nothing behind it.
    Complete,
    /// It is wrong.
    Wrong(Failure),
}

/// An answer on its way in.
#[derive(Debug, Default)]
pub struct Answer {
    received: u64,
    /// An answer that starts as `ERR ` does; empty otherwise. Allocates for error lines only.
    line: Vec<u8>,
}

impl Answer {
    /// Ready for the next answer.
    pub fn reset(&mut self) {
        self.received = 0;
        self.line.clear();
    }

    /// Whether any byte has come.
    pub fn begun(&self) -> bool {
        self.received > 0 || !self.line.is_empty()
    }

    /// How many bytes are missing of `want`.
    pub fn missing(&self, want: u32) -> usize {
        u64::from(want).saturating_sub(self.got()) as usize
    }

    /// Takes the next bytes of an answer that shall have `want` bytes.
    pub fn feed(&mut self, bytes: &[u8], want: u32, verify: Verify) -> Verdict {
        let may_be_line = self.received == 0 && (!self.line.is_empty() || bytes.first() == Some(&b'E'));
        if may_be_line { self.feed_line(bytes, want, verify) } else { self.feed_body(bytes, want, verify) }
    }

    /// Why an answer that ends here, at end of file, is wrong.
    pub fn closed(&self, want: u32) -> Failure {
        match self.error_line() {
            Some(line) => line,
            None if !self.begun() => Failure::ClosedEarly,
            None => Failure::ShortAnswer { got: self.got(), want },
        }
    }

    /// Why an answer that ends here, with an error of the connection, is wrong.
    pub fn broken(&self, errno: i32, want: u32) -> Failure {
        let reset = matches!(errno, libc::ECONNRESET | libc::EPIPE);
        match self.error_line() {
            Some(line) => line,
            None if !reset => Failure::Other(errno),
            None if !self.begun() => Failure::ResetEarly(errno),
            None => Failure::ResetInAnswer { got: self.got(), want },
        }
    }

    /// Why an answer that is not complete after `ms` milliseconds is wrong.
    pub fn late(&self, ms: u128, want: u32) -> Failure {
        match self.error_line() {
            Some(line) => line,
            None if !self.begun() => Failure::TimedOut(ms),
            None => Failure::Stalled { got: self.got(), want, ms },
        }
    }

    fn got(&self) -> u64 {
        self.received + self.line.len() as u64
    }

    fn error_line(&self) -> Option<Failure> {
        let text = self.line.starts_with(ERR).then(|| self.line.trim_ascii_end().escape_ascii().to_string());
        text.map(Failure::ErrLine)
    }

    fn feed_line(&mut self, bytes: &[u8], want: u32, verify: Verify) -> Verdict {
        let mut rest = bytes;
        while let Some((byte, behind)) = rest.split_first() {
            let place = self.line.len();
            if place < ERR.len() && ERR.get(place) != Some(byte) {
                return self.not_a_line(rest, want, verify);
            }
            self.line.push(*byte);
            rest = behind;
            let ended = *byte == b'\n' || self.line.len() == LINE_KEPT;
            if let (true, Some(line)) = (ended, self.error_line()) {
                return Verdict::Wrong(line);
            }
        }
        // The pattern has no capitals; any other answer may be so short that it ends inside the word.
        let short = self.line.len() < ERR.len() && self.line.len() as u64 >= u64::from(want);
        if short && verify != Verify::Pattern { self.not_a_line(&[], want, verify) } else { Verdict::Incomplete }
    }

    /// It began as `ERR ` does and went on otherwise: what was held back is part of an ordinary answer.
    fn not_a_line(&mut self, rest: &[u8], want: u32, verify: Verify) -> Verdict {
        let held = std::mem::take(&mut self.line);
        match self.feed_body(&held, want, verify) {
            Verdict::Complete if rest.is_empty() || verify == Verify::None => Verdict::Complete,
            Verdict::Wrong(Failure::TooManyBytes { extra, want }) => {
                Verdict::Wrong(Failure::TooManyBytes { extra: extra + rest.len() as u64, want })
            }
            Verdict::Wrong(failure) => Verdict::Wrong(failure),
            _ if rest.is_empty() => Verdict::Incomplete,
            _ => self.feed_body(rest, want, verify),
        }
    }

    fn feed_body(&mut self, bytes: &[u8], want: u32, verify: Verify) -> Verdict {
        let left = u64::from(want).saturating_sub(self.received);
        let mine = bytes.get(..bytes.len().min(left as usize)).unwrap_or_default();
        if verify == Verify::Pattern
            && let Some(failure) = self.mismatch(mine)
        {
            return Verdict::Wrong(failure);
        }
        self.received += mine.len() as u64;
        let extra = bytes.len() as u64 - mine.len() as u64;
        match extra {
            0 if self.received < u64::from(want) => Verdict::Incomplete,
            0 => Verdict::Complete,
            _ if verify == Verify::None => Verdict::Complete,
            _ => Verdict::Wrong(Failure::TooManyBytes { extra, want }),
        }
    }

    fn mismatch(&self, bytes: &[u8]) -> Option<Failure> {
        let mut offset = self.received;
        for piece in bytes.chunks(service::BLOCK) {
            // `received` is below `want`, so it fits the service's 32 bits.
            let expected = service::answer_from(offset as u32, piece.len() as u32);
            if piece != expected {
                let at = piece.iter().zip(expected).position(|(got, expected)| got != expected)?;
                let (got, expected) = (*piece.get(at)?, *expected.get(at)?);
                return Some(Failure::WrongByte { offset: offset + at as u64, expected, got });
            }
            offset += piece.len() as u64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(n: usize) -> Vec<u8> {
        (0..n).map(|i| b'a' + (i % 26) as u8).collect()
    }

    /// Feeds `bytes` cut at `cuts`, until a verdict is reached; end of file after the last byte.
    fn feed(bytes: &[u8], cuts: &[usize], want: u32, verify: Verify) -> Verdict {
        let mut answer = Answer::default();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        for pair in cuts.windows(2) {
            if pair[0] == pair[1] {
                continue;
            }
            match answer.feed(&bytes[pair[0]..pair[1]], want, verify) {
                Verdict::Incomplete => {}
                verdict => return verdict,
            }
        }
        Verdict::Wrong(answer.closed(want))
    }

    fn cuts() -> impl Strategy<Value = Vec<usize>> {
        prop::collection::vec(any::<usize>(), 0..12)
    }

    proptest! {
        #[test]
        fn a_right_answer_is_complete_however_it_is_cut(n in 1usize..70_000, cuts in cuts()) {
            for verify in [Verify::Pattern, Verify::Length, Verify::None] {
                prop_assert_eq!(feed(&pattern(n), &cuts, n as u32, verify), Verdict::Complete);
            }
        }

        #[test]
        fn one_wrong_byte_is_found_at_its_offset(n in 1usize..40_000, at in any::<usize>(), bad in 0u8..=255, cuts in cuts()) {
            let mut bytes = pattern(n);
            let at = at % n;
            prop_assume!(bytes[at] != bad && !(at == 0 && bad == b'E'));
            let expected = bytes[at];
            bytes[at] = bad;
            let wrong = Failure::WrongByte { offset: at as u64, expected, got: bad };
            prop_assert_eq!(feed(&bytes, &cuts, n as u32, Verify::Pattern), Verdict::Wrong(wrong));
        }

        #[test]
        fn a_short_answer_says_how_short(n in 2u32..40_000, cut in any::<usize>(), cuts in cuts()) {
            let got = 1 + cut % (n as usize - 1);
            let short = Failure::ShortAnswer { got: got as u64, want: n };
            prop_assert_eq!(feed(&pattern(got), &cuts, n, Verify::Pattern), Verdict::Wrong(short));
        }

        #[test]
        fn an_error_line_is_read_whole(text in "[a-z0-9. ]{1,60}", want in 1u32..5000, cuts in cuts()) {
            let line = format!("ERR {text}");
            let told = Verdict::Wrong(Failure::ErrLine(line.trim_end().to_owned()));
            prop_assert_eq!(feed(format!("{line}\n").as_bytes(), &cuts, want, Verify::Pattern), told.clone());
            // A reset behind an unfinished line does not hide it either.
            prop_assert_eq!(feed(line.as_bytes(), &cuts, want, Verify::Pattern), told);
        }

        #[test]
        fn any_bytes_of_the_right_number_pass_by_length(bytes in prop::collection::vec(any::<u8>(), 1..200), cuts in cuts()) {
            prop_assume!(!bytes.starts_with(ERR));
            prop_assert_eq!(feed(&bytes, &cuts, bytes.len() as u32, Verify::Length), Verdict::Complete);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), want in 1u32..300, cuts in cuts()) {
            for verify in [Verify::Pattern, Verify::Length, Verify::None] {
                let _ = feed(&bytes, &cuts, want, verify);
            }
        }
    }

    #[test]
    fn too_many_bytes_in_one_piece_are_seen() {
        for (verify, verdict) in [
            (Verify::Pattern, Verdict::Wrong(Failure::TooManyBytes { extra: 2, want: 3 })),
            (Verify::Length, Verdict::Wrong(Failure::TooManyBytes { extra: 2, want: 3 })),
            (Verify::None, Verdict::Complete),
        ] {
            assert_eq!(feed(b"abcde", &[], 3, verify), verdict);
        }
    }

    #[test]
    fn what_only_starts_like_an_error_line_is_wrong_bytes() {
        let wrong = Failure::WrongByte { offset: 0, expected: b'a', got: b'E' };
        assert_eq!(feed(b"ERx", &[1, 2], 3, Verify::Pattern), Verdict::Wrong(wrong));
        assert_eq!(feed(b"ERx", &[1, 2], 3, Verify::Length), Verdict::Complete);
        assert_eq!(feed(b"ERRx!", &[], 3, Verify::Length), {
            Verdict::Wrong(Failure::TooManyBytes { extra: 2, want: 3 })
        });
    }

    #[test]
    fn a_long_error_line_is_cut_and_control_characters_are_escaped() {
        let mut bytes = b"ERR \x1b[2J".to_vec();
        bytes.resize(4000, b'x');
        let Verdict::Wrong(Failure::ErrLine(text)) = feed(&bytes, &[], 10, Verify::Pattern) else { panic!() };
        assert!(text.starts_with("ERR \\x1b[2Jxxx") && text.len() < 200, "{text}");
    }
}

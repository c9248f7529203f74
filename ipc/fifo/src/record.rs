//! The records in the FIFOs: of fixed form, little-endian, and shorter than PIPE_BUF, so that one
//! write is one whole record.

use std::io;

use anyhow::{Result, ensure};
use serde::Serialize;

/// Bytes of a question. A write of at most PIPE_BUF (4096) bytes is atomic: the questions of two
/// clients do not mix.
pub const QUESTION: usize = 36;
/// Bytes of an answer before its numbers.
pub const HEAD: usize = 24;
/// The largest number of values that one question may ask for.
pub const MAX_N: i32 = 100;
const ASK: [u8; 4] = *b"FQ01";
const ANSWER: [u8; 4] = *b"FR01";
const VERSION: u16 = 1;

/// 16 random bytes that connect an answer with its question. They also name the reply FIFO.
pub type Nonce = [u8; 16];

/// A nonce that no other process can guess.
///
/// # Errors
/// The errors of getrandom(2).
pub fn random_nonce() -> io::Result<Nonce> {
    let mut bytes = [0u8; 16];
    // SAFETY: the pointer and the length are those of the array.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == 16 { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}

/// The nonce as text, as the name of the reply FIFO has it.
#[must_use]
pub fn hex(nonce: &Nonce) -> String {
    nonce.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A client's request for `n` random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Chosen at random by the client.
    pub nonce: Nonce,
    /// How many numbers: `1..=MAX_N`, or the answer is an error.
    pub n: i32,
    /// The pid of the client, as the client claims: a FIFO carries no credentials.
    pub pid: i32,
}

/// How a question was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Status {
    /// The numbers follow.
    Ok,
    /// `n` is not in `1..=MAX_N`.
    Range,
    /// The pid is not positive, or is 1: no client has such a pid.
    Pid,
}

/// The server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The question's nonce.
    pub nonce: Nonce,
    /// Success, or the reason of the failure.
    pub status: Status,
    /// The numbers; empty if the status is an error.
    pub values: Vec<i32>,
}

/// FNV-1a. It finds a record that was cut short and whose end is the beginning of the next record.
/// It does not stop a client that forges records.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    let hash =
        bytes.iter().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193));
    hash.to_le_bytes()
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

impl Question {
    /// A question of this process, with a new nonce.
    ///
    /// # Errors
    /// The errors of getrandom(2).
    pub fn new(n: i32) -> io::Result<Self> {
        Ok(Self { nonce: random_nonce()?, n, pid: std::process::id() as i32 })
    }

    /// The bytes to write, in one call.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = ASK.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend((QUESTION as u16).to_le_bytes());
        out.extend(self.nonce);
        out.extend(self.n.to_le_bytes());
        out.extend(self.pid.to_le_bytes());
        out.extend(checksum(&out));
        out
    }

    /// Parses exactly one question. None: these bytes are not a question.
    #[must_use]
    pub fn from_bytes(b: &[u8]) -> Option<Self> {
        let good = b.len() == QUESTION
            && array(b, 0)? == ASK
            && u16::from_le_bytes(array(b, 4)?) == VERSION
            && usize::from(u16::from_le_bytes(array(b, 6)?)) == QUESTION
            && checksum(b.get(..QUESTION - 4)?) == array(b, QUESTION - 4)?;
        let (nonce, n, pid) =
            (array(b, 8)?, i32::from_le_bytes(array(b, 24)?), i32::from_le_bytes(array(b, 28)?));
        good.then_some(Self { nonce, n, pid })
    }
}

impl Answer {
    /// An answer without numbers.
    #[must_use]
    pub fn error(nonce: Nonce, status: Status) -> Self {
        Self { nonce, status, values: Vec::new() }
    }

    /// Checks that this answer can be the answer to `question`. Over TCP the server may be
    /// anybody's.
    ///
    /// # Errors
    /// Another nonce, another number of values than asked for, or a value that is not in 1..=100.
    pub fn check(&self, question: &Question) -> Result<()> {
        ensure!(self.nonce == question.nonce, "this is the answer to another client's question");
        let wanted = if self.status == Status::Ok { question.n } else { 0 };
        let (got, is_wanted) = (self.values.len(), |n: usize| i32::try_from(n) == Ok(wanted));
        ensure!(is_wanted(got), "the answer has {got} numbers instead of {wanted}");
        let wrong = self.values.iter().find(|value| !(1..=100).contains(*value));
        ensure!(wrong.is_none(), "the answer has a number that is not in 1..=100");
        Ok(())
    }

    /// The bytes to write: as many as the numbers need, and no unused rest of a buffer.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = ANSWER.to_vec();
        let status: u16 = match self.status {
            Status::Ok => 0,
            Status::Range => 1,
            Status::Pid => 2,
        };
        out.extend(status.to_le_bytes());
        out.extend((self.values.len() as u16).to_le_bytes());
        out.extend(self.nonce);
        for value in &self.values {
            out.extend(value.to_le_bytes());
        }
        out
    }

    /// Parses exactly one answer. None: these bytes are not an answer.
    #[must_use]
    pub fn from_bytes(b: &[u8]) -> Option<Self> {
        let status = match u16::from_le_bytes(array(b, 4)?) {
            0 => Status::Ok,
            1 => Status::Range,
            2 => Status::Pid,
            _ => return None,
        };
        let count = usize::from(u16::from_le_bytes(array(b, 6)?));
        let body = b.get(HEAD..)?;
        let values: Vec<i32> =
            body.as_chunks::<4>().0.iter().map(|v| i32::from_le_bytes(*v)).collect();
        let good = array(b, 0)? == ANSWER && body.len() == count * 4;
        Some(Self { nonce: array(b, 8)?, status, values }).filter(|_| good)
    }
}

/// Finds the questions in the bytes that are read, and skips the bytes between them.
#[derive(Debug, Default)]
pub struct Decoder {
    held: Vec<u8>,
    /// How many bytes were not part of a question.
    pub junk: u64,
}

impl Decoder {
    /// Takes what was read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// True if no part of a question waits for its rest.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The next whole question. If the record at some byte is wrong, only this byte is skipped: the
    /// next question may begin inside the wrong record.
    pub fn next_question(&mut self) -> Option<Question> {
        let mut at = 0;
        let mut found = None;
        while let Some(rest) = self.held.get(at..).filter(|rest| !rest.is_empty()) {
            let head = rest.len().min(ASK.len());
            if rest.get(..head) == ASK.get(..head) {
                let Some(record) = rest.get(..QUESTION) else { break };
                found = Question::from_bytes(record);
                if found.is_some() {
                    break;
                }
            }
            at += 1;
        }
        self.junk += at as u64;
        self.held.drain(..at + if found.is_some() { QUESTION } else { 0 });
        found
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_record_cut_at_any_byte_does_not_hide_the_next_record() {
        let good = Question { nonce: [7; 16], n: 5, pid: 4321 };
        for cut in 0..QUESTION {
            let mut decoder = Decoder::default();
            decoder.feed(&good.to_bytes()[..cut]);
            assert_eq!(decoder.next_question(), None, "cut at {cut}");
            decoder.feed(&good.to_bytes());
            assert_eq!(decoder.next_question(), Some(good), "cut at {cut}");
            assert_eq!(decoder.junk, cut as u64);
        }
    }

    #[test]
    fn an_answer_survives_encoding_and_decoding() {
        let answer = Answer { nonce: [9; 16], status: Status::Ok, values: (1..=MAX_N).collect() };
        assert_eq!(Answer::from_bytes(&answer.to_bytes()), Some(answer.clone()));
        assert_eq!(Answer::from_bytes(&answer.to_bytes()[..40]), None);
        assert!(answer.to_bytes().len() <= libc::PIPE_BUF);
    }

    #[test]
    fn an_answer_with_another_nonce_count_or_range_is_rejected() {
        let question = Question { nonce: [9; 16], n: 2, pid: 4321 };
        let answer = |nonce: u8, status, values: &[i32]| {
            Answer { nonce: [nonce; 16], status, values: values.to_vec() }.check(&question).is_ok()
        };
        assert!(answer(9, Status::Ok, &[1, 100]) && answer(9, Status::Range, &[]));
        assert!(!answer(8, Status::Ok, &[1, 100]) && !answer(9, Status::Range, &[1, 100]));
        for values in [&[][..], &[1], &[1, 2, 3], &[0, 1], &[1, 101], &[i32::MAX, i32::MAX]] {
            assert!(!answer(9, Status::Ok, values), "{values:?}");
        }
    }
}

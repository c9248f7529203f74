//! The records on the pipes: fixed, little-endian, shorter than `PIPE_BUF`, so that one write is one whole record.

/// Bytes of a question. A write of at most `PIPE_BUF` (4096) bytes is atomic: two clients never interleave.
pub const QUESTION: usize = 36;
/// Bytes of an answer before its numbers.
pub const HEAD: usize = 24;
/// The most numbers one question may ask for.
pub const MAX_N: i32 = 100;
const ASK: [u8; 4] = *b"FQ01";
const ANSWER: [u8; 4] = *b"FR01";
const VERSION: u16 = 1;

/// What ties an answer to its question, and names the reply FIFO.
pub type Nonce = [u8; 16];

/// A client's request for `n` random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Chosen at random by the client.
    pub nonce: Nonce,
    /// How many numbers; a good one is in `1..=MAX_N`.
    pub n: i32,
    /// Who asks, by its own account: a FIFO carries no credentials.
    pub pid: i32,
}

/// How a question was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The numbers follow.
    Ok,
    /// `n` is not in `1..=MAX_N`.
    Range,
    /// The pid is not one the server would ever signal.
    Pid,
}

/// The server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The question's nonce.
    pub nonce: Nonce,
    /// Good, or why not.
    pub status: Status,
    /// The numbers; none where the status is an error.
    pub values: Vec<i32>,
}

/// FNV-1a: it finds a record cut short, whose tail is the head of the next; it is no defence against malice.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193));
    hash.to_le_bytes()
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

impl Question {
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

    /// The question in exactly these bytes, if it is one.
    #[must_use]
    pub fn from_bytes(b: &[u8]) -> Option<Self> {
        let good = b.len() == QUESTION
            && array(b, 0)? == ASK
            && u16::from_le_bytes(array(b, 4)?) == VERSION
            && usize::from(u16::from_le_bytes(array(b, 6)?)) == QUESTION
            && checksum(b.get(..QUESTION - 4)?) == array(b, QUESTION - 4)?;
        let (nonce, n, pid) = (array(b, 8)?, i32::from_le_bytes(array(b, 24)?), i32::from_le_bytes(array(b, 28)?));
        good.then_some(Self { nonce, n, pid })
    }
}

impl Answer {
    /// The bytes to write; only the numbers meant, never the rest of a buffer.
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

    /// The answer in exactly these bytes, if it is one.
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
        let values: Vec<i32> = body.as_chunks::<4>().0.iter().map(|v| i32::from_le_bytes(*v)).collect();
        let good = array(b, 0)? == ANSWER && body.len() == count * 4;
        Some(Self { nonce: array(b, 8)?, status, values }).filter(|_| good)
    }
}

/// Finds the questions in what is read from the FIFO, whatever lies between them.
#[derive(Debug, Default)]
pub struct Decoder {
    held: Vec<u8>,
    /// Bytes that were no part of a question.
    pub junk: u64,
}

impl Decoder {
    /// Takes what was read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// True where no part of a question waits for the rest of it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The next whole question. A record that does not check costs one byte, not its length: the next may begin in it.
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
    fn a_record_cut_at_any_byte_does_not_take_the_next_with_it() {
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
    fn an_answer_comes_back_as_it_went() {
        let answer = Answer { nonce: [9; 16], status: Status::Ok, values: (1..=MAX_N).collect() };
        assert_eq!(Answer::from_bytes(&answer.to_bytes()), Some(answer.clone()));
        assert_eq!(Answer::from_bytes(&answer.to_bytes()[..40]), None);
        assert!(answer.to_bytes().len() <= libc::PIPE_BUF);
    }
}

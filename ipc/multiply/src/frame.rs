//! Framing: where one message ends and the next begins. TCP does not say: it carries bytes, in order, and one `recv`
//! returns whatever part of them has come. So the bytes themselves have to say it.

use clap::ValueEnum;

/// Longest message in bytes, without its newline or its length. Two numbers of full precision need about 50.
pub const MESSAGE_MAX: usize = 127;
/// A length is so many bytes, the most significant first.
pub const LENGTH: usize = 4;

/// How a message says where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Framing {
    /// A newline ends it; it cannot hold one
    Line,
    /// Four bytes before it, big-endian, say how long it is; it may hold any byte
    Length,
}

/// No message can be found here, now or later: it is longer than [`MESSAGE_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

impl Framing {
    /// The first whole message in `received`, and how many bytes it takes up with its frame; `None` while a part of it
    /// is still to come. It looks at no more than one message may take.
    ///
    /// # Errors
    /// [`TooLong`], as soon as that is certain.
    pub fn first(self, received: &[u8]) -> Result<Option<(&[u8], usize)>, TooLong> {
        match self {
            Framing::Line => match received.iter().take(MESSAGE_MAX + 1).position(|byte| *byte == b'\n') {
                Some(end) => Ok(received.get(..end).map(|line| (line, end + 1))),
                None if received.len() > MESSAGE_MAX => Err(TooLong),
                None => Ok(None),
            },
            Framing::Length => {
                let Some((length, rest)) = received.split_first_chunk::<LENGTH>() else { return Ok(None) };
                // Judged before a byte of the message has come: nobody makes this program wait for 4 GiB.
                let length = u32::from_be_bytes(*length) as usize;
                match length > MESSAGE_MAX {
                    true => Err(TooLong),
                    false => Ok(rest.get(..length).map(|message| (message, LENGTH + length))),
                }
            }
        }
    }

    /// Appends `message` in its frame.
    pub fn put(self, message: &str, to: &mut Vec<u8>) {
        if self == Framing::Length {
            to.extend_from_slice(&(message.len() as u32).to_be_bytes());
        }
        to.extend_from_slice(message.as_bytes());
        if self == Framing::Line {
            to.push(b'\n');
        }
    }
}

//! Framing: where one message ends and the next begins. TCP does not know: it carries bytes in
//! order, and one recv returns the part of them that has arrived. So the bytes themselves must
//! tell.

use clap::ValueEnum;

/// Longest message in bytes, without its newline or its length. Two numbers of full precision need
/// about 50.
pub const MESSAGE_MAX: usize = 127;
/// Bytes of a length, the most significant byte first.
pub const LENGTH: usize = 4;

/// How the end of a message is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Framing {
    /// A newline ends the message; the message cannot contain one
    Line,
    /// Four bytes before the message, big-endian, are its length; it may contain any byte
    Length,
}

/// The message is longer than [`MESSAGE_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

impl Framing {
    /// The first whole message in `received`, and how many bytes it needs with its frame. None: a
    /// part of the message is still missing. It reads no more bytes than one message may have.
    ///
    /// # Errors
    /// [`TooLong`], as soon as this is certain.
    pub fn first(self, received: &[u8]) -> Result<Option<(&[u8], usize)>, TooLong> {
        match self {
            Framing::Line => {
                match received.iter().take(MESSAGE_MAX + 1).position(|byte| *byte == b'\n') {
                    Some(end) => Ok(received.get(..end).map(|line| (line, end + 1))),
                    None if received.len() > MESSAGE_MAX => Err(TooLong),
                    None => Ok(None),
                }
            }
            Framing::Length => {
                let Some((length, rest)) = received.split_first_chunk::<LENGTH>() else {
                    return Ok(None);
                };
                // Checked before the message arrives: a client cannot announce 4 GiB and make us
                // wait.
                let length = u32::from_be_bytes(*length) as usize;
                match length > MESSAGE_MAX {
                    true => Err(TooLong),
                    false => Ok(rest.get(..length).map(|message| (message, LENGTH + length))),
                }
            }
        }
    }

    /// Appends `message` with its frame.
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

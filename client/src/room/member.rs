//! One connection of the room: what it still has to send, and what has come on it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::SHORTEST;

/// The sign before the number of a message. It is in no nick, no channel and no word of a protocol.
pub const MARK: u8 = b'%';
const DIGITS: usize = 10;
/// Bytes that one read takes at most.
pub const BLOCK: usize = 64 * 1024;
/// Bytes of the handshake that are looked at.
const HELLO_MOST: usize = 16 * 1024;
/// Bytes of its last words that are kept.
const WORDS: usize = 512;

/// A connection.
pub struct Member {
    pub socket: Socket,
    pub listens: bool,
    /// Latency is taken here.
    pub is_probe: bool,
    pub is_in: bool,
    pub is_gone: bool,
    /// What the kernel has not taken yet.
    out: Vec<u8>,
    /// What has come before the welcome; later the last words.
    pub came: Vec<u8>,
    /// Bytes in all.
    pub bytes: u64,
    /// A number that a segment has cut.
    number: Vec<u8>,
    in_number: bool,
}

impl Member {
    pub fn new(socket: Socket, listens: bool) -> Self {
        let (out, came, number) = (Vec::new(), Vec::new(), Vec::new());
        let (is_probe, is_in, is_gone, in_number) = (false, false, false, false);
        Member { socket, listens, is_probe, is_in, is_gone, out, came, bytes: 0, number, in_number }
    }

    /// Sends, or keeps for later what the kernel does not take. True if nothing is left.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<bool> {
        if !self.out.is_empty() {
            self.out.extend_from_slice(bytes);
            return self.flush();
        }
        let sent = match (&self.socket).write(bytes) {
            Ok(n) => n,
            Err(e) if later(&e) => 0,
            Err(e) => return Err(e),
        };
        self.out.extend_from_slice(bytes.get(sent..).unwrap_or_default());
        Ok(self.out.is_empty())
    }

    /// Sends what was kept. True if nothing is left.
    pub fn flush(&mut self) -> io::Result<bool> {
        while !self.out.is_empty() {
            match (&self.socket).write(&self.out) {
                Ok(n) => drop(self.out.drain(..n)),
                Err(e) if later(&e) => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// Whether something is still to be sent.
    pub fn has_more(&self) -> bool {
        !self.out.is_empty()
    }

    /// Reads once. `None` if nothing is there; 0 is the end.
    pub fn read(&mut self, block: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.socket).read(block) {
            Ok(n) => {
                self.bytes += n as u64;
                Ok(Some(n))
            }
            Err(e) if later(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Keeps what came before the welcome.
    pub fn keep(&mut self, bytes: &[u8]) {
        let room = HELLO_MOST.saturating_sub(self.came.len());
        self.came.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
    }

    /// Counts the messages in these bytes, and calls with the number of each where this is a probe.
    pub fn take(&mut self, bytes: &[u8], mut seen: impl FnMut(u64)) -> u64 {
        if let Some(words) = bytes.get(bytes.len().saturating_sub(WORDS)..) {
            self.came.clear();
            self.came.extend_from_slice(words);
        }
        if !self.is_probe {
            return bytes.iter().filter(|byte| **byte == MARK).count() as u64;
        }
        let mut count = 0;
        for byte in bytes {
            if *byte == MARK {
                (self.in_number, count) = (true, count + 1);
                self.number.clear();
            } else if self.in_number && byte.is_ascii_digit() {
                self.number.push(*byte);
                if self.number.len() == DIGITS {
                    self.in_number = false;
                    seen(self.number.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')));
                }
            } else {
                self.in_number = false;
            }
        }
        count
    }

    /// The last line it was told.
    pub fn last_words(&self) -> String {
        let text = String::from_utf8_lossy(&self.came);
        text.lines().next_back().unwrap_or_default().chars().filter(|c| !c.is_control()).take(80).collect()
    }
}

/// Message number so much, so long.
pub fn payload(number: u64, bytes: usize) -> String {
    let mut text = format!("{}{number:0DIGITS$}", char::from(MARK));
    text.extend(std::iter::repeat_n('x', bytes.saturating_sub(SHORTEST - 1)));
    text
}

fn later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::NotConnected)
}

/// A connection under way.
pub fn connect(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), None)?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&addr.into()) {
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        other => other.map(|()| socket),
    }
}

/// What became of a dead reader: only now it reads what there is.
pub fn end_of(socket: &Socket) -> String {
    let mut member = Member::new(
        match socket.try_clone() {
            Ok(socket) => socket,
            Err(e) => return e.to_string(),
        },
        true,
    );
    let mut block = vec![0; BLOCK];
    if let Err(e) = socket.set_nonblocking(true) {
        return e.to_string();
    }
    let start = Instant::now();
    // What the server still holds for it comes when there is room.
    while start.elapsed() < Duration::from_secs(1) {
        match member.read(&mut block) {
            Ok(Some(0)) => return format!("closed after {:?}", member.last_words()),
            Ok(Some(n)) => drop(member.take(block.get(..n).unwrap_or_default(), |_| ())),
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => return format!("{e} after {:?}", member.last_words()),
        }
    }
    "still connected".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(is_probe: bool) -> Member {
        let mut member = Member::new(Socket::new(Domain::IPV4, Type::STREAM, None).unwrap(), true);
        member.is_probe = is_probe;
        member
    }

    #[test]
    fn messages_are_found_however_they_are_cut() {
        let stream: String = (0..50).map(|n| format!("<a> {}\n* b joined\n", payload(n, 20))).collect();
        for cut in [1, 2, 3, 7, 11, 64, 5000] {
            let (mut numbers, mut count) = (Vec::new(), 0);
            let mut probe = member(true);
            for part in stream.as_bytes().chunks(cut) {
                count += probe.take(part, |number| numbers.push(number));
            }
            assert_eq!((count, numbers), (50, (0..50).collect()), "cut at {cut}");
            let mut other = member(false);
            let count: u64 = stream.as_bytes().chunks(cut).map(|part| other.take(part, |_| panic!())).sum();
            assert_eq!(count, 50);
        }
    }

    #[test]
    fn a_payload_is_as_long_as_asked_for() {
        assert_eq!(payload(7, 12), "%0000000007x");
        assert_eq!(payload(7, 64).len(), 64);
        assert_eq!(payload(7, 5), "%0000000007");
    }
}

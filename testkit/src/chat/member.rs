//! A member of a room, as a test plays one.

use std::io::{self, BufRead, BufReader, ErrorKind};
use std::net::{SocketAddr, TcpStream};

use crate::peer::{End, Peer};
use crate::server::TIMEOUT;

/// A connection to a chat, read by lines.
pub struct Member {
    /// The connection, for sending.
    pub peer: Peer,
    lines: BufReader<TcpStream>,
    /// Begun, and no LF yet.
    partial: Vec<u8>,
    /// The next line may be the greeting.
    is_new: bool,
}

/// The first line to every client that may stay.
pub const GREETING: &str = "* your nick? (letters, digits, _ and -; at most 20)";

impl Member {
    /// A connection that has said nothing yet.
    pub fn connect(addr: SocketAddr) -> Member {
        Member::over(Peer::connect(addr))
    }

    /// A connection with a receive buffer of a few KiB.
    pub fn connect_small_window(addr: SocketAddr) -> Member {
        Member::over(Peer::connect_small_window(addr))
    }

    fn over(peer: Peer) -> Member {
        let stream = peer.second_handle();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Member { peer, lines: BufReader::new(stream), partial: Vec::new(), is_new: true }
    }

    /// A member with this nick, welcomed.
    pub fn join(addr: SocketAddr, nick: &str) -> Member {
        Member::try_join(addr, nick).unwrap_or_else(|e| panic!("{e}"))
    }

    /// A member, or why not.
    ///
    /// # Errors
    /// What came instead of a connection or the welcome.
    pub fn try_join(addr: SocketAddr, nick: &str) -> Result<Member, String> {
        let mut member = Member::over(Peer::try_connect(addr).map_err(|e| format!("a fresh member: connect: {e}"))?);
        member.try_send(format!("{nick}\n")).map_err(|e| format!("a fresh member: send: {e}"))?;
        match member.next() {
            Ok(line) if line.starts_with("* welcome") => Ok(member),
            other => Err(format!("a fresh member {nick} is not welcomed: {other:?}")),
        }
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.peer.send(bytes);
    }

    /// Sends bytes, or says why not.
    ///
    /// # Errors
    /// Those of send(2).
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.peer.try_send(bytes)
    }

    /// Sends a line.
    pub fn say(&mut self, line: &str) {
        self.send(format!("{line}\n"));
    }

    /// The next line without its LF, or how the connection ended instead. The greeting is skipped.
    ///
    /// # Errors
    /// The end. What came of a last line without its LF is lost; a test that cares looks at [`Member::rest`].
    #[expect(clippy::should_implement_trait, reason = "lines may follow a silence")]
    pub fn next(&mut self) -> Result<String, End> {
        let line = self.any_line();
        if std::mem::take(&mut self.is_new) && line.as_ref().is_ok_and(|line| line == GREETING) {
            return self.any_line();
        }
        line
    }

    fn any_line(&mut self) -> Result<String, End> {
        match self.lines.read_until(b'\n', &mut self.partial) {
            Ok(_) if self.partial.last() == Some(&b'\n') => {
                self.partial.pop();
                let line = String::from_utf8(std::mem::take(&mut self.partial));
                Ok(line.unwrap_or_else(|e| panic!("not UTF-8: {}", e.as_bytes().escape_ascii())))
            }
            Ok(_) => Err(End::Eof),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Err(End::Silence),
            Err(_) => Err(End::Reset),
        }
    }

    /// The next line.
    pub fn line(&mut self) -> String {
        self.next().unwrap_or_else(|end| panic!("instead of a line: {end:?}"))
    }

    /// True if something has come that is not read yet.
    pub fn has_more(&self) -> bool {
        !self.lines.buffer().is_empty() || self.peer.unread() > 0
    }

    /// The next line is this one.
    pub fn expect(&mut self, line: &str) {
        assert_eq!(self.line(), line);
    }

    /// Lines up to and without the one that is looked for; that one comes second.
    pub fn until(&mut self, what: &str, mut wanted: impl FnMut(&str) -> bool) -> (Vec<String>, String) {
        let mut before = Vec::new();
        loop {
            match self.next() {
                Ok(line) if wanted(&line) => return (before, line),
                Ok(line) => before.push(line),
                Err(end) => panic!("{end:?} before {what}; seen: {before:?}"),
            }
        }
    }

    /// Everything that the room had for this member when it asked: `/echo off` and its answer are the mark.
    pub fn sync(&mut self) -> Vec<String> {
        self.say("/echo off");
        self.until("= echo off", |line| line == "= echo off").0
    }

    /// All lines to the end, the last perhaps without LF, and which end it was.
    pub fn rest(&mut self) -> (Vec<String>, End) {
        let mut lines = Vec::new();
        loop {
            match self.next() {
                Ok(line) => lines.push(line),
                Err(end) => {
                    if !self.partial.is_empty() {
                        lines.push(String::from_utf8_lossy(&self.partial).into_owned());
                    }
                    return (lines, end);
                }
            }
        }
    }

    /// Sends a FIN.
    pub fn half_close(&mut self) {
        self.peer.half_close();
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        drop(self.lines);
        self.peer.reset();
    }
}

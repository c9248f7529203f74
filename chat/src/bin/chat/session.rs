//! One poll loop on the socket and on what is typed, and the way back after a lost connection.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use chat::is_nick;
use chat::line::{Framed, LINE_MAX, LineBuf, SENT_MAX};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::read;

use crate::screen::Screen;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// First pause before an attempt to come back; each further one is twice as long ...
const PAUSE_FIRST: Duration = Duration::from_millis(500);
/// ... up to this.
const PAUSE_MOST: Duration = Duration::from_secs(30);
/// Bytes typed and not sent, beyond which no more is read from the input.
const PENDING_MOST: usize = 64 * 1024;
/// Longest line of the input that is looked at at all.
const INPUT_MOST: usize = 1 << 20;
/// After the last line: so long the server may stay silent, and this for each line it may hold up.
const LAST_WORDS: Duration = Duration::from_secs(10);
const HELD_UP: Duration = Duration::from_millis(100);

/// The server.
pub struct Target {
    pub host: String,
    pub port: u16,
}

impl Target {
    /// A connection to the first of its addresses that answers.
    ///
    /// # Errors
    /// What to do about it.
    pub fn connect(&self) -> Result<TcpStream, String> {
        let Target { host, port } = self;
        let addresses = (host.as_str(), *port).to_socket_addrs().map_err(|e| format!("{host}: {e}"))?;
        let mut last = None;
        for address in addresses {
            match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                Ok(conn) => return prepare(conn).map_err(|e| format!("{address}: {e}")),
                // An earlier refusal says more than "network is unreachable" of the other protocol.
                Err(e) if last.is_none() || e.kind() == ErrorKind::ConnectionRefused => last = Some((address, e)),
                Err(_) => {}
            }
        }
        match last {
            Some((address, e)) => Err(explain(address, &e)),
            None => Err(format!("{host}: no address")),
        }
    }
}

fn prepare(conn: TcpStream) -> io::Result<TcpStream> {
    conn.set_nodelay(true)?;
    conn.set_nonblocking(true)?;
    Ok(conn)
}

fn explain(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => {
            format!("nobody listens at {address}; start a server with `cargo run -p v1-threads`")
        }
        ErrorKind::TimedOut => format!("{address} does not answer"),
        _ => format!("connect {address}: {error}"),
    }
}

/// How a conversation ended.
enum End {
    /// As the user wished.
    Left,
    /// The server does not want this user: coming back would not help.
    Refused(String),
    /// It may come back.
    Lost(&'static str),
}

pub struct Session {
    target: Target,
    /// Empty until the user has given one.
    nick: String,
    attempts: u32,
    screen: Screen,
    /// Somebody types, and can be asked.
    interactive: bool,
    /// What has been typed, in lines.
    typed: LineBuf,
    /// There will be no more.
    quitting: Option<Instant>,
    sent: u32,
    joined: bool,
    pending: Vec<u8>,
    /// The last `! code` that ends a conversation.
    verdict: Option<String>,
}

impl Session {
    pub fn new(target: Target, nick: String, attempts: u32, screen: Screen, interactive: bool) -> Session {
        Session {
            target,
            nick,
            attempts,
            screen,
            interactive,
            typed: LineBuf::new(INPUT_MOST),
            quitting: None,
            sent: 0,
            joined: false,
            pending: Vec::new(),
            verdict: None,
        }
    }

    /// Talks until the user leaves; comes back where the connection is lost.
    ///
    /// # Errors
    /// Why it ended otherwise.
    pub fn run(mut self, mut conn: TcpStream, input: &OwnedFd) -> Result<(), String> {
        let mut pause = PAUSE_FIRST;
        let mut left = self.attempts;
        loop {
            let end = self.converse(&mut conn, input)?;
            if self.joined {
                (pause, left) = (PAUSE_FIRST, self.attempts);
            }
            let why = match end {
                End::Left => return Ok(()),
                End::Refused(line) => return Err(line),
                End::Lost(why) if self.quitting.is_some() => return Err(format!("{why} before all was said")),
                End::Lost(why) if self.nick.is_empty() => return Err(why.to_owned()),
                End::Lost(why) => why,
            };
            self.screen.note(why);
            loop {
                if left == 0 {
                    return Err(format!("{why}; giving up after {} attempts to come back", self.attempts));
                }
                left -= 1;
                self.screen.note(&format!("again in {:.1} s", pause.as_secs_f64()));
                if self.wait(input, pause)? {
                    return Ok(());
                }
                pause = PAUSE_MOST.min(pause * 2);
                match self.target.connect() {
                    Ok(again) => {
                        conn = again;
                        break;
                    }
                    Err(e) => self.screen.note(&e),
                }
            }
        }
    }

    /// One connection's life.
    fn converse(&mut self, conn: &mut TcpStream, input: &OwnedFd) -> Result<End, String> {
        (self.joined, self.verdict) = (false, None);
        self.pending.clear();
        let mut heard = LineBuf::new(SENT_MAX);
        if !self.nick.is_empty() {
            self.pending = format!("{}\n", self.nick).into_bytes();
        }
        loop {
            if self.quitting.is_some_and(|end| end <= Instant::now()) {
                return Ok(End::Lost("the server does not answer"));
            }
            let (socket_ready, input_ready) = self.poll(conn.as_fd(), input.as_fd())?;
            if !self.pending.is_empty() {
                // An error is left to the reading side: why the server has closed may still be there to be read.
                let taken = conn.write(&self.pending).unwrap_or(0);
                self.pending.drain(..taken);
            }
            if socket_ready {
                let mut buffer = [0; 16 * 1024];
                match conn.read(&mut buffer) {
                    Ok(0) => return Ok(self.end()),
                    Ok(n) => heard.push(buffer.get(..n).unwrap_or_default()),
                    Err(e) if is_nothing(&e) => {}
                    Err(_) => return Ok(self.end()),
                }
                while let Some(framed) = heard.next() {
                    self.hear(framed)?;
                }
            }
            if input_ready {
                self.read_input(input)?;
                self.say_typed();
            }
        }
    }

    /// Which of the two has something. The input is left alone while much waits to be sent.
    fn poll(&self, socket: BorrowedFd, input: BorrowedFd) -> Result<(bool, bool), String> {
        let mut events = PollFlags::POLLIN;
        events.set(PollFlags::POLLOUT, !self.pending.is_empty());
        let mut fds = vec![PollFd::new(socket, events)];
        if self.quitting.is_none() && self.pending.len() < PENDING_MOST {
            fds.push(PollFd::new(input, PollFlags::POLLIN));
        }
        let left = self.quitting.map(|end| end.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        let timeout = left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(format!("poll: {e}")),
        }
        let ready = |fd: &PollFd| fd.revents().is_some_and(|events| !(events - PollFlags::POLLOUT).is_empty());
        Ok((fds.first().is_some_and(ready), fds.get(1).is_some_and(ready)))
    }

    fn read_input(&mut self, input: &OwnedFd) -> Result<(), String> {
        let mut buffer = [0; 4096];
        match read(input, &mut buffer) {
            Ok(0) => {
                // What was typed last counts, newline or not.
                if !self.typed.is_empty() {
                    self.typed.push(b"\n");
                }
                self.quit();
            }
            Ok(n) => self.typed.push(buffer.get(..n).unwrap_or_default()),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(e) => return Err(format!("stdin: {e}")),
        }
        Ok(())
    }

    fn quit(&mut self) {
        self.quitting = Some(Instant::now() + LAST_WORDS);
    }

    /// Sends what has been typed, line by line.
    fn say_typed(&mut self) {
        while let Some(framed) = self.typed.next() {
            match framed {
                Framed::Line(line) => self.say(&line),
                Framed::NotUtf8 => self.screen.note("not sent: it is not UTF-8"),
                Framed::TooLong => {
                    self.screen.note("not sent: a line without an end");
                    self.quit();
                }
            }
        }
        if self.quitting.is_some() {
            self.pending.extend_from_slice(b"/quit\n");
            self.quitting = Some(Instant::now() + LAST_WORDS + HELD_UP * self.sent);
        }
    }

    fn say(&mut self, line: &str) {
        if self.quitting.is_some() && line.is_empty() {
            return;
        }
        if line.len() >= LINE_MAX {
            return self.screen.note(&format!("not sent: {} bytes, {} are the most", line.len(), LINE_MAX - 1));
        }
        if !self.joined {
            let nick = line.strip_prefix("/nick ").unwrap_or(line).trim();
            if self.interactive && !is_nick(nick) {
                return self.screen.note("a nick first, please: a letter, then up to 19 of A-Z a-z 0-9 _ -");
            }
            // In a pipe only the first line is one; what follows it need not wait for the welcome.
            if self.interactive || self.nick.is_empty() {
                self.nick = nick.to_owned();
            }
        }
        self.sent += 1;
        self.pending.extend_from_slice(format!("{line}\n").as_bytes());
        if matches!(line.split(' ').next(), Some("/quit" | "/exit")) {
            self.quitting = Some(Instant::now() + LAST_WORDS + HELD_UP * self.sent);
        }
    }

    /// A line of the server.
    fn hear(&mut self, framed: Framed) -> Result<(), String> {
        let line = match framed {
            Framed::Line(line) => line,
            Framed::NotUtf8 => "! a line that is not UTF-8".to_owned(),
            Framed::TooLong => return Err("the server sent a line without an end: this is no chat".into()),
        };
        let mut words = line.split(' ');
        match (words.next(), words.next()) {
            (Some("*"), Some("welcome")) if !self.joined => {
                self.joined = true;
                if let Some(nick) = words.next() {
                    self.nick = nick.trim_end_matches(';').to_owned();
                }
            }
            (Some("*"), Some(old)) if old == self.nick => {
                if let Some(new) = line.strip_prefix(&format!("* {old} is now ")) {
                    self.nick = new.to_owned();
                }
            }
            (Some("!"), Some(code @ ("nick-bad" | "login-needed" | "idle" | "too-fast" | "line-too-long"))) => {
                self.verdict = Some(format!("the server closed the connection: {code}"));
            }
            (Some("!"), Some("nick-taken")) if !self.joined && self.interactive => {
                self.screen.show(&line)?;
                self.screen.note("another nick, please");
                return Ok(());
            }
            (Some("!"), Some("nick-taken")) if !self.joined => {
                self.screen.show(&line)?;
                return Err(format!("{} is taken", self.nick));
            }
            _ => {}
        }
        if self.quitting.is_some() && self.pending.is_empty() {
            // It is alive; a line of the others is no answer, but this is a client, not a test.
            self.quitting = self.quitting.max(Some(Instant::now() + LAST_WORDS));
        }
        self.screen.show(&line)
    }

    /// The server has closed.
    fn end(&mut self) -> End {
        match self.verdict.take() {
            Some(verdict) => End::Refused(verdict),
            None if self.quitting.is_some() && self.pending.is_empty() => End::Left,
            None => End::Lost("the connection is lost"),
        }
    }

    /// Lets time pass while nobody is there to talk to; true if the user has had enough.
    fn wait(&mut self, input: &OwnedFd, pause: Duration) -> Result<bool, String> {
        let end = Instant::now() + pause;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            // A pipe can wait; who types wants an answer.
            let mut fds = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
            let fds = if self.interactive { &mut fds[..] } else { &mut [] };
            match poll(fds, timeout) {
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => self.read_input(input)?,
                Err(e) => return Err(format!("poll: {e}")),
            }
            while let Some(framed) = self.typed.next() {
                match framed {
                    Framed::Line(line) if line == "/quit" || line == "/exit" => return Ok(true),
                    Framed::Line(line) if line.is_empty() => {}
                    Framed::Line(line) => self.screen.note(&format!("not connected, not sent: {line}")),
                    Framed::NotUtf8 | Framed::TooLong => {}
                }
            }
            if self.quitting.is_some() {
                return Ok(true);
            }
        }
    }
}

fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

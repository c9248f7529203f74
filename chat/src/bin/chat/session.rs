//! One poll loop for the socket and the input, and the reconnection after a lost connection.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use chat::event::GREETING;
use chat::is_nick;
use chat::line::{Framed, LINE_MAX, LineBuf, SENT_MAX};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::read;

use crate::editor::is_quit;
use crate::screen::Screen;
use crate::target::Target;

/// The pause before the first attempt to reconnect. Each further pause is twice as long ...
const PAUSE_FIRST: Duration = Duration::from_millis(500);
/// ... up to this one.
const PAUSE_MOST: Duration = Duration::from_secs(30);
/// While more than this number of bytes waits to be sent, the input is not read.
const PENDING_MOST: usize = 64 * 1024;
/// The longest line of the input. A longer one ends the program.
const INPUT_MOST: usize = 1 << 20;
/// The server closes within this time after `/quit`, whatever else it sends ...
const QUIT_TIMEOUT: Duration = Duration::from_secs(5);
/// ... plus this time for each line that was sent, because the server's rate limit may delay each of them.
const DELAY_PER_LINE: Duration = Duration::from_millis(100);

/// How a session ended.
enum End {
    /// The user has left.
    Left,
    /// The server rejects this user, so a reconnection would not help.
    Rejected(String),
    /// The connection is lost: reconnect.
    Lost,
}

pub struct Session {
    target: Target,
    /// Empty until the user has given one.
    nick: String,
    attempts: u32,
    screen: Screen,
    /// The input is a terminal: the user can be asked for another nick.
    interactive: bool,
    /// The input, in lines.
    typed: LineBuf,
    /// `/quit` is on its way: the server has to close before this time.
    quitting: Option<Instant>,
    /// The user has left before the server knew the nick: there is nothing to wait for.
    has_left: bool,
    sent: u32,
    joined: bool,
    pending: Vec<u8>,
    /// The last `! code` that ends a session.
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
            has_left: false,
            sent: 0,
            joined: false,
            pending: Vec::new(),
            verdict: None,
        }
    }

    /// Runs until the user leaves. Reconnects after a lost connection.
    ///
    /// # Errors
    /// Any other reason to end.
    pub fn run(mut self, mut conn: TcpStream, input: &OwnedFd) -> Result<(), String> {
        let mut attempt = 0;
        loop {
            let end = self.converse(&mut conn, input)?;
            if self.joined {
                attempt = 0;
            }
            match end {
                End::Left => return Ok(()),
                End::Rejected(line) => return Err(line),
                End::Lost if self.quitting.is_some() => return Err("connection lost before all lines were sent".into()),
                End::Lost if self.nick.is_empty() => return Err("connection lost".into()),
                End::Lost => {}
            }
            let mut why = "connection lost".to_owned();
            conn = loop {
                if attempt == self.attempts {
                    return Err(format!("{why}; gave up after {attempt} attempts to reconnect"));
                }
                let pause = PAUSE_MOST.min(PAUSE_FIRST * (1 << attempt.min(10)));
                attempt += 1;
                let (nth, all) = (attempt, self.attempts);
                self.screen.note(&format!("{why}; attempt {nth} of {all} in {:.1} s", pause.as_secs_f64()));
                if self.wait(input, pause)? {
                    return Ok(());
                }
                match self.target.connect() {
                    Ok(conn) => break conn,
                    Err(e) => why = e,
                }
            };
        }
    }

    /// One connection, from its first to its last byte.
    fn converse(&mut self, conn: &mut TcpStream, input: &OwnedFd) -> Result<End, String> {
        (self.joined, self.verdict) = (false, None);
        self.pending.clear();
        let mut heard = LineBuf::new(SENT_MAX);
        if !self.nick.is_empty() {
            self.pending = format!("{}\n", self.nick).into_bytes();
        }
        loop {
            if self.quitting.is_some_and(|end| end <= Instant::now()) {
                return Err("the server did not close the connection after /quit".into());
            }
            let (socket_ready, input_ready) = self.poll(conn.as_fd(), input.as_fd())?;
            if !self.pending.is_empty() {
                // An error is found by the next read: the server's reason may still be in the socket's buffer.
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
            if self.has_left {
                return Ok(End::Left);
            }
        }
    }

    /// Waits for the socket and the input, and returns which of them is ready. The input is not read while much waits to be
    /// sent.
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
                // The last line counts, also without its newline.
                if !self.typed.is_empty() {
                    self.typed.push(b"\n");
                }
                self.typed.push(b"/quit\n");
            }
            Ok(n) => self.typed.push(buffer.get(..n).unwrap_or_default()),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(e) => return Err(format!("stdin: {e}")),
        }
        Ok(())
    }

    /// Sends what has been typed, line by line, up to `/quit`.
    fn say_typed(&mut self) {
        while self.quitting.is_none()
            && !self.has_left
            && let Some(framed) = self.typed.next()
        {
            match framed {
                Framed::Line(line) => self.say(&line),
                Framed::NotUtf8 => self.screen.note("not sent: the line is not UTF-8"),
                Framed::TooLong => {
                    self.screen.note("not sent: a line without an end");
                    self.say("/quit");
                }
            }
        }
    }

    fn say(&mut self, line: &str) {
        if line.len() >= LINE_MAX {
            return self.screen.note(&format!("not sent: {} bytes; a line has at most {}", line.len(), LINE_MAX - 1));
        }
        let is_quit = is_quit(line);
        if !self.joined && (self.interactive || self.nick.is_empty()) {
            // In a pipe only the first line is the nick: the following lines do not have to wait for the welcome.
            let nick = line.strip_prefix("/nick ").unwrap_or(line).trim();
            if is_quit {
                self.has_left = true;
                return;
            }
            if self.interactive && !is_nick(nick) {
                return self.screen.note("first your nick: a letter, then up to 19 of A-Z a-z 0-9 _ -; or /quit");
            }
            self.nick = nick.to_owned();
        }
        self.sent += 1;
        self.pending.extend_from_slice(format!("{line}\n").as_bytes());
        if is_quit {
            self.quitting = Some(Instant::now() + QUIT_TIMEOUT + DELAY_PER_LINE * self.sent);
        }
    }

    /// Takes a line from the server.
    fn hear(&mut self, framed: Framed) -> Result<(), String> {
        let line = match framed {
            Framed::Line(line) => line,
            Framed::NotUtf8 => "! a line that is not UTF-8".to_owned(),
            Framed::TooLong => return Err("the server sent a line without an end: it is not a chat".into()),
        };
        // On a terminal this program has asked for the nick.
        if line == GREETING && self.interactive {
            return Ok(());
        }
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
            (Some("!"), Some("nick-bad" | "login-needed" | "idle" | "too-fast" | "line-too-long")) => {
                self.verdict = Some(format!("the server closed the connection: {}", line.trim_start_matches("! ")));
                // On a terminal the reason is the last line of the program.
                if self.interactive {
                    return Ok(());
                }
            }
            (Some("!"), Some("nick-taken")) if !self.joined && self.interactive => {
                self.screen.show(&line, &self.nick)?;
                self.screen.note("type another nick, or /quit");
                return Ok(());
            }
            (Some("!"), Some("nick-taken")) if !self.joined => {
                self.screen.show(&line, &self.nick)?;
                return Err(format!("the nick {} is taken", self.nick));
            }
            _ => {}
        }
        self.screen.show(&line, &self.nick)
    }

    /// The server has closed.
    fn end(&mut self) -> End {
        match self.verdict.take() {
            Some(verdict) => End::Rejected(verdict),
            None if self.quitting.is_some() && self.pending.is_empty() => End::Left,
            None => End::Lost,
        }
    }

    /// Waits for the next attempt. True: the user has left.
    fn wait(&mut self, input: &OwnedFd, pause: Duration) -> Result<bool, String> {
        let end = Instant::now() + pause;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            // The input of a pipe can wait. A user who types gets an answer.
            let mut fds = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
            let fds = if self.interactive { &mut fds[..] } else { &mut [] };
            match poll(fds, timeout) {
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => self.read_input(input)?,
                Err(e) => return Err(format!("poll: {e}")),
            }
            while let Some(framed) = self.typed.next() {
                match framed {
                    Framed::Line(line) if is_quit(&line) => return Ok(true),
                    Framed::Line(line) if line.is_empty() => {}
                    Framed::Line(line) => self.screen.note(&format!("not connected, not sent: {line}")),
                    Framed::NotUtf8 => {}
                    Framed::TooLong => return Ok(true),
                }
            }
        }
    }
}

fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

//! Our end of a connection: each call, and what the kernel said to it.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, getpeername, recv, send};
use socket2::Socket;

/// No call sleeps longer than this for a peer that does nothing.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// As poll(2) names them, in the order in which they are printed.
const FLAGS: [(i16, &str); 5] = [
    (libc::POLLIN, "IN"),
    (libc::POLLOUT, "OUT"),
    (libc::POLLERR, "ERR"),
    (libc::POLLHUP, "HUP"),
    (libc::POLLRDHUP, "RDHUP"),
];

/// A connection, and the calls made on it so far.
#[derive(Debug)]
pub struct Ours {
    conn: Socket,
    calls: Vec<String>,
}

impl Ours {
    /// Takes over a connected socket.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn new(conn: Socket) -> io::Result<Ours> {
        conn.set_read_timeout(Some(PATIENCE))?;
        conn.set_write_timeout(Some(PATIENCE))?;
        Ok(Ours { conn, calls: Vec::new() })
    }

    /// recv(2): the bytes, or 0 for the end, or the error.
    pub fn recv(&mut self) {
        let mut buffer = [0; 512];
        let said = match recv(self.conn.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) => "0".to_owned(),
            Ok(n) => format!("'{}'", String::from_utf8_lossy(buffer.get(..n).unwrap_or_default()).trim_end()),
            Err(errno) => format!("{errno:?}"),
        };
        self.say(format!("recv {said}"));
    }

    /// send(2). MSG_NOSIGNAL: EPIPE as an error, and no SIGPIPE with it.
    pub fn send(&mut self, bytes: &[u8]) {
        let said = send(self.conn.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL);
        self.say(format!("send {}", word(said)));
    }

    /// What comes before the calls that are shown: our bytes.
    ///
    /// # Errors
    /// Those of send(2).
    pub fn send_before(&self, bytes: &[u8]) -> io::Result<()> {
        send(self.conn.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// Our FIN; reading goes on.
    ///
    /// # Errors
    /// Those of shutdown(2).
    pub fn shut_write(&self) -> io::Result<()> {
        self.conn.shutdown(Shutdown::Write)
    }

    /// Sends `total` bytes, in as many calls as it takes; an error ends it.
    pub fn upload(&mut self, total: usize) {
        let block = [b'x'; 16 * 1024];
        let mut left = total;
        let mut said = Ok(());
        while left > 0 && said.is_ok() {
            let block = block.get(..left.min(block.len())).unwrap_or_default();
            said = send(self.conn.as_raw_fd(), block, MsgFlags::MSG_NOSIGNAL).map(|n| left -= n);
        }
        self.say(format!("upload {}", word(said)));
    }

    /// The error that waits for the next call. Asking takes it away.
    pub fn so_error(&mut self) {
        let said = match self.conn.take_error() {
            Ok(None) => "0".to_owned(),
            Ok(Some(e)) | Err(e) => name(&e),
        };
        self.say(format!("SO_ERROR {said}"));
    }

    /// getpeername(2): whether there is another end.
    pub fn getpeername(&mut self) {
        let said = getpeername::<nix::sys::socket::SockaddrStorage>(self.conn.as_raw_fd());
        self.say(format!("getpeername {}", word(said)));
    }

    /// Adds a call that was made elsewhere.
    pub fn say(&mut self, call: impl Into<String>) {
        self.calls.push(call.into());
    }

    /// Until the peer's FIN or RST is here.
    ///
    /// # Errors
    /// `TimedOut` where neither comes.
    pub fn wait_end(&self) -> io::Result<()> {
        self.wait(libc::POLLRDHUP, PATIENCE)
    }

    /// Until an RST is here. POLLERR and POLLHUP need not be asked for.
    ///
    /// # Errors
    /// `TimedOut` where none comes within `patience`.
    pub fn wait_reset(&self, patience: Duration) -> io::Result<()> {
        self.wait(0, patience)
    }

    fn wait(&self, events: i16, patience: Duration) -> io::Result<()> {
        match poll(&self.conn, events, patience)? {
            0 => Err(io::Error::new(io::ErrorKind::TimedOut, "the peer neither closes nor resets")),
            _ => Ok(()),
        }
    }

    /// What poll(2) says now.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn poll_now(&self) -> io::Result<String> {
        let seen = poll(&self.conn, libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP, Duration::ZERO)?;
        let names: Vec<&str> = FLAGS.iter().filter(|(flag, _)| seen & flag != 0).map(|(_, name)| *name).collect();
        Ok(names.join(" "))
    }

    /// The calls so far, in their order.
    pub fn calls(&self) -> String {
        self.calls.join(" · ")
    }
}

/// poll(2) on one socket: the events seen, 0 after `patience`.
///
/// # Errors
/// Those of poll(2); a signal counts as nothing seen.
pub fn poll(conn: &Socket, events: i16, patience: Duration) -> io::Result<i16> {
    let mut entry = libc::pollfd { fd: conn.as_raw_fd(), events, revents: 0 };
    let ms = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one entry, which the kernel reads and writes.
    let rc = unsafe { libc::poll(&mut entry, 1, ms) };
    match Errno::result(rc) {
        Ok(_) | Err(Errno::EINTR) => Ok(entry.revents),
        Err(e) => Err(e.into()),
    }
}

/// The errno's name.
pub fn name(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |errno| format!("{:?}", Errno::from_raw(errno)))
}

fn word<T>(said: nix::Result<T>) -> String {
    said.map_or_else(|errno| format!("{errno:?}"), |_| "ok".to_owned())
}

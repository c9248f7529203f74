//! One end of a connection that records each call and its result.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use socket2::Socket;

/// A call waits at most this long for the peer.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// The events of poll(2), in the order in which they are printed.
const EVENTS: [(i16, &str); 5] = [
    (libc::POLLIN, "IN"),
    (libc::POLLOUT, "OUT"),
    (libc::POLLERR, "ERR"),
    (libc::POLLHUP, "HUP"),
    (libc::POLLRDHUP, "RDHUP"),
];

/// A connection and the calls made on it.
#[derive(Debug)]
pub struct Recorded {
    conn: Socket,
    calls: Vec<String>,
}

impl Recorded {
    /// Takes a connected socket.
    ///
    /// # Errors
    /// The errors of setsockopt(2).
    pub fn new(conn: Socket) -> io::Result<Recorded> {
        conn.set_read_timeout(Some(TIMEOUT))?;
        conn.set_write_timeout(Some(TIMEOUT))?;
        Ok(Recorded { conn, calls: Vec::new() })
    }

    /// The socket, for calls that are not recorded.
    pub fn conn(&self) -> &Socket {
        &self.conn
    }

    /// Records a call that was made elsewhere.
    pub fn record(&mut self, call: impl Into<String>) {
        self.calls.push(call.into());
    }

    /// recv(2): the bytes, 0 at end of file, or the error.
    pub fn recv(&mut self) {
        let mut buffer = [0; 512];
        let result = match self.conn.read(&mut buffer) {
            Ok(0) => "0".to_owned(),
            Ok(n) => {
                let text = String::from_utf8_lossy(buffer.get(..n).unwrap_or_default());
                format!("'{}'", text.trim_end())
            }
            Err(e) => name(&e),
        };
        self.record(format!("recv {result}"));
    }

    /// send(2). Rust ignores SIGPIPE, so EPIPE is an error and no signal.
    pub fn send(&mut self, bytes: &[u8]) {
        let result = self.conn.send(bytes);
        self.record(format!("send {}", ok_or_name(result)));
    }

    /// Sends `total` bytes with as many calls as needed, or until an error.
    pub fn upload(&mut self, total: usize) {
        let block = [b'x'; 16 * 1024];
        let (mut left, mut result) = (total, Ok(()));
        while left > 0 && result.is_ok() {
            let block = block.get(..left.min(block.len())).unwrap_or_default();
            result = self.conn.send(block).map(|n| left -= n);
        }
        self.record(format!("upload {}", ok_or_name(result)));
    }

    /// SO_ERROR: the error that the next call would report. Reading it clears it.
    pub fn so_error(&mut self) {
        let result = match self.conn.take_error() {
            Ok(None) => "0".to_owned(),
            Ok(Some(e)) | Err(e) => name(&e),
        };
        self.record(format!("SO_ERROR {result}"));
    }

    /// getpeername(2): fails if the connection has ended.
    pub fn getpeername(&mut self) {
        let result = self.conn.peer_addr();
        self.record(format!("getpeername {}", ok_or_name(result)));
    }

    /// Sends our FIN. Not recorded.
    ///
    /// # Errors
    /// The errors of shutdown(2).
    pub fn shut_down_write(&self) -> io::Result<()> {
        self.conn.shutdown(Shutdown::Write)
    }

    /// Waits for the peer's FIN or RST.
    ///
    /// # Errors
    /// `TimedOut`: neither has arrived.
    pub fn wait_end(&self) -> io::Result<()> {
        self.wait(libc::POLLRDHUP, TIMEOUT)
    }

    /// Waits for a RST. poll reports POLLERR and POLLHUP without being asked for them.
    ///
    /// # Errors
    /// `TimedOut`: no RST has arrived.
    pub fn wait_reset(&self, timeout: Duration) -> io::Result<()> {
        self.wait(0, timeout)
    }

    fn wait(&self, events: i16, timeout: Duration) -> io::Result<()> {
        match poll(&self.conn, events, timeout)? {
            0 => Err(io::Error::new(io::ErrorKind::TimedOut, "no FIN and no RST has arrived")),
            _ => Ok(()),
        }
    }

    /// The events that poll(2) reports now.
    ///
    /// # Errors
    /// The errors of poll(2).
    pub fn poll_now(&self) -> io::Result<String> {
        let wanted = libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP;
        let events = poll(&self.conn, wanted, Duration::ZERO)?;
        let set = EVENTS.iter().filter(|(event, _)| events & event != 0);
        Ok(set.map(|(_, name)| *name).collect::<Vec<&str>>().join(" "))
    }

    /// The recorded calls in their order.
    pub fn calls(&self) -> String {
        self.calls.join(" · ")
    }
}

/// poll(2) on one socket: the events, or 0 after `timeout` or a signal.
///
/// # Errors
/// The errors of poll(2), except EINTR.
pub fn poll(conn: &Socket, events: i16, timeout: Duration) -> io::Result<i16> {
    let mut entry = libc::pollfd { fd: conn.as_raw_fd(), events, revents: 0 };
    let ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one entry, which the kernel reads and writes.
    let rc = unsafe { libc::poll(&mut entry, 1, ms) };
    match Errno::result(rc) {
        Ok(_) | Err(Errno::EINTR) => Ok(entry.revents),
        Err(e) => Err(e.into()),
    }
}

/// The name of the errno.
pub fn name(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => format!("{:?}", Errno::from_raw(errno)),
        None => error.to_string(),
    }
}

fn ok_or_name<T>(result: io::Result<T>) -> String {
    result.map_or_else(|e| name(&e), |_| "ok".to_owned())
}

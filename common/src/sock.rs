//! The listener, what to do when accept fails, and how to reject a client.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use socket2::{Domain, Socket, Type};

use crate::blocking::drive;
use crate::cli::{Limits, Listen};
use crate::report::{Failed, Log};
use crate::service::{Conn, Rejection, Stream};

/// The first pause after accept failed because a resource is missing. Each further pause is twice as long ...
pub const BACKOFF_FIRST: Duration = Duration::from_millis(5);
/// ... up to this one.
pub const BACKOFF_MOST: Duration = Duration::from_secs(1);

/// Makes the listening socket. server00-iterative shows these calls one by one.
///
/// # Errors
/// One line that names the call, the address and the errno.
pub fn listen(at: &Listen, backlog: i32) -> Result<Socket, Failed> {
    let addr = at.addr()?;
    let listener = Socket::new(Domain::for_address(addr), Type::STREAM, None).context("socket")?;
    listener.set_reuse_address(true).context("setsockopt SO_REUSEADDR")?;
    listener.set_tcp_nodelay(true).context("setsockopt TCP_NODELAY")?;
    listener.bind(&addr.into()).map_err(|e| bind_failed(addr, &e))?;
    listener.listen(backlog).with_context(|| format!("listen {addr}"))?;
    Ok(listener)
}

/// The message for a failed bind: the address, the errno and the next step.
pub fn bind_failed(addr: SocketAddr, error: &io::Error) -> Failed {
    let port = addr.port();
    let next_step = match error.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            format!(" Is another server running? See `ss -ltnp 'sport = :{port}'`, or choose another port with -p.")
        }
        Some(libc::EACCES) => " Ports below 1024 need CAP_NET_BIND_SERVICE. Choose another port with -p.".to_owned(),
        Some(libc::EADDRNOTAVAIL) => " `ip address` lists the addresses of this machine.".to_owned(),
        _ => String::new(),
    };
    Failed::new(format!("bind {addr}: {error}.{next_step}"))
}

/// True if the call has not failed: it has to be repeated when the descriptor is ready, or after a signal.
pub fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// What a server does after accept failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptError {
    /// This one connection is lost, or another process has accepted it: call accept again.
    Next,
    /// The process or the machine is out of a resource. The connection stays in the backlog, so that the next
    /// accept would fail at once: pause first.
    Backoff,
    /// The listener can no longer be used.
    Fatal,
}

/// Maps the errno of a failed accept to the server's reaction. EINTR is not among them: each example handles it
/// itself.
///
/// Linux returns errors that are already pending on the new connection from accept (accept(2), "Error handling").
/// All of these mean [`AcceptError::Next`].
pub fn accept_failed(errno: i32) -> AcceptError {
    match errno {
        libc::ECONNABORTED
        | libc::EPROTO
        | libc::EPERM
        | libc::ENETDOWN
        | libc::ENETUNREACH
        | libc::EHOSTDOWN
        | libc::EHOSTUNREACH
        | libc::ENONET
        | libc::ENOPROTOOPT
        | libc::EOPNOTSUPP
        | libc::ETIMEDOUT
        | libc::EAGAIN => AcceptError::Next,
        // ENOSPC: epoll_ctl, for a listener or a client, at the limit of watched descriptors of this user.
        libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::ENOSPC => AcceptError::Backoff,
        _ => AcceptError::Fatal,
    }
}

/// The pauses of a server that is out of descriptors or memory: 5 ms, doubling to 1 s. After two seconds without a
/// pause the next one is 5 ms again.
///
/// A blocking server calls [`sleep`](Self::sleep). A task sleeps for the duration that
/// [`pause`](Self::pause) returns. An event loop calls `pause` too, does not watch its listener while
/// [`until`](Self::until) returns a time, and calls [`expire`](Self::expire) after each wait.
#[derive(Debug)]
pub struct Backoff {
    /// The length of the next pause.
    next: Duration,
    /// The planned end of the last pause.
    last_end: Instant,
    /// The end of the pause in force.
    until: Option<Instant>,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { next: BACKOFF_FIRST, last_end: Instant::now(), until: None }
    }
}

impl Backoff {
    /// Logs a failed call and returns how long to wait before the next one: zero if it may succeed at once. EAGAIN
    /// and EINTR are no failures.
    ///
    /// # Errors
    /// The listener can no longer be used.
    pub fn pause(&mut self, call: &str, error: &io::Error, log: &Log) -> Result<Duration, Failed> {
        if is_transient(error) {
            return Ok(Duration::ZERO);
        }
        log.repeated("WARN", &format!("{call}: {error}"));
        match accept_failed(error.raw_os_error().unwrap_or_default()) {
            AcceptError::Next => Ok(Duration::ZERO),
            AcceptError::Backoff => Ok(self.start(Instant::now())),
            AcceptError::Fatal => Err(Failed::new(format!("{call}: {error}"))),
        }
    }

    /// The end of the pause in force. It stays in force until [`expire`](Self::expire) or [`end`](Self::end), so an
    /// event loop that does not watch its listener never sleeps past this time.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Ends the pause if its time has come.
    pub fn expire(&mut self, now: Instant) {
        self.until = self.until.filter(|until| now < *until);
    }

    /// Ends the pause early: a descriptor has become free, so the next accept may succeed.
    pub fn end(&mut self) {
        self.until = None;
    }

    /// What a blocking server does after a failed call: it sleeps for the [`pause`](Self::pause).
    ///
    /// # Errors
    /// The listener can no longer be used.
    pub fn sleep(&mut self, call: &str, error: &io::Error, log: &Log) -> Result<(), Failed> {
        thread::sleep(self.pause(call, error, log)?);
        Ok(())
    }

    fn start(&mut self, now: Instant) -> Duration {
        let is_quiet = now.saturating_duration_since(self.last_end) > 2 * BACKOFF_MOST;
        let pause = if is_quiet { BACKOFF_FIRST } else { self.next };
        self.next = BACKOFF_MOST.min(pause * 2);
        self.last_end = now + pause;
        self.until = Some(self.last_end);
        pause
    }
}

/// Rejects a client: sends one `ERR` line and a FIN, and reads until the client closes. A close with unread bytes
/// would send a RST, and the client could lose the line. Blocks for at most the write timeout and
/// [`LINGER`](crate::service::LINGER).
///
/// # Errors
/// Always: [`Conn::result`] of the rejection, or the error of the connection.
pub fn reject(conn: &mut Socket, why: Rejection, limits: &Limits) -> io::Result<()> {
    drive(conn, Conn::rejected(why, limits, Instant::now()))
}

impl Stream for Socket {
    fn read_within(&mut self, bound: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(bound))
    }

    fn write_within(&mut self, bound: Duration) -> io::Result<()> {
        self.set_write_timeout(Some(bound))
    }

    fn finish_writing(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! accept_errors {
        ($($name:ident: $errno:ident => $verdict:ident;)*) => {
            $(#[test]
            fn $name() {
                assert_eq!(accept_failed(libc::$errno), AcceptError::$verdict);
            })*
        };
    }

    accept_errors! {
        econnaborted: ECONNABORTED => Next;
        eproto: EPROTO => Next;
        eperm: EPERM => Next;
        enetdown: ENETDOWN => Next;
        enetunreach: ENETUNREACH => Next;
        ehostdown: EHOSTDOWN => Next;
        ehostunreach: EHOSTUNREACH => Next;
        enonet: ENONET => Next;
        enoprotoopt: ENOPROTOOPT => Next;
        eopnotsupp: EOPNOTSUPP => Next;
        etimedout: ETIMEDOUT => Next;
        eagain: EAGAIN => Next;
        emfile: EMFILE => Backoff;
        enfile: ENFILE => Backoff;
        enobufs: ENOBUFS => Backoff;
        enomem: ENOMEM => Backoff;
        enospc: ENOSPC => Backoff;
        ebadf: EBADF => Fatal;
        einval: EINVAL => Fatal;
        enotsock: ENOTSOCK => Fatal;
        efault: EFAULT => Fatal;
    }

    #[test]
    fn backoff_doubles_to_a_second_and_forgets() {
        let mut now = Instant::now();
        let mut backoff = Backoff::default();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            let pause = backoff.start(now);
            pauses.push(pause.as_millis());
            now += pause;
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        assert_eq!(backoff.start(now + Duration::from_secs(3)), BACKOFF_FIRST);
    }

    #[test]
    fn pause_stays_in_force_until_it_is_ended() {
        let log = Log::default();
        let mut backoff = Backoff::default();
        let out_of_descriptors = io::Error::from_raw_os_error(libc::EMFILE);
        assert_eq!(backoff.pause("accept", &io::ErrorKind::WouldBlock.into(), &log).unwrap(), Duration::ZERO);
        assert_eq!(backoff.until(), None);
        assert_eq!(backoff.pause("accept", &out_of_descriptors, &log).unwrap(), BACKOFF_FIRST);
        let end = backoff.until().unwrap();
        backoff.expire(end - Duration::from_millis(1));
        assert_eq!(backoff.until(), Some(end));
        backoff.expire(end);
        assert_eq!(backoff.until(), None);
        assert!(backoff.pause("accept", &out_of_descriptors, &log).unwrap() > BACKOFF_FIRST);
        backoff.end();
        assert_eq!(backoff.until(), None);
        assert!(backoff.pause("accept", &io::Error::from_raw_os_error(libc::EBADF), &log).is_err());
    }
}

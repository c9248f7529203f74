//! The listener, what to do when accept fails, and how to turn a client away.

use std::io;
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use socket2::{Domain, Socket, Type};

use crate::blocking::drive;
use crate::cli::{Limits, Listen};
use crate::report::{self, Failed, Log};
use crate::service::{Conn, Refusal, Stream};

/// First pause after an accept that failed for want of resources; each further one is twice as long ...
pub const BACKOFF_FIRST: Duration = Duration::from_millis(5);
/// ... up to this.
pub const BACKOFF_MOST: Duration = Duration::from_secs(1);

/// Makes the listening socket and prints the ready line. server00-iterative spells these calls out.
///
/// # Errors
/// One line that names the call, the address and the errno.
pub fn listen(at: &Listen, backlog: i32) -> Result<Socket, Failed> {
    let addr = at.addr()?;
    let listener = Socket::new(Domain::for_address(addr), Type::STREAM, None).context("socket")?;
    listener.set_reuse_address(true).context("setsockopt SO_REUSEADDR")?;
    listener.set_tcp_nodelay(true).context("setsockopt TCP_NODELAY")?;
    listener.bind(&addr.into()).with_context(|| format!("bind {addr}"))?;
    listener.listen(backlog).with_context(|| format!("listen {addr}"))?;
    report::ready(&listener);
    Ok(listener)
}

/// What an acceptor does after accept failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// That one connection is lost, or another process took it: accept again.
    Next,
    /// The machine or the process is out of something. The connection stays in the queue, so accepting again at once
    /// would spin: pause first.
    Backoff,
    /// The listener is not a listener any more, and never will be.
    Fatal,
}

/// Judges the errno of a failed accept. EINTR is not judged here: that arm is part of every lesson.
///
/// Linux hands errors that are already pending on the new connection out through accept (accept(2), "Error
/// handling"), so all of those mean *next*.
pub fn accept_failed(errno: i32) -> Verdict {
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
        | libc::EAGAIN => Verdict::Next,
        libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => Verdict::Backoff,
        _ => Verdict::Fatal,
    }
}

/// Pauses between failed accepts: 5 ms doubling to 1 s, from the start again after a quiet time.
#[derive(Debug)]
pub struct Backoff {
    pause: Duration,
    until: Instant,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { pause: BACKOFF_FIRST, until: Instant::now() }
    }
}

impl Backoff {
    /// The pause that is due at `now`. Two seconds without a failure start the row anew.
    pub fn next(&mut self, now: Instant) -> Duration {
        let quiet = now.saturating_duration_since(self.until) > 2 * BACKOFF_MOST;
        let pause = if quiet { BACKOFF_FIRST } else { self.pause };
        self.pause = BACKOFF_MOST.min(pause * 2);
        self.until = now + pause;
        pause
    }

    /// What a blocking acceptor does with a failed accept: logs it, and sleeps where [`accept_failed`] says so.
    ///
    /// # Errors
    /// Where the listener is past use.
    pub fn accept_failed(&mut self, error: &io::Error, log: &Log) -> Result<(), Failed> {
        log.repeated("WARN", &format!("accept: {error}"));
        match accept_failed(error.raw_os_error().unwrap_or_default()) {
            Verdict::Next => Ok(()),
            Verdict::Backoff => {
                thread::sleep(self.next(Instant::now()));
                Ok(())
            }
            Verdict::Fatal => Err(Failed::new(format!("accept: {error}"))),
        }
    }
}

/// Turns a client away: one `ERR` line, then a lingering close, since closing on unread bytes would send a reset
/// that can overtake the line. Blocks for at most the linger and the time the line takes: call it where that is no
/// harm to others.
///
/// # Errors
/// Always, in the end: [`Conn::result`] of the refusal, or what the kernel said of the connection.
pub fn refuse(conn: &mut Socket, why: Refusal, limits: &Limits) -> io::Result<()> {
    drive(conn, Conn::refused(why, limits, Instant::now()))
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

    macro_rules! verdicts {
        ($($name:ident: $errno:ident => $verdict:ident;)*) => {
            $(#[test]
            fn $name() {
                assert_eq!(accept_failed(libc::$errno), Verdict::$verdict);
            })*
        };
    }

    verdicts! {
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
            let pause = backoff.next(now);
            pauses.push(pause.as_millis());
            now += pause;
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        assert_eq!(backoff.next(now + Duration::from_secs(3)), BACKOFF_FIRST);
    }
}

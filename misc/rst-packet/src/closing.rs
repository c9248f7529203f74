//! The four ways to end a connection. Three of them make the kernel send RST instead of, or after, the FIN.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use socket2::Socket;

use crate::ours::poll;

/// What a client is told that sends more than it should.
pub const REPLY: &[u8] = b"413 too large\n";

/// How a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Close {
    /// SO_LINGER with 0 seconds: close sends a reset
    Linger,
    /// Reply, and close with what the client sent unread: close sends a reset
    Unread,
    /// Close at once: a FIN, and a reset to whatever the client sends after it
    Late,
    /// Reply, say FIN, read on to the client's end, and only then close
    Polite,
}

/// How long the server has patience with a client, and how many bytes it throws away for it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For the first byte of the client.
    pub idle: Duration,
    /// For the client's FIN, once ours is sent.
    pub drain_time: Duration,
    /// Bytes read and thrown away meanwhile.
    pub drain_bytes: usize,
}

/// Ends the connection, and says what was done.
///
/// # Errors
/// What the kernel said of a call.
pub fn close(conn: Socket, how: Close, limits: &Limits) -> io::Result<String> {
    match how {
        Close::Linger => linger_zero(conn).map(|()| "SO_LINGER 0, closed".to_owned()),
        Close::Unread => reply_unread(conn, limits),
        Close::Late => {
            drop(conn); // close: a FIN. Nobody is left to read, so the kernel answers data with RST.
            Ok("closed".to_owned())
        }
        Close::Polite => polite(conn, limits),
    }
}

/// On, with a timeout of zero: close throws away what has not been sent, sends RST, and leaves no TIME_WAIT behind.
///
/// # Errors
/// Those of setsockopt(2).
pub fn linger_zero(conn: Socket) -> io::Result<()> {
    conn.set_linger(Some(Duration::ZERO))?;
    drop(conn); // close
    Ok(())
}

/// Answers without reading. The bytes in the receive buffer were acknowledged and will never be looked at: close tells
/// the client so with RST, and that RST can destroy the reply.
fn reply_unread(conn: Socket, limits: &Limits) -> io::Result<String> {
    let seen = poll(&conn, libc::POLLIN, limits.idle)?;
    send(conn.as_raw_fd(), REPLY, MsgFlags::MSG_NOSIGNAL)?;
    drop(conn); // close
    Ok(match seen {
        0 => "the client sent nothing: replied, closed".to_owned(),
        _ => "replied, closed with unread data".to_owned(),
    })
}

/// The FIN goes first, and the receive buffer is emptied until the client's FIN has come: a close then resets nobody.
/// Bytes and time are limited, or a client that never stops would keep the server for ever.
///
/// # Errors
/// What the kernel said of a call; ECONNRESET where the client was not polite itself.
pub fn polite(conn: Socket, limits: &Limits) -> io::Result<String> {
    let mut buffer = [0; 16 * 1024];
    conn.set_read_timeout(Some(limits.idle))?;
    match recv(conn.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
        // It says nothing, or a signal stops the server: it is told, and left.
        Err(Errno::EAGAIN | Errno::EINTR) | Ok(_) => {}
        Err(e) => return Err(e.into()),
    }
    send(conn.as_raw_fd(), REPLY, MsgFlags::MSG_NOSIGNAL)?;
    conn.shutdown(Shutdown::Write)?; // FIN: the client reads the reply, and then the end of it

    let (until, mut drained) = (Instant::now() + limits.drain_time, 0);
    let end = loop {
        let left = until.saturating_duration_since(Instant::now());
        if drained >= limits.drain_bytes {
            break "as many as the limit: closed";
        } else if left.is_zero() {
            break "out of time: closed";
        }
        conn.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let room = buffer.len().min(limits.drain_bytes - drained);
        match recv(conn.as_raw_fd(), buffer.get_mut(..room).unwrap_or_default(), MsgFlags::empty()) {
            Ok(0) => break "to the end: closed",
            Ok(n) => drained += n,
            Err(Errno::EAGAIN | Errno::EINTR) => {} // the clock says whether that was all
            Err(e) => return Err(e.into()),
        }
    };
    drop(conn); // close
    Ok(format!("replied, sent FIN, drained {drained} bytes, {end}"))
}

//! Four ways to close a connection. Three of them make the kernel send a RST.

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use socket2::Socket;

use crate::recorded::poll;

/// The answer to a client that sends too much.
pub const REPLY: &[u8] = b"413 too large\n";

/// How a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Close {
    /// SO_LINGER with 0 seconds: close sends a RST
    Linger,
    /// Reply, then close with unread data: close sends a RST
    Unread,
    /// Close at once: a FIN, and a RST for data that arrives later
    Late,
    /// Reply, send a FIN, read until the client's FIN, then close: no RST
    Drain,
}

/// The limits of one client.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long to wait for the first byte of the client.
    pub idle: Duration,
    /// How long to wait for the client's FIN after our FIN.
    pub drain_time: Duration,
    /// How many bytes to discard in this time.
    pub drain_bytes: usize,
}

/// Closes the connection. Returns what was done, for the log.
///
/// # Errors
/// The call that failed.
pub fn close(conn: Socket, how: Close, limits: &Limits) -> io::Result<String> {
    match how {
        Close::Linger => linger_zero(conn).map(|()| "SO_LINGER 0, closed".to_owned()),
        Close::Unread => close_unread(conn, limits),
        Close::Late => {
            drop(conn); // close: a FIN. The kernel answers later data with a RST.
            Ok("closed".to_owned())
        }
        Close::Drain => drain(conn, limits),
    }
}

/// With a linger time of zero, close discards unsent data, sends a RST, and leaves no TIME_WAIT.
///
/// # Errors
/// The errors of setsockopt(2).
pub fn linger_zero(conn: Socket) -> io::Result<()> {
    conn.set_linger(Some(Duration::ZERO))?;
    drop(conn); // close
    Ok(())
}

/// Replies without reading. The kernel has acknowledged bytes that no process will read, so close
/// sends
/// a RST. The client may lose the reply because of it.
fn close_unread(conn: Socket, limits: &Limits) -> io::Result<String> {
    let events = poll(&conn, libc::POLLIN, limits.idle)?;
    conn.send(REPLY)?;
    drop(conn); // close
    Ok(match events {
        0 => "timeout without data: replied, closed".to_owned(),
        _ => "replied, closed with unread data".to_owned(),
    })
}

/// Sends the FIN first and reads until the client's FIN: then close sends no RST. Bytes and time
/// are limited, because a client may send without end.
///
/// # Errors
/// The call that failed. ECONNRESET: the client has sent a RST.
pub fn drain(mut conn: Socket, limits: &Limits) -> io::Result<String> {
    let mut buffer = [0; 16 * 1024];
    conn.set_read_timeout(Some(limits.idle))?;
    read(&mut conn, &mut buffer)?;
    conn.send(REPLY)?;
    conn.shutdown(Shutdown::Write)?; // FIN: the client reads the reply, then end of file

    let (until, mut drained) = (Instant::now() + limits.drain_time, 0);
    let why = loop {
        let left = until.saturating_duration_since(Instant::now());
        if drained >= limits.drain_bytes {
            break "limit reached";
        } else if left.is_zero() {
            break "timeout";
        }
        conn.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let room = buffer.len().min(limits.drain_bytes - drained);
        match read(&mut conn, buffer.get_mut(..room).unwrap_or_default())? {
            Some(0) => break "end of file",
            n => drained += n.unwrap_or(0),
        }
    };
    drop(conn); // close
    Ok(format!("replied, sent FIN, drained {drained} bytes, {why}, closed"))
}

/// `None`: the read timeout, or a signal.
fn read(conn: &mut Socket, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match conn.read(buffer) {
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        result => result.map(Some),
    }
}

//! One session of the file server: a name, the file, the end of the stream.
//!
//! The end of the stream tells the client the length, as in HTTP/0.9. So a FIN means that the file
//! is complete. If a file cannot be sent completely, the session ends with a RST.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use common::cli::Limits;
use common::service::{LINGER, LINGER_BYTES, MIN_RATE};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

use crate::beneath::{OpenError, Root};
use crate::calls::{retry_eintr, sendfile};

/// Length of the longest request line. No path is longer (PATH_MAX).
const LINE: usize = 4096;
/// The limit of one sendfile, so that the session checks its timeout between two calls.
const BLOCK: u64 = 1 << 20;
/// The buffer if the file system does not support sendfile.
const COPY: usize = 16 * 1024;

/// Serves one client over a non-blocking socket. Returns the result for the log.
///
/// # Errors
/// What ended the session: an errno, or a text about the client or the file.
pub fn serve(conn: &Socket, root: &Root, limits: &Limits, listener: &Socket) -> io::Result<String> {
    conn.set_nonblocking(true)?;
    let (error_line, result) = match read_name(conn, limits, listener)? {
        Request::Name(name) => match root.file(&name) {
            Ok((file, len)) if len <= u64::from(limits.max_request) => {
                let text = format!("'{}', {len} bytes", name.escape_ascii());
                send_file(conn, &file, len, limits).map_err(|e| with_name(e, &name))?;
                ("", Ok(text))
            }
            Ok((_, len)) => {
                ("ERR too large\n", Ok(format!("'{}': {len} bytes", name.escape_ascii())))
            }
            Err(OpenError::NotFound) => {
                ("ERR not found\n", Ok(format!("'{}' not found", name.escape_ascii())))
            }
            Err(OpenError::Busy(e)) => {
                ("ERR busy\n", Err(io::Error::other(format!("openat2: {e}"))))
            }
        },
        Request::TooLong => ("ERR not found\n", Ok(format!("a name of more than {LINE} bytes"))),
        Request::TimedOut => ("ERR timeout\n", Err(timed_out("ERR timeout"))),
        Request::None => return Ok("ended without a name".into()),
    };
    if !error_line.is_empty() {
        // The empty send buffer has room for the line.
        let _ = (&mut &*conn).write(error_line.as_bytes());
    }
    finish(conn)?;
    result
}

/// Adds the name to an error that has no errno.
fn with_name(error: io::Error, name: &[u8]) -> io::Error {
    match error.raw_os_error() {
        Some(_) => error,
        None => io::Error::new(error.kind(), format!("'{}': {error}", name.escape_ascii())),
    }
}

fn timed_out(text: &str) -> io::Error {
    io::Error::new(ErrorKind::TimedOut, text)
}

/// What a client has requested.
enum Request {
    Name(Vec<u8>),
    TooLong,
    TimedOut,
    /// The client has disconnected or the server stops, before there was a line.
    None,
}

/// Reads until the first newline. Bytes after the newline are ignored.
fn read_name(conn: &Socket, limits: &Limits, listener: &Socket) -> io::Result<Request> {
    let mut line = Vec::new();
    let mut buffer = [0; LINE];
    let mut end = Instant::now() + Duration::from_millis(limits.idle_timeout);
    let mut is_stopping = false;
    loop {
        let room = buffer.get_mut(..LINE - line.len()).unwrap_or_default();
        match retry_eintr(|| (&mut &*conn).read(room)) {
            Ok(0) => return Ok(Request::None),
            Ok(n) => {
                if line.is_empty() {
                    end = Instant::now() + Duration::from_millis(limits.line_timeout);
                }
                line.extend_from_slice(room.get(..n).unwrap_or_default());
            }
            Err(e) if e.kind() != ErrorKind::WouldBlock => return Err(e),
            Err(_) if is_stopping => return Ok(Request::None),
            Err(_) => match wait(conn, Some(listener), PollFlags::POLLIN, end)? {
                Event::Ready => {}
                Event::TimedOut => return Ok(Request::TimedOut),
                // What has arrived before the signal is still answered.
                Event::Stopping => is_stopping = true,
            },
        }
        if let Some(at) = line.iter().position(|byte| *byte == b'\n') {
            line.truncate(at);
            line.pop_if(|byte| *byte == b'\r'); // telnet
            return Ok(Request::Name(line));
        }
        if line.len() == LINE {
            return Ok(Request::TooLong);
        }
    }
}

/// Sends `len` bytes, the length of the file when it was opened. Bytes that are appended later are
/// not sent.
fn send_file(conn: &Socket, file: &File, len: u64, limits: &Limits) -> io::Result<()> {
    // Until the file is complete, a close sends a RST: after an error, and when the server exits.
    conn.set_linger(Some(Duration::ZERO))?;
    let timeout = Duration::from_millis(limits.write_timeout);
    let latest = Instant::now() + timeout + Duration::from_secs(len / u64::from(MIN_RATE));
    let mut end = Instant::now() + timeout;
    let (mut offset, mut use_copy) = (0, false);
    while (offset as u64) < len {
        let wanted = BLOCK.min(len - offset as u64) as usize;
        let sent = match use_copy {
            false => retry_eintr(|| sendfile(conn, file, &mut offset, wanted)),
            true => copy(conn, file, &mut offset, wanted),
        };
        match sent {
            Ok(0) => return Err(io::Error::other("the file became shorter")),
            // Fewer than wanted: the socket is full, and the next call fails with EAGAIN.
            Ok(_) => end = latest.min(Instant::now() + timeout),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                // A signal does not end this wait. The shutdown timeout ends the process.
                wait(conn, None, PollFlags::POLLOUT, end)?;
            }
            // This file system has no sendfile.
            Err(e) if !use_copy && is_unsupported(&e) => use_copy = true,
            Err(e) => return Err(e),
        }
        if Instant::now() >= end {
            return Err(timed_out(&format!("{offset} of {len} bytes read, too slowly")));
        }
    }
    conn.set_linger(None)
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS))
}

/// pread(2) and send(2) instead of sendfile. Bytes that the socket does not take are read again.
fn copy(conn: &Socket, file: &File, offset: &mut i64, wanted: usize) -> io::Result<usize> {
    let mut buffer = [0; COPY];
    let room = buffer.get_mut(..COPY.min(wanted)).unwrap_or_default();
    let n = retry_eintr(|| file.read_at(room, *offset as u64))?;
    let sent = (&mut &*conn).write(room.get(..n).unwrap_or_default())?;
    *offset += sent as i64;
    Ok(sent)
}

/// Sends a FIN, and discards what the client still sends: a close with unread bytes would send a
/// RST, and the client could lose the end of the answer.
fn finish(conn: &Socket) -> io::Result<()> {
    conn.shutdown(Shutdown::Write)?;
    let end = Instant::now() + LINGER;
    let (mut buffer, mut discarded) = ([0; LINE], 0);
    while discarded < LINGER_BYTES {
        match retry_eintr(|| (&mut &*conn).read(&mut buffer)) {
            Ok(0) => return Ok(()),
            Ok(n) => discarded += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                if let Event::TimedOut = wait(conn, None, PollFlags::POLLIN, end)? {
                    return Ok(());
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// What a wait has ended with.
enum Event {
    Ready,
    TimedOut,
    /// The server stops.
    Stopping,
}

/// Waits until the connection is ready or `end` is reached. With `listener` it also waits for the
/// shutdown of the server.
fn wait(
    conn: &Socket,
    listener: Option<&Socket>,
    events: PollFlags,
    end: Instant,
) -> io::Result<Event> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Event::TimedOut);
        }
        let left = left + Duration::from_millis(1);
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        // No events of the listener: poll always reports POLLHUP, and a new client does not wake
        // this thread.
        let stop = PollFd::new(listener.unwrap_or(conn).as_fd(), PollFlags::empty());
        let mut fds = [PollFd::new(conn.as_fd(), events), stop];
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => continue,
            done => done?,
        };
        match fds.map(|fd| fd.any().unwrap_or(true)) {
            [true, _] => return Ok(Event::Ready),
            [_, true] => return Ok(Event::Stopping),
            _ => {}
        }
    }
}

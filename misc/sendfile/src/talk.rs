//! One client of the file server: a name, the file, the end.
//!
//! The client learns the length from the end of the stream, as HTTP/0.9's did. So the end must not lie: a file that
//! could not be sent whole ends with a reset and not with a FIN.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use common::cli::Limits;
use common::service::{LINGER, LINGER_BYTES, MIN_RATE};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

use crate::beneath::{Refused, Root};
use crate::calls::{again, sendfile};

/// Longest request line. No path is longer (PATH_MAX), so a name that goes on behind it is not found either.
const LINE: usize = 4096;
/// One sendfile is asked for at most this much, so that the clock is looked at between two of them.
const BLOCK: u64 = 1 << 20;
/// The buffer where sendfile cannot be had of a file system.
const COPY: usize = 16 * 1024;

/// What a wait ended with.
enum Woken {
    Ready,
    Late,
    /// The server stops: what has come is still answered, and nothing is waited for.
    Stopping,
}

/// Waits for the connection, for the stop where `stop` is given, and at most until `end`.
fn wait(conn: &Socket, stop: Option<&Socket>, events: PollFlags, end: Instant) -> io::Result<Woken> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Woken::Late);
        }
        let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        // Nothing is asked of the listener: POLLHUP comes unasked, and a new client wakes nobody here.
        let mut fds =
            [PollFd::new(conn.as_fd(), events), PollFd::new(stop.unwrap_or(conn).as_fd(), PollFlags::empty())];
        match poll(&mut fds, left) {
            Err(nix::errno::Errno::EINTR) => continue,
            done => done?,
        };
        let is_set = |fd: &PollFd| fd.revents().is_some_and(|events| !events.is_empty());
        let [conn, stop] = &fds;
        match (is_set(conn), is_set(stop)) {
            (true, _) => return Ok(Woken::Ready),
            (_, true) => return Ok(Woken::Stopping),
            _ => {}
        }
    }
}

fn is_wait(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
}

/// A conversation from the first byte to the last, with a socket that never blocks. What was said, for the log.
///
/// # Errors
/// What ended it: an errno, or in words what the client or the file did.
pub fn talk(conn: &Socket, root: &Root, limits: &Limits, listener: &Socket) -> io::Result<String> {
    conn.set_nonblocking(true)?;
    let (error, outcome) = match name(conn, limits, listener)? {
        Name::Line(line) => {
            let shown = line.escape_ascii().to_string();
            match root.file(&line) {
                Ok((_, len)) if len > u64::from(limits.max_request) => {
                    ("ERR too large\n", Ok(format!("'{shown}' has {len} bytes: too large")))
                }
                Ok((file, len)) => {
                    transmit(conn, &file, len, limits).map_err(|e| cut(conn, &shown, e))?;
                    ("", Ok(format!("'{shown}', {len} bytes")))
                }
                Err(Refused::NotFound) => ("ERR not found\n", Ok(format!("'{shown}' not found"))),
                Err(Refused::Busy(errno)) => ("ERR busy\n", Err(io::Error::other(format!("openat2: {errno}")))),
            }
        }
        Name::TooLong => ("ERR not found\n", Ok(format!("a name of more than {LINE} bytes"))),
        Name::Late => ("ERR timeout\n", Err(io::Error::new(ErrorKind::TimedOut, "ERR timeout"))),
        Name::None => return Ok("left without a name".into()),
    };
    if !error.is_empty() {
        // A few bytes into an empty socket always fit.
        let _ = (&mut &*conn).write(error.as_bytes());
    }
    hang_up(conn)?;
    outcome
}

/// What a client asked for.
enum Name {
    Line(Vec<u8>),
    TooLong,
    Late,
    /// It left, or the server stops, before there was a line.
    None,
}

/// Reads up to the first newline. What comes behind it is no request.
fn name(conn: &Socket, limits: &Limits, listener: &Socket) -> io::Result<Name> {
    let mut line = Vec::new();
    let mut buffer = [0; LINE];
    let mut end = Instant::now() + Duration::from_millis(limits.idle_timeout);
    let mut stopping = false;
    loop {
        let room = buffer.get_mut(..LINE - line.len()).unwrap_or_default();
        match again(|| (&mut &*conn).read(room)) {
            Ok(0) => return Ok(Name::None),
            Ok(n) => {
                if line.is_empty() {
                    end = Instant::now() + Duration::from_millis(limits.line_timeout);
                }
                line.extend_from_slice(room.get(..n).unwrap_or_default());
            }
            Err(e) if is_wait(&e) && stopping => return Ok(Name::None),
            Err(e) if is_wait(&e) => match wait(conn, Some(listener), PollFlags::POLLIN, end)? {
                Woken::Ready => {}
                Woken::Late => return Ok(Name::Late),
                Woken::Stopping => stopping = true,
            },
            Err(e) => return Err(e),
        }
        if let Some(at) = line.iter().position(|byte| *byte == b'\n') {
            line.truncate(at);
            line.pop_if(|byte| *byte == b'\r'); // telnet
            return Ok(Name::Line(line));
        }
        if line.len() == LINE {
            return Ok(Name::TooLong);
        }
    }
}

/// Sends the file as long as it was when it was opened. What it grows by meanwhile is not sent.
fn transmit(conn: &Socket, file: &File, len: u64, limits: &Limits) -> io::Result<()> {
    let patience = Duration::from_millis(limits.write_timeout);
    let slowest = Instant::now() + patience + Duration::from_secs(len / u64::from(MIN_RATE));
    let mut end = Instant::now() + patience;
    let (mut offset, mut by_copy) = (0i64, false);
    while (offset as u64) < len {
        let wanted = BLOCK.min(len - offset as u64) as usize;
        let sent = match by_copy {
            false => again(|| sendfile(conn, file, &mut offset, wanted)),
            true => copy(conn, file, &mut offset, wanted),
        };
        match sent {
            // Shorter than it was: no end of the stream may come after what there is.
            Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "the file became shorter")),
            // Short where the socket is full; the next call says EAGAIN.
            Ok(_) => end = slowest.min(Instant::now() + patience),
            Err(e) if is_wait(&e) => {
                // A stop does not end this: the grace does.
                if let Woken::Late = wait(conn, None, PollFlags::POLLOUT, end)? {
                    return Err(io::Error::new(
                        ErrorKind::TimedOut,
                        format!("took {offset} of {len} bytes, too slowly"),
                    ));
                }
            }
            // Not every file system has it.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) && !by_copy => by_copy = true,
            Err(e) => return Err(e),
        }
        if Instant::now() >= slowest {
            return Err(io::Error::new(ErrorKind::TimedOut, format!("took {offset} of {len} bytes, too slowly")));
        }
    }
    Ok(())
}

/// pread(2) and send(2) in the place of one sendfile: what the socket does not take is read again.
fn copy(conn: &Socket, file: &File, offset: &mut i64, wanted: usize) -> io::Result<usize> {
    let mut buffer = [0; COPY];
    let room = buffer.get_mut(..COPY.min(wanted)).unwrap_or_default();
    let n = again(|| file.read_at(room, *offset as u64))?;
    let sent = again(|| (&mut &*conn).write(room.get(..n).unwrap_or_default()))?;
    *offset += sent as i64;
    Ok(sent)
}

/// Makes the coming close a reset, so that a part is not taken for the whole.
fn cut(conn: &Socket, name: &str, error: io::Error) -> io::Error {
    let _ = conn.set_linger(Some(Duration::ZERO));
    match error.raw_os_error() {
        Some(_) => error,
        None => io::Error::new(error.kind(), format!("'{name}': {error}")),
    }
}

/// A FIN, and then what the client still sends is read and thrown away: closing on unread bytes would send a reset,
/// which can overtake the answer.
fn hang_up(conn: &Socket) -> io::Result<()> {
    conn.shutdown(Shutdown::Write)?;
    let end = Instant::now() + LINGER;
    let (mut buffer, mut drained) = ([0; LINE], 0);
    while drained < LINGER_BYTES {
        match again(|| (&mut &*conn).read(&mut buffer)) {
            Ok(0) => return Ok(()),
            Ok(n) => drained += n,
            Err(e) if is_wait(&e) => {
                if let Woken::Late = wait(conn, None, PollFlags::POLLIN, end)? {
                    return Ok(());
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

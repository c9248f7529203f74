//! The byte service over a blocking stream: a loop that does what a [`Conn`] asks for.

use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use crate::cli::Limits;
use crate::service::{Conn, Next};

/// A blocking connection, as [`serve`] wants it: bytes, a bound on how long one call may block, and a FIN.
pub trait Stream: Read + Write {
    /// The next reads fail with `WouldBlock` after this long.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    fn read_within(&mut self, bound: Duration) -> io::Result<()>;
    /// The next writes fail with `WouldBlock`, or take only a part, after this long.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    fn write_within(&mut self, bound: Duration) -> io::Result<()>;
    /// Sends a FIN; reading goes on.
    ///
    /// # Errors
    /// Those of shutdown(2).
    fn finish_writing(&mut self) -> io::Result<()>;
}

/// Serves one client to the end of its conversation, blocking.
///
/// # Errors
/// What the kernel said of the connection, or [`Conn::result`] where the client was refused. The client has had its
/// `ERR` line by then; the caller closes.
pub fn serve(stream: &mut impl Stream, limits: &Limits) -> io::Result<()> {
    drive(stream, Conn::new(limits, Instant::now()))
}

/// Does what `conn` asks for, blocking, until it is closed.
pub(crate) fn drive(stream: &mut impl Stream, mut conn: Conn) -> io::Result<()> {
    let mut buffer = [0; 4096];
    let (mut reads_armed, mut writes_armed) = (None, None);
    loop {
        let left = conn.deadline().saturating_duration_since(Instant::now());
        if left.is_zero() {
            conn.expire(Instant::now());
        }
        let step = match conn.next() {
            Next::Read => {
                let room = conn.room().min(buffer.len());
                let buffer = buffer.get_mut(..room).unwrap_or_default();
                arm(&mut reads_armed, left, |bound| stream.read_within(bound))?;
                stream.read(buffer).map(|n| match buffer.get(..n) {
                    Some([]) | None => conn.eof(),
                    Some(bytes) => conn.feed(bytes, Instant::now()),
                })
            }
            Next::Write => {
                arm(&mut writes_armed, left, |bound| stream.write_within(bound))?;
                stream.write(conn.pending()).map(|n| conn.consume(n, Instant::now()))
            }
            Next::HangUp => {
                let fin = stream.finish_writing();
                conn.hung_up(Instant::now());
                fin
            }
            Next::Close => return conn.result(),
        };
        match step {
            Ok(()) => {}
            // A signal, or the bound: the top of the loop asks the clock.
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                (reads_armed, writes_armed) = (None, None);
            }
            Err(e) => return Err(e),
        }
    }
}

/// Sets a bound only where the one in force is too long, so that an ordinary request costs no setsockopt. A bound
/// that is too short wakes the driver early, which re-arms it then.
fn arm(armed: &mut Option<Duration>, left: Duration, set: impl FnOnce(Duration) -> io::Result<()>) -> io::Result<()> {
    let left = left.max(Duration::from_millis(1));
    if armed.is_none_or(|bound| bound > left + left / 64 + Duration::from_millis(1)) {
        set(left)?;
        *armed = Some(left);
    }
    Ok(())
}

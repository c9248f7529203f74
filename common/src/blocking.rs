//! The byte service over a blocking stream: a loop that does what a [`Conn`] asks for.

use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use crate::cli::Limits;
use crate::service::{Conn, Next};

/// A blocking connection for [`serve`]: bytes, a limit for the time that one call may block, and a FIN.
pub trait Stream: Read + Write {
    /// From now on a read fails with `WouldBlock` after this time.
    ///
    /// # Errors
    /// The errors of setsockopt(2).
    fn read_within(&mut self, bound: Duration) -> io::Result<()>;
    /// From now on a write fails with `WouldBlock`, or takes only a part, after this time.
    ///
    /// # Errors
    /// The errors of setsockopt(2).
    fn write_within(&mut self, bound: Duration) -> io::Result<()>;
    /// Sends a FIN. Reading is still possible.
    ///
    /// # Errors
    /// The errors of shutdown(2).
    fn finish_writing(&mut self) -> io::Result<()>;
}

/// Serves one client until its session ends, with blocking calls.
///
/// # Errors
/// The error of the connection, or [`Conn::result`] if the client was rejected. The client has received its `ERR`
/// line; the caller closes the connection.
pub fn serve(stream: &mut impl Stream, limits: &Limits) -> io::Result<()> {
    drive(stream, Conn::new(limits, Instant::now()))
}

/// Makes the calls that `conn` needs, with blocking calls, until the session is closed.
pub(crate) fn drive(stream: &mut impl Stream, mut conn: Conn) -> io::Result<()> {
    let (mut reads_armed, mut writes_armed) = (None, None);
    loop {
        let left = conn.deadline().saturating_duration_since(Instant::now());
        if left.is_zero() {
            conn.expire(Instant::now());
        }
        let step = match conn.next() {
            Next::Read => {
                arm(&mut reads_armed, left, |bound| stream.read_within(bound))?;
                stream.read(conn.space()).map(|n| conn.received(n, Instant::now()))
            }
            Next::Write => {
                arm(&mut writes_armed, left, |bound| stream.write_within(bound))?;
                stream.write(conn.pending()).map(|n| conn.consume(n, Instant::now()))
            }
            Next::ShutdownWrite => {
                let fin = stream.finish_writing();
                conn.write_shut_down(Instant::now());
                fin
            }
            Next::Close => return conn.result(),
        };
        match step {
            Ok(()) => {}
            // A signal, or the time limit of the call: the top of the loop checks the deadline.
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                (reads_armed, writes_armed) = (None, None);
            }
            Err(e) => return Err(e),
        }
    }
}

/// Sets the time limit of a call only if the present limit is too long: an ordinary request then needs no
/// setsockopt. If the present limit is too short, the call returns early, and the limit is set then.
fn arm(armed: &mut Option<Duration>, left: Duration, set: impl FnOnce(Duration) -> io::Result<()>) -> io::Result<()> {
    let left = left.max(Duration::from_millis(1));
    if armed.is_none_or(|bound| bound > left + left / 64 + Duration::from_millis(1)) {
        set(left)?;
        *armed = Some(left);
    }
    Ok(())
}

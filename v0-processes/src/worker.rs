//! A worker: reads one client, splits the bytes into lines, and limits the rate of the lines. Only
//! workers parse what a client sends, so a defect of the parser ends one session.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use chat::input::{Input, Next};
use chat::{Event, Limits};
use common::sock::is_transient;
use nix::poll::{PollFd, PollFlags};
use socket2::Socket;

use crate::bus;

/// The size of the read buffer. It is small, because each worker needs its own copy of every page
/// that it writes to.
const BUFFER: usize = 1024;
/// How long a rejected client may take to close.
const LINGER: Duration = Duration::from_secs(1);

/// Sends the client's lines to the hub until the session ends.
pub fn run(mut conn: &Socket, link: &Socket, limits: &Limits) -> io::Result<()> {
    let mut input = Input::new(limits, Instant::now());
    let mut buffer = [0; BUFFER];
    let mut is_new = true;
    loop {
        let (interest, until) = match input.next(Instant::now()) {
            Next::Event(event) => {
                bus::send(link, &event, None)?;
                continue;
            }
            Next::Read => (PollFlags::POLLIN, None),
            // The client is over its rate. While the worker does not read, TCP flow control slows
            // the client. poll reports errors even if it is asked for no event.
            Next::Wait(until) => (PollFlags::empty(), Some(until)),
        };
        match wait(link, conn, interest, until) {
            // The hub has closed the link. If the client is new, the hub never got its socket.
            (true, _) if is_new => return reject(conn, &mut buffer),
            (true, _) => return Ok(()),
            (_, false) => continue,
            (_, true) if interest.is_empty() => return bus::send(link, &Event::Lost, None),
            (_, true) => is_new = false,
        }
        match conn.read(&mut buffer) {
            Ok(0) => return bus::send(link, &Event::Closed, None),
            Ok(n) => input.feed(buffer.get(..n).unwrap_or_default()),
            Err(e) if is_transient(&e) => {}
            Err(_) => return bus::send(link, &Event::Lost, None),
        }
    }
}

/// Sleeps until the hub has closed the link, the client is ready, or the time has come. Returns
/// which of the two sockets is ready.
fn wait(link: &Socket, conn: &Socket, interest: PollFlags, until: Option<Instant>) -> (bool, bool) {
    // The hub never writes to the link, so no event but end of file can come.
    let link = PollFd::new(link.as_fd(), PollFlags::empty());
    let mut fds = [link, PollFd::new(conn.as_fd(), interest)];
    bus::wait(&mut fds, until);
    fds.map(|fd| fd.any().unwrap_or(false)).into()
}

/// Rejects a client whose socket did not reach the hub. If the hub has sent a FIN, send fails.
fn reject(mut conn: &Socket, buffer: &mut [u8]) -> io::Result<()> {
    conn.send(b"! server-full try again later\n")?;
    conn.shutdown(Shutdown::Write)?;
    // A close with unread bytes would send a RST, and the client could lose the line.
    conn.set_read_timeout(Some(LINGER))?;
    let end = Instant::now() + LINGER;
    while Instant::now() < end && conn.read(buffer)? > 0 {}
    Ok(())
}

//! A worker: reads one client, frames its lines and holds it to its rate. It never writes to the client, whose socket
//! belongs to the hub; untrusted bytes are looked at here and nowhere else.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::process;
use std::time::{Duration, Instant};

use chat::input::{Input, Next};
use chat::{Event, Limits};
use common::sock::is_transient;
use nix::poll::{PollFd, PollFlags, poll};
use socket2::Socket;

use crate::bus::{self, Record, timeout};

/// Bytes of one read: as much as a line. Each page that a worker writes to is a page more for each member.
const BLOCK: usize = 1024;

/// A worker's whole life. `!`: it never returns into the parent's loop, and the compiler checks it. SIGTERM and SIGINT stay
/// blocked: it is for the parent to end the room in order, and a worker ends with its link to the hub.
pub fn run(conn: &Socket, link: &Socket, limits: &Limits) -> ! {
    let _ = serve(conn, link, limits);
    process::exit(0)
}

/// Line after line to the hub, until one of the two is gone.
fn serve(mut conn: &Socket, link: &Socket, limits: &Limits) -> io::Result<()> {
    let mut input = Input::new(limits, Instant::now());
    let mut block = [0; BLOCK];
    let mut is_new = true;
    loop {
        let event = match input.next(Instant::now()) {
            Next::Tell(event) => event,
            // Not reading makes TCP hold the client up.
            Next::Wait(until) if wait(conn, PollFlags::empty(), link, Some(until))? => return Ok(()),
            Next::Wait(_) => continue,
            Next::Read if wait(conn, PollFlags::POLLIN, link, None)? => {
                return if is_new { refuse(conn) } else { Ok(()) };
            }
            Next::Read => match conn.read(&mut block) {
                Ok(0) => return bus::send(link, &Record::Event(Event::Closed), None),
                Ok(n) => {
                    input.feed(block.get(..n).unwrap_or_default());
                    is_new = false;
                    continue;
                }
                Err(e) if is_transient(&e) => continue,
                Err(_) => Event::Lost,
            },
        };
        bus::send(link, &Record::Event(event), None)?;
    }
}

/// Waits for the client. True if the hub has closed the link: with no event asked for, poll reports that only.
fn wait(conn: &Socket, events: PollFlags, link: &Socket, until: Option<Instant>) -> io::Result<bool> {
    let mut fds = [PollFd::new(link.as_fd(), PollFlags::empty()), PollFd::new(conn.as_fd(), events)];
    poll(&mut fds, timeout(until))?;
    let [link, conn] = fds;
    let is_broken = conn.revents().is_some_and(|revents| revents.contains(PollFlags::POLLERR) && events.is_empty());
    Ok(link.any().unwrap_or(false) || is_broken)
}

/// The client's descriptor did not reach the hub, and nobody has greeted it. Reads on after the FIN, so that a reset does
/// not eat the words.
fn refuse(mut conn: &Socket) -> io::Result<()> {
    let _ = conn.send(b"! server-full try again later\n");
    conn.shutdown(Shutdown::Write)?;
    conn.set_read_timeout(Some(Duration::from_secs(1)))?;
    while conn.read(&mut [0; BLOCK])? > 0 {}
    Ok(())
}

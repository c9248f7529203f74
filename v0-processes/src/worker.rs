//! A worker: reads one client, frames its lines and holds it to its rate. It never writes to the client, whose socket
//! belongs to the hub; untrusted bytes are looked at here and nowhere else.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};
use std::time::Instant;

use chat::{ConnId, Input, Limits, Next};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{Pid, getppid};
use socket2::Socket;

use crate::bus::{self, Record, Tag};

/// Bytes of one read: as much as a line. Each page that a worker writes to is a page more for each member.
const BLOCK: usize = 1024;
/// What the parent has a worker say, where the hub cannot: the client's descriptor did not reach it.
const FULL: &[u8] = b"! server-full try again later\n";

/// The client, for the handler of SIGUSR1.
static CLIENT: AtomicI32 = AtomicI32::new(-1);

/// A worker's whole life. `!`: it never returns into the parent's loop, and the compiler checks it.
pub fn run(mut conn: Socket, bus: &Socket, id: ConnId, parent: Pid, limits: &Limits) -> ! {
    CLIENT.store(conn.as_raw_fd(), SeqCst);
    signals();
    let _ = set_pdeathsig(Signal::SIGKILL);
    // A parent that died before the prctl has sent no signal.
    if getppid() == parent {
        // A panic must not unwind into the parent's loop either.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| serve(&mut conn, bus, id, limits)));
    }
    // SAFETY: _exit, not exit: what is registered for the parent's end must not run at the child's.
    unsafe { libc::_exit(0) }
}

/// Ctrl-C reaches the whole group, and systemd signals all processes of a service: it is for the parent to end the room
/// in order. A worker ends when its client's connection does.
fn signals() {
    for (signal, handler) in [
        (Signal::SIGINT, SigHandler::SigIgn),
        (Signal::SIGTERM, SigHandler::SigIgn),
        (Signal::SIGUSR1, SigHandler::Handler(refuse)),
    ] {
        let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler makes async-signal-safe calls only.
        let _ = unsafe { sigaction(signal, &action) };
    }
    let _ = SigSet::all().thread_unblock();
}

/// Hands the socket to the hub, and then line after line. An error means that the hub is gone.
fn serve(conn: &mut Socket, bus: &Socket, id: ConnId, limits: &Limits) -> io::Result<()> {
    let Some(peer) = conn.peer_addr().ok().and_then(|addr| addr.as_socket()) else { return Ok(()) };
    let joined = Record { tag: Tag::Joined, id, text: peer.ip().to_string() };
    bus::send(bus, &joined, Some(conn), 0)?;
    let mut input = Input::new(limits, Instant::now());
    let mut block = [0; BLOCK];
    loop {
        match input.next(Instant::now()) {
            // A full bus makes this worker wait, and by that its client.
            Next::Tell(event) => match Record::of(id, event) {
                Some(record) => bus::send(bus, &record, None, 0)?,
                None => continue,
            },
            Next::Wait(until) => {
                if hung_up_before(conn, until) {
                    return Ok(());
                }
            }
            Next::Read => match conn.read(&mut block) {
                Ok(0) => return bus::send(bus, &Record::new(Tag::Closed, id), None, 0),
                Ok(n) => input.feed(block.get(..n).unwrap_or_default()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return bus::send(bus, &Record::new(Tag::Lost, id), None, 0),
            },
        }
    }
}

/// The client is too fast: sleeps, and by not reading makes TCP hold it up. True if the connection ended meanwhile: with
/// no event asked for, poll reports POLLHUP and POLLERR only, not that there is more to read.
fn hung_up_before(conn: &Socket, until: Instant) -> bool {
    let left = until.saturating_duration_since(Instant::now());
    // Rounded up: to sleep for nothing, again and again, would be a busy loop.
    let patience = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
    matches!(poll(&mut [PollFd::new(conn.as_fd(), PollFlags::empty())], patience), Ok(1..))
}

/// Says the last words and a FIN. The worker reads on, so that a reset does not eat them, until the client closes or the
/// alarm ends it: SIGALRM's default.
extern "C" fn refuse(_: libc::c_int) {
    let errno = Errno::last_raw();
    let client = CLIENT.load(SeqCst);
    // SAFETY: write is async-signal-safe, and FULL is static. Nothing has been written to this client before: it fits.
    unsafe { libc::write(client, FULL.as_ptr().cast(), FULL.len()) };
    // SAFETY: shutdown is async-signal-safe.
    unsafe { libc::shutdown(client, libc::SHUT_WR) };
    // SAFETY: so is alarm.
    unsafe { libc::alarm(1) };
    Errno::set_raw(errno);
}

//! A file server: a client sends a name and a newline, and gets the bytes of that file beneath a folder.
//!
//! Run: cargo run -p sendfile --bin file-server -- --root misc/sendfile
//! Try: printf 'README.md\n' | nc -N 127.0.0.1 2000
//! Overload: refuse (beyond --max-conns a thread says `ERR busy` and no more)

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use common::cli::{Limits, Listen};
use common::report::{Failed, Log};
use common::service::Refusal;
use common::sock::{Backoff, listen, refuse};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use sendfile::beneath::Root;
use sendfile::talk::talk;
use socket2::{SockAddr, Socket};

const BACKLOG: i32 = 1024;
/// EX_UNAVAILABLE of sysexits.h.
const UNAVAILABLE: u8 = 69;
/// Threads beyond --max-conns, there only to say `ERR busy`; one client more is closed without a word.
const DEAD_ENDS: usize = 8;
/// Address space of a thread.
const STACK: usize = 256 * 1024;
/// After a stop: so often it is looked whether all clients have gone.
const LOOK: Duration = Duration::from_millis(10);

/// TCP file server with sendfile: one name per connection, and nothing but regular files beneath the folder
#[derive(Parser)]
// Its answers are files: the largest one that is sent.
#[command(mut_arg("max_request", |arg| arg.default_value("1073741824").help("Longest file that is sent, in bytes")))]
struct Args {
    #[command(flatten)]
    listen: Listen,
    /// The folder
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    #[command(flatten)]
    limits: Limits,
    /// Clients, and so threads, at once
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    max_conns: u16,
    #[command(flatten)]
    log: Log,
}

/// What the threads share.
struct Shared {
    args: Args,
    root: Root,
    /// Their poll(2) watches it too: once it is shut down it says POLLHUP, and all of them know of the stop.
    listener: Socket,
}

static STOP_FD: AtomicI32 = AtomicI32::new(-1);
static STOPS: AtomicU32 = AtomicU32::new(0);
/// Threads that have a client.
static CLIENTS: AtomicUsize = AtomicUsize::new(0);

fn main() -> ExitCode {
    match serve(Args::parse()) {
        Ok(code) => code,
        Err(failed) => {
            let _ = writeln!(io::stderr(), "Error: {failed:?}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: Args) -> Result<ExitCode, Failed> {
    on_signal()?;
    let Some(root) = Root::open(&args.root).with_context(|| format!("open {}", args.root.display()))? else {
        let _ = writeln!(io::stderr(), "file-server: openat2: not in this kernel (Linux 5.6), or not permitted here");
        return Ok(ExitCode::from(UNAVAILABLE));
    };
    let listener = listen(&args.listen, BACKLOG)?;
    STOP_FD.store(listener.as_raw_fd(), SeqCst);
    let shared = Arc::new(Shared { args, root, listener });
    let log = &shared.args.log;

    let mut backoff = Backoff::default();
    while STOPS.load(SeqCst) == 0 {
        match shared.listener.accept() {
            Ok((conn, peer)) => employ(conn, peer, &shared),
            // The handler has shut the listener down: EINVAL now and ever after.
            Err(_) if STOPS.load(SeqCst) > 0 => break,
            // A signal came while accept slept.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => backoff.accept_failed(&e, log)?,
        }
    }

    // The end of the process closes what is still open then, with a reset: no client takes a part for the whole.
    let end = Instant::now() + Duration::from_millis(shared.args.limits.grace);
    while CLIENTS.load(SeqCst) > 0 && Instant::now() < end && STOPS.load(SeqCst) < 2 {
        thread::sleep(LOOK);
    }
    log.cpu_time();
    Ok(ExitCode::SUCCESS)
}

/// A thread for this client, unless there are too many.
fn employ(mut conn: Socket, peer: SockAddr, shared: &Arc<Shared>) {
    let most = usize::from(shared.args.max_conns);
    let place = Place::take();
    if place.0 > most + DEAD_ENDS {
        return; // and both are dropped: the client is closed
    }
    let mine = Arc::clone(shared);
    let worker = move || {
        let welcome = place.0 <= most;
        // A panic ends this conversation; the place is given back all the same.
        let outcome = catch_unwind(AssertUnwindSafe(|| match welcome {
            true => talk(&conn, &mine.root, &mine.args.limits, &mine.listener),
            false => refuse(&mut conn, Refusal::Busy, &mine.args.limits).map(|()| String::new()),
        }));
        match outcome {
            Ok(Ok(said)) => mine.args.log.info(&format!("client {}: {said}", name_of(&peer))),
            Ok(Err(e)) => mine.args.log.client(&peer, &Err(e)),
            Err(_) => mine.args.log.alert("a panic ended a conversation"),
        }
        drop(conn); // before the place, which counts descriptors as well as threads
        drop(place);
    };
    // Not thread::spawn, which panics where there is no thread to be had. The closure is dropped, and so the client.
    if let Err(e) = Builder::new().stack_size(STACK).spawn(worker) {
        shared.args.log.repeated("WARN", &format!("clone: {e}"));
    }
}

/// One of the clients at this moment: its number, counted from 1.
struct Place(usize);

impl Place {
    fn take() -> Place {
        Place(CLIENTS.fetch_add(1, SeqCst) + 1)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        CLIENTS.fetch_sub(1, SeqCst);
    }
}

fn name_of(peer: &SockAddr) -> String {
    peer.as_socket().map_or_else(|| "unknown".to_owned(), |addr| addr.to_string())
}

/// Without SA_RESTART, so that a sleeping accept returns EINTR.
fn on_signal() -> Result<(), Failed> {
    let action = SigAction::new(SigHandler::Handler(stop), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        // SAFETY: the handler makes async-signal-safe calls only.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("sigaction {signal}"))?;
    }
    Ok(())
}

/// One call ends the accepting, and wakes every thread that polls.
extern "C" fn stop(_: libc::c_int) {
    let errno = Errno::last_raw();
    STOPS.fetch_add(1, SeqCst);
    // SAFETY: shutdown is async-signal-safe; a stale descriptor number makes it fail, no more.
    unsafe { libc::shutdown(STOP_FD.load(SeqCst), libc::SHUT_RD) };
    Errno::set_raw(errno);
}

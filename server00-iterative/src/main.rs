//! TCP iterative server: one client at a time, in one process.
//!
//! Run: cargo run -p server00-iterative
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: none
//! Next: server01-fork
//! Diff base: none
//! Overload: queue (in the listener's backlog, until the client in front is done or meets a deadline)

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};

use anyhow::Context;
use clap::Parser;
use common::cli::{Limits, Listen};
use common::report::{self, Failed, Log};
use common::service::serve;
use common::sock::Backoff;
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use socket2::{Domain, Socket, Type};

const BACKLOG: i32 = 1024;

/// TCP iterative server: one client at a time
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    log: Log,
}

/// The descriptor this process is serving from: the listener, or the client's while there is one.
static STOP_FD: AtomicI32 = AtomicI32::new(-1);
static STOPS: AtomicU32 = AtomicU32::new(0);
static GRACE_S: AtomicU32 = AtomicU32::new(0);

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    GRACE_S.store(args.limits.grace.div_ceil(1000) as u32, SeqCst);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGALRM] {
        on_signal(signal, stop)?;
    }

    let addr = args.listen.addr()?;
    let listener = Socket::new(Domain::for_address(addr), Type::STREAM, None).context("socket")?;
    // Without it a restart would wait for the last run's connections to leave TIME_WAIT.
    listener.set_reuse_address(true).context("setsockopt SO_REUSEADDR")?;
    // Accepted sockets inherit it. Two answers in a row would otherwise wait for the client's delayed ACK.
    listener.set_tcp_nodelay(true).context("setsockopt TCP_NODELAY")?;
    listener.bind(&addr.into()).with_context(|| format!("bind {addr}"))?;
    // From here on the kernel completes handshakes and queues them, whether or not anybody calls accept.
    listener.listen(BACKLOG).with_context(|| format!("listen {addr}"))?;
    STOP_FD.store(listener.as_raw_fd(), SeqCst);
    report::ready(&listener);

    let mut backoff = Backoff::default();
    while STOPS.load(SeqCst) == 0 {
        let (mut conn, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // The handler has shut the listener down: EINVAL now and ever after.
            Err(_) if STOPS.load(SeqCst) > 0 => break,
            // A signal came while accept slept.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => {
                backoff.accept_failed(&e, &args.log)?;
                continue;
            }
        };
        // A stop from here on ends this conversation; one that came before the store is seen by the load.
        STOP_FD.store(conn.as_raw_fd(), SeqCst);
        if STOPS.load(SeqCst) == 0 {
            args.log.client(&peer, &serve(&mut conn, &args.limits));
        }
        STOP_FD.store(listener.as_raw_fd(), SeqCst);
        drop(conn); // close: the client sees the end of the stream
    }

    args.log.cpu_time();
    Ok(())
}

/// Installs a handler without SA_RESTART, so that a sleeping accept returns EINTR.
fn on_signal(signal: Signal, handler: extern "C" fn(libc::c_int)) -> Result<(), Failed> {
    let action = SigAction::new(SigHandler::Handler(handler), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler makes async-signal-safe calls only.
    unsafe { sigaction(signal, &action) }.with_context(|| format!("sigaction {signal}"))?;
    Ok(())
}

/// First stop: reading ends, what was received is still answered, and the grace begins. Second stop, or the end of
/// the grace (SIGALRM): writing ends too.
extern "C" fn stop(_: libc::c_int) {
    let errno = Errno::last_raw();
    let how = match STOPS.fetch_add(1, SeqCst) {
        0 => libc::SHUT_RD,
        _ => libc::SHUT_RDWR,
    };
    // SAFETY: shutdown is async-signal-safe; a stale descriptor number makes it fail, no more.
    unsafe { libc::shutdown(STOP_FD.load(SeqCst), how) };
    // SAFETY: alarm is async-signal-safe.
    unsafe { libc::alarm(GRACE_S.load(SeqCst)) };
    Errno::set_raw(errno);
}

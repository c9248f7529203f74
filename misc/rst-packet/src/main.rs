//! TCP server that does nothing but close: each client gets a reset, or a polite end.
//!
//! Run: cargo run -p rst-packet
//! Try: cargo run -p rst-packet --bin rst-client
//! Overload: queue (in the listener's backlog: one client at a time, each bounded by --idle-timeout and --drain-time)

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use common::cli::Listen;
use common::report::{Failed, Log};
use common::sock::{Backoff, listen};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use rst_packet::closing::{Close, Limits, close};

const BACKLOG: i32 = 1024;

/// TCP server that does nothing but close, with a reset or politely
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    /// How each client's connection is closed
    #[arg(long, value_enum, default_value_t = Close::Linger)]
    close: Close,
    /// Time a client may stay silent where its bytes are waited for
    #[arg(long, default_value_t = 5_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    idle_timeout: u64,
    /// Polite: time for the client's FIN
    #[arg(long, default_value_t = 1_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    drain_time: u64,
    /// Polite: bytes to read and throw away meanwhile
    #[arg(long, default_value_t = 65_536, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    drain_bytes: u32,
    #[command(flatten)]
    log: Log,
}

/// The descriptor this process is serving from: the listener, or the client's while there is one.
static STOP_FD: AtomicI32 = AtomicI32::new(-1);
static STOPPED: AtomicBool = AtomicBool::new(false);

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    on_signal()?;
    let limits = Limits {
        idle: Duration::from_millis(args.idle_timeout),
        drain_time: Duration::from_millis(args.drain_time),
        drain_bytes: args.drain_bytes as usize,
    };
    let listener = listen(&args.listen, BACKLOG)?;
    STOP_FD.store(listener.as_raw_fd(), SeqCst);

    let mut backoff = Backoff::default();
    while !STOPPED.load(SeqCst) {
        let (conn, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // The handler has shut the listener down: EINVAL now and ever after.
            Err(_) if STOPPED.load(SeqCst) => break,
            // A signal came while accept slept.
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => {
                backoff.accept_failed(&e, &args.log)?;
                continue;
            }
        };
        // A stop from here on ends the waits for this client; one that came before the store is seen by the load.
        STOP_FD.store(conn.as_raw_fd(), SeqCst);
        if !STOPPED.load(SeqCst) {
            let peer = peer.as_socket().map_or_else(|| "unknown".to_owned(), |addr| addr.to_string());
            match close(conn, args.close, &limits) {
                Ok(done) => args.log.info(&format!("client {peer}: {done}")),
                Err(e) => args.log.info(&format!("client {peer}: {e}")),
            }
        }
        STOP_FD.store(listener.as_raw_fd(), SeqCst);
    }

    args.log.cpu_time();
    Ok(())
}

/// Installs the handler without SA_RESTART, so that a sleeping accept returns EINTR.
fn on_signal() -> Result<(), Failed> {
    let action = SigAction::new(SigHandler::Handler(stop), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        // SAFETY: the handler makes async-signal-safe calls only.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("sigaction {signal}"))?;
    }
    Ok(())
}

/// Reading ends: accept fails, poll and recv on a client return at once.
extern "C" fn stop(_: libc::c_int) {
    let errno = Errno::last_raw();
    STOPPED.store(true, SeqCst);
    // SAFETY: shutdown is async-signal-safe; a stale descriptor number makes it fail, no more.
    unsafe { libc::shutdown(STOP_FD.load(SeqCst), libc::SHUT_RD) };
    Errno::set_raw(errno);
}

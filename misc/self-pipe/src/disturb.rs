//! The instruments of the program `restart`: what a call can sleep on, and a thread that sends a
//! signal to a sleeping thread and then wakes it.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::unistd::{Pid, getpid, pipe2};

/// The timeout of each wait.
const TIMEOUT: Duration = Duration::from_secs(10);

static HANDLED: AtomicU32 = AtomicU32::new(0);

/// What a call can sleep on, and the other ends, which wake it.
#[derive(Debug)]
pub struct Ends {
    /// The reading end of a pipe.
    pub reader: OwnedFd,
    writer: OwnedFd,
    /// A listener without clients.
    pub listener: TcpListener,
    /// A connection with a read timeout.
    pub conn: TcpStream,
    peer: TcpStream,
}

/// Sends the signal when the thread sleeps. When the handler has run, causes the event that the
/// call waits for.
pub fn disturb(sleeper: Pid, ends: &Ends) {
    until(|| is_asleep(sleeper));
    let handled = HANDLED.load(SeqCst);
    // tgkill, because kill(2) lets the kernel choose the thread.
    // SAFETY: no memory is involved.
    unsafe { libc::syscall(libc::SYS_tgkill, getpid().as_raw(), sleeper.as_raw(), libc::SIGUSR1) };
    until(|| HANDLED.load(SeqCst) > handled);
    let _ = nix::unistd::write(&ends.writer, b"x");
    let _ = (&ends.peer).write(b"x");
    let _ = ends.listener.local_addr().and_then(TcpStream::connect);
}

/// Waits until `there` returns true.
fn until(condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() && began.elapsed() < TIMEOUT {
        thread::sleep(Duration::from_millis(1));
    }
}

/// State S of proc_pid_stat(5): the thread sleeps and can be interrupted.
fn is_asleep(tid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('S'))
}

/// Makes new ends.
///
/// # Errors
/// The call that failed.
pub fn ends() -> Result<Ends> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    let connected = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("bind")?;
    let peer = TcpStream::connect(connected.local_addr()?).context("connect")?;
    let (conn, _) = connected.accept().context("accept")?;
    conn.set_read_timeout(Some(TIMEOUT)).context("SO_RCVTIMEO")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("bind")?;
    Ok(Ends { reader, writer, listener, conn, peer })
}

/// The signal handler.
pub extern "C" fn count(_: libc::c_int) {
    HANDLED.fetch_add(1, SeqCst);
}

//! SA_RESTART: which sleeping calls begin again after a handler has run, and which never do.
//!
//! Run: cargo run -p self-pipe --bin restart
//! Try: strace -f -e trace=read,accept4,poll target/debug/restart

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::select::{FdSet, select};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::time::TimeSpec;
use nix::unistd::{Pid, getpid, gettid, pipe2, read};
use self_pipe::{end, say};

/// Which calls begin again after a signal handler, with and without SA_RESTART
#[derive(Parser)]
struct Args {}

/// Nothing here waits for longer.
const PATIENCE: Duration = Duration::from_secs(10);

static HANDLED: AtomicU32 = AtomicU32::new(0);

/// What a call can sleep on. The other ends wake it.
struct Bench {
    reader: OwnedFd,
    writer: OwnedFd,
    listener: TcpListener,
    conn: TcpStream,
    peer: TcpStream,
}

type Call = fn(&Bench) -> Result<(), Errno>;

const CALLS: [(&str, Call); 7] = [
    ("read", sleep_in_read),
    ("accept", sleep_in_accept),
    ("recv, SO_RCVTIMEO set", sleep_in_recv),
    ("select", sleep_in_select),
    ("poll", sleep_in_poll),
    ("epoll_wait", sleep_in_epoll),
    ("nanosleep", sleep_in_nanosleep),
];

fn main() -> ExitCode {
    let Args {} = Args::parse();
    end("restart", table())
}

fn table() -> Result<()> {
    say(format_args!("{:24} {:12} {:12}", "a signal comes during", "no flag", "SA_RESTART"));
    for (name, call) in CALLS {
        let plain = outcome(call, SaFlags::empty())?;
        let restart = outcome(call, SaFlags::SA_RESTART)?;
        say(format_args!("{name:24} {plain:12} {restart:12}"));
    }
    Ok(())
}

/// Sleeps in the call, is sent a signal, and is then woken by what the call waits for. A call that begins again does
/// not notice the signal.
fn outcome(call: Call, flags: SaFlags) -> Result<&'static str> {
    let action = SigAction::new(SigHandler::Handler(count), flags, SigSet::empty());
    // SAFETY: the handler adds to an atomic.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.context("sigaction")?;
    let bench = bench()?;
    let sleeper = gettid();
    thread::scope(|scope| {
        let bench = &bench;
        thread::Builder::new().spawn_scoped(scope, move || disturb(sleeper, bench)).context("thread")?;
        Ok(match call(bench) {
            Ok(()) => "begins again",
            Err(Errno::EINTR) => "EINTR",
            Err(_) => "another error",
        })
    })
}

/// The signal when the sleeper sleeps; and when its handler has run, the event.
fn disturb(sleeper: Pid, bench: &Bench) {
    until(|| is_asleep(sleeper));
    let handled = HANDLED.load(SeqCst);
    // To this one thread: kill(2) lets the kernel choose, and it could choose the disturber.
    // SAFETY: no memory is involved.
    unsafe { libc::syscall(libc::SYS_tgkill, getpid().as_raw(), sleeper.as_raw(), libc::SIGUSR1) };
    until(|| HANDLED.load(SeqCst) > handled);
    let _ = nix::unistd::write(&bench.writer, b"x");
    let _ = (&bench.peer).write(b"x");
    let _ = bench.listener.local_addr().and_then(TcpStream::connect);
}

fn until(there: impl Fn() -> bool) {
    let began = Instant::now();
    while !there() && began.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(1));
    }
}

/// S, as proc_pid_stat(5) calls it: it waits, and can be interrupted.
fn is_asleep(tid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('S'))
}

fn bench() -> Result<Bench> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    let connected = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("bind")?;
    let peer = TcpStream::connect(connected.local_addr()?).context("connect")?;
    let (conn, _) = connected.accept().context("accept")?;
    conn.set_read_timeout(Some(PATIENCE)).context("SO_RCVTIMEO")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("bind")?;
    Ok(Bench { reader, writer, listener, conn, peer })
}

fn sleep_in_read(bench: &Bench) -> Result<(), Errno> {
    read(&bench.reader, &mut [0]).map(drop)
}

/// Not TcpListener::accept, which hides EINTR.
fn sleep_in_accept(bench: &Bench) -> Result<(), Errno> {
    // SAFETY: no address is asked for.
    let fd = unsafe { libc::accept4(bench.listener.as_raw_fd(), ptr::null_mut(), ptr::null_mut(), libc::SOCK_CLOEXEC) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made it, and nobody else has it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

fn sleep_in_recv(bench: &Bench) -> Result<(), Errno> {
    read(&bench.conn, &mut [0]).map(drop)
}

fn sleep_in_select(bench: &Bench) -> Result<(), Errno> {
    let mut readable = FdSet::new();
    readable.insert(bench.reader.as_fd());
    select(None, &mut readable, None, None, None).map(drop)
}

fn sleep_in_poll(bench: &Bench) -> Result<(), Errno> {
    poll(&mut [PollFd::new(bench.reader.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).map(drop)
}

fn sleep_in_epoll(bench: &Bench) -> Result<(), Errno> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&bench.reader, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    epoll.wait(&mut [EpollEvent::empty()], PollTimeout::NONE).map(drop)
}

/// Not thread::sleep, which hides EINTR.
fn sleep_in_nanosleep(_: &Bench) -> Result<(), Errno> {
    let time = TimeSpec::from(Duration::from_secs(1));
    // SAFETY: reads one timespec; what is left is not asked for.
    Errno::result(unsafe { libc::nanosleep(time.as_ref(), ptr::null_mut()) }).map(drop)
}

extern "C" fn count(_: libc::c_int) {
    HANDLED.fetch_add(1, SeqCst);
}

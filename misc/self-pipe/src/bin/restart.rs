//! SA_RESTART: which blocked calls the kernel restarts after a signal handler, and which it does
//! not.
//!
//! Run: cargo run -p self-pipe --bin restart
//! Try: strace -f -e trace=read,accept4,poll target/debug/restart

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::ptr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::select::{FdSet, select};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::time::TimeSpec;
use nix::unistd::{gettid, read};
use self_pipe::disturb::{Ends, count, disturb, ends};
use self_pipe::{end, print_line};

/// Which calls are restarted after a signal handler, with and without SA_RESTART
#[derive(Parser)]
struct Args {}

type Call = fn(&Ends) -> Result<(), Errno>;

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
    print_line(format_args!("{:24} {:12} {:12}", "a signal during", "no flag", "SA_RESTART"));
    for (name, call) in CALLS {
        let plain = outcome(call, SaFlags::empty())?;
        let restart = outcome(call, SaFlags::SA_RESTART)?;
        print_line(format_args!("{name:24} {plain:12} {restart:12}"));
    }
    Ok(())
}

/// Blocks in the call while another thread sends a signal and then causes the event. A restarted
/// call returns normally.
fn outcome(call: Call, flags: SaFlags) -> Result<&'static str> {
    let action = SigAction::new(SigHandler::Handler(count), flags, SigSet::empty());
    // SAFETY: the handler only increments an atomic.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.context("sigaction")?;
    let ends = ends()?;
    let sleeper = gettid();
    thread::scope(|scope| {
        let ends = &ends;
        let disturber = thread::Builder::new().spawn_scoped(scope, move || disturb(sleeper, ends));
        disturber.context("thread")?;
        Ok(match call(ends) {
            Ok(()) => "restarted",
            Err(Errno::EINTR) => "EINTR",
            Err(_) => "another error",
        })
    })
}

fn sleep_in_read(ends: &Ends) -> Result<(), Errno> {
    read(&ends.reader, &mut [0]).map(drop)
}

/// accept4, because TcpListener::accept repeats the call after EINTR.
fn sleep_in_accept(ends: &Ends) -> Result<(), Errno> {
    let fd = ends.listener.as_raw_fd();
    let (addr, len) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the address pointers may be null.
    let fd = unsafe { libc::accept4(fd, addr, len, libc::SOCK_CLOEXEC) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor for us.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

fn sleep_in_recv(ends: &Ends) -> Result<(), Errno> {
    read(&ends.conn, &mut [0]).map(drop)
}

fn sleep_in_select(ends: &Ends) -> Result<(), Errno> {
    let mut readable = FdSet::new();
    readable.insert(ends.reader.as_fd());
    select(None, &mut readable, None, None, None).map(drop)
}

fn sleep_in_poll(ends: &Ends) -> Result<(), Errno> {
    poll(&mut [PollFd::new(ends.reader.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).map(drop)
}

fn sleep_in_epoll(ends: &Ends) -> Result<(), Errno> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&ends.reader, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    epoll.wait(&mut [EpollEvent::empty()], PollTimeout::NONE).map(drop)
}

/// nanosleep, because thread::sleep repeats the call after EINTR.
fn sleep_in_nanosleep(_: &Ends) -> Result<(), Errno> {
    let time = TimeSpec::from(Duration::from_secs(1));
    // SAFETY: the kernel reads one timespec; the second pointer may be null.
    Errno::result(unsafe { libc::nanosleep(time.as_ref(), ptr::null_mut()) }).map(drop)
}

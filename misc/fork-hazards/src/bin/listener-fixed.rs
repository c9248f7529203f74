//! The fix for the inherited listener: the worker closes it.
//!
//! Run: cargo run -p fork-hazards --bin listener-fixed
//! Try: cargo run -p fork-hazards --bin listener

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use common::report::Failed;
use fork_hazards::{block_signals, die_with, end_child, leave, print_line};
use nix::fcntl::OFlag;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, getpid, pipe2, read, write};
use socket2::{Domain, Socket, Type};

/// A port that is free as soon as the server has ended
#[derive(Parser)]
struct Args {}

fn main() -> Result<(), Failed> {
    let Args {} = Args::parse();
    Ok(demonstrate()?)
}

fn demonstrate() -> Result<()> {
    block_signals()?;
    // When the server has ended, the worker becomes a child of this process, which can reap it.
    set_child_subreaper(true).context("PR_SET_CHILD_SUBREAPER")?;
    let (ready, notify) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    let (stay, end_all) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    let observer = getpid();
    // SAFETY: this process has one thread, so the child may call any function.
    let server = match unsafe { fork() } {
        Ok(ForkResult::Child) => server(observer, notify, stay, end_all),
        Ok(ForkResult::Parent { child }) => child,
        Err(e) => return Err(e).context("fork"),
    };
    drop((notify, stay));
    let (addr, worker) = read_addresses(&ready)?;
    print_line(format_args!("server {server} listens on {addr} and has forked worker {worker}"));
    end_child(server);
    print_line(format_args!(
        "the server is killed; worker {worker} runs, with {}",
        sockets_of(worker)
    ));
    let bind_again = |when| match listen_on(addr) {
        Ok(_) => print_line(format_args!("{when}: a new server gets the port")),
        Err(e) => print_line(format_args!("{when}: a new server gets {e}")),
    };
    bind_again("worker runs");
    match TcpStream::connect(addr) {
        Ok(_) => print_line("worker runs: a client is connected, but no process will accept it"),
        Err(e) => print_line(format_args!("worker runs: a client gets {e}")),
    }
    drop(end_all);
    waitpid(worker, None).context("waitpid")?;
    bind_again("worker ended");
    Ok(())
}

/// The life of the server: listens, forks a worker, and waits.
fn server(observer: Pid, notify: OwnedFd, stay: OwnedFd, end_all: OwnedFd) -> ! {
    die_with(observer);
    drop(end_all);
    let Ok(listener) = listen_on((Ipv4Addr::LOCALHOST, 0).into()) else { leave(1) };
    let addr = listener.local_addr().ok().and_then(|addr| addr.as_socket());
    let port = addr.map_or(0, |addr| addr.port());
    // SAFETY: this process has one thread, so the child may call any function.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => worker(listener, port, notify, stay),
        Ok(ForkResult::Parent { .. }) => {
            drop(notify);
            // This process waits here until it is killed.
            let _ = read(&stay, &mut [0]);
            leave(0)
        }
        Err(_) => leave(1),
    }
}

/// A worker does not need the listener.
fn worker(listener: Socket, port: u16, notify: OwnedFd, stay: OwnedFd) -> ! {
    // Close-on-exec does not help: there is no exec.
    drop(listener);
    let message = [u32::from(port).to_ne_bytes(), getpid().as_raw().to_ne_bytes()].concat();
    let _ = write(&notify, &message);
    drop(notify);
    // End of file: the observer has closed its end or has ended.
    let _ = read(&stay, &mut [0]);
    leave(0)
}

/// The address of the server and the pid of its worker. The worker sends both when it is ready.
fn read_addresses(ready: &OwnedFd) -> Result<(SocketAddr, Pid)> {
    let mut message = [0; 8];
    let n = read(ready, &mut message).context("pipe")?;
    ensure!(n == message.len(), "the server could not listen or fork");
    let [a, b, c, d, pid @ ..] = message;
    let port = u32::from_ne_bytes([a, b, c, d]) as u16;
    Ok(((Ipv4Addr::LOCALHOST, port).into(), Pid::from_raw(i32::from_ne_bytes(pid))))
}

/// How many sockets `ls -l /proc/PID/fd` shows.
fn sockets_of(pid: Pid) -> String {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    let count = links.filter(|link| link.to_string_lossy().starts_with("socket:")).count();
    format!("{count} sockets")
}

fn listen_on(addr: SocketAddr) -> io::Result<Socket> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.set_reuse_address(true)?;
    listener.bind(&addr.into())?;
    listener.listen(16)?;
    Ok(listener)
}

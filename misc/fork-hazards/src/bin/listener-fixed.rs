//! The cure for the inherited listener: the worker closes what it does not need.
//!
//! Run: cargo run -p fork-hazards --bin listener-fixed
//! Try: cargo run -p fork-hazards --bin listener

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use fork_hazards::{Shielded, die_with, end, end_child, leave, say};
use nix::fcntl::OFlag;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, getpid, pipe2, read, write};
use socket2::{Domain, Socket, Type};

/// A port that is free as soon as its server has died
#[derive(Parser)]
struct Args {}

fn main() -> ExitCode {
    let Args {} = Args::parse();
    end("listener-fixed", demonstrate())
}

fn demonstrate() -> Result<()> {
    let _shielded = Shielded::new()?;
    // The worker is an orphan when its server is dead: it comes here, to be reaped.
    set_child_subreaper(true).context("PR_SET_CHILD_SUBREAPER")?;
    let (told, tell) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    let (stay, end_all) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    let observer = getpid();
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    let server = match unsafe { fork() } {
        Ok(ForkResult::Child) => server(observer, tell, stay, end_all),
        Ok(ForkResult::Parent { child }) => child,
        Err(e) => return Err(e).context("fork"),
    };
    drop((tell, stay));
    let (addr, worker) = hear(&told)?;
    say(format_args!("server {server} listens on {addr}, and has forked worker {worker}"));
    end_child(server);
    say(format_args!("the server is killed; worker {worker} lives, with {}", sockets_of(worker)));
    let again = |when| match listen_on(addr) {
        Ok(_) => say(format_args!("{when}: a new server gets the port")),
        Err(e) => say(format_args!("{when}: a new server gets {e}")),
    };
    again("worker alive");
    match TcpStream::connect(addr) {
        Ok(_) => say("worker alive: a client is connected, and nobody will ever accept it"),
        Err(e) => say(format_args!("worker alive: a client gets {e}")),
    }
    drop(end_all);
    waitpid(worker, None).context("waitpid")?;
    again("worker ended");
    Ok(())
}

fn server(observer: Pid, tell: OwnedFd, stay: OwnedFd, end_all: OwnedFd) -> ! {
    die_with(observer);
    drop(end_all);
    let Ok(listener) = listen_on((Ipv4Addr::LOCALHOST, 0).into()) else { leave(1) };
    let port = listener.local_addr().ok().and_then(|addr| addr.as_socket()).map_or(0, |addr| addr.port());
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => worker(listener, port, tell, stay),
        Ok(ForkResult::Parent { .. }) => {
            drop(tell);
            // Until it is killed.
            let _ = read(&stay, &mut [0]);
            leave(0)
        }
        Err(_) => leave(1),
    }
}

/// A worker that needs only its client.
fn worker(listener: Socket, port: u16, tell: OwnedFd, stay: OwnedFd) -> ! {
    // Close-on-exec would not help: there is no exec.
    drop(listener);
    let message = [u32::from(port).to_ne_bytes(), getpid().as_raw().to_ne_bytes()].concat();
    let _ = write(&tell, &message);
    drop(tell);
    // End of file when the observer has closed its end, or has died.
    let _ = read(&stay, &mut [0]);
    leave(0)
}

/// The server's address and its worker, which says both when it has closed what it closes.
fn hear(told: &OwnedFd) -> Result<(SocketAddr, Pid)> {
    let mut message = [0; 8];
    let n = read(told, &mut message).context("pipe")?;
    ensure!(n == message.len(), "the server could not listen or fork");
    let [a, b, c, d, pid @ ..] = message;
    let port = u32::from_ne_bytes([a, b, c, d]) as u16;
    Ok(((Ipv4Addr::LOCALHOST, port).into(), Pid::from_raw(i32::from_ne_bytes(pid))))
}

/// As `ls -l /proc/PID/fd` shows them.
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

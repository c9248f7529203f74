//! A mistake to watch: every process keeps copies of all descriptors, so close ends no connection.
//!
//! Run: cargo run -p v0-processes --bin naive-inherit -- -p 2000
//! Try: nc 127.0.0.1 2000, write a line, then `/quit`: nc never reads end of file.
//!
//! The parent forks a worker per client and keeps each client's socket, because it writes the lines
//! of the others to it. A worker inherits the listener and the sockets of all earlier clients. So
//! the close after `/quit` sends no FIN: the parent has a copy of the socket, and each later worker
//! has one too. And after the parent is killed, the workers still hold the listener: the port is in
//! use, and no process accepts. `../main.rs` closes what a child does not need, and calls shutdown,
//! which ends the connection however many copies of the descriptor there are.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;

use anyhow::Context;
use clap::Parser;
use common::cli::Listen;
use common::report::{Failed, ready};
use common::sock::listen;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, fork};
use socket2::{Domain, Socket, Type};

/// A chat whose processes share too many descriptors
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    // SAFETY: SIG_IGN runs no code. While SIGCHLD is ignored the kernel reaps the children.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }.context("signal")?;
    let (mut bus, worker_end) =
        Socket::pair(Domain::UNIX, Type::SEQPACKET, None).context("socketpair")?;
    let listener = listen(&args.listen, 64)?;
    let mut clients: Vec<Socket> = Vec::new();
    ready(&listener);
    loop {
        let mut fds =
            [&listener, &bus].map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        let _ = poll(&mut fds, PollTimeout::NONE);
        let [listener_ready, bus_ready] = fds.map(|fd| fd.any().unwrap_or(false));
        if listener_ready {
            let (conn, _) = listener.accept().context("accept")?;
            // SAFETY: this process has one thread, so the child may do whatever the parent may do.
            match unsafe { fork() }.context("fork")? {
                ForkResult::Child => worker(conn, worker_end),
                ForkResult::Parent { .. } => clients.push(conn),
            }
        }
        if bus_ready {
            let mut line = [0; 2048];
            let n = bus.read(&mut line).context("read")?;
            // No socket is ever removed: the parent does not know which worker has ended.
            for mut client in &clients {
                let _ = client.write(line.get(..n).unwrap_or_default());
            }
        }
    }
}

/// Reads until `/quit` or end of file, and closes its copy of the socket. It keeps its copies of
/// the listener and of the other clients' sockets.
fn worker(conn: Socket, mut bus: Socket) -> ! {
    let mut reader = BufReader::new(conn);
    let mut line = String::new();
    while matches!(reader.by_ref().take(1024).read_line(&mut line), Ok(1..))
        && line.trim_end() != "/quit"
    {
        if bus.write(line.as_bytes()).is_err() {
            break;
        }
        line.clear();
    }
    drop(reader); // closes this copy
    // SAFETY: _exit instead of exit: functions that the parent registered with atexit must not run
    // in the child.
    unsafe { libc::_exit(0) }
}

//! The mistake, to be seen: every process holds a copy of every descriptor, and a conversation ends with close.
//!
//! Run: cargo run -p v0-processes --bin naive-inherit -- -p 2000
//! Try: nc 127.0.0.1 2000, say something, then `/quit`: nc never sees the end.
//!
//! The parent accepts, forks, and keeps each client's socket to tell it what the others say. A worker inherits the
//! listener and the sockets of all who came before. So `/quit`, a close in the worker, sends no FIN: the parent still has
//! a copy, and so has every worker that was forked later. And when the parent is killed its workers go on listening:
//! the port is taken by processes that accept nobody. `../main.rs` closes what a child does not need, and says
//! shutdown, which ends the connection itself, however many copies there are.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;

use anyhow::Context;
use clap::Parser;
use common::cli::Listen;
use common::report::Failed;
use common::sock::listen;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, fork};
use socket2::{Domain, Socket, Type};

/// A chat whose processes share too much
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    // SAFETY: SIG_IGN is no handler: the kernel itself reaps the children.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }.context("signal")?;
    let (mut hear, say) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).context("socketpair")?;
    let listener = listen(&args.listen, 64)?;
    let mut clients: Vec<Socket> = Vec::new();
    loop {
        let mut fds = [&listener, &hear].map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        let _ = poll(&mut fds, PollTimeout::NONE);
        let [knock, words] = fds.map(|fd| fd.any().unwrap_or(false));
        if knock {
            let (conn, _) = listener.accept().context("accept")?;
            // SAFETY: this process has one thread, so the child may do whatever the parent may.
            match unsafe { fork() }.context("fork")? {
                ForkResult::Child => worker(conn, say),
                ForkResult::Parent { .. } => clients.push(conn),
            }
        }
        if words {
            let mut line = [0; 2048];
            let n = hear.read(&mut line).context("read")?;
            // A copy of a socket whose worker has gone is never taken out: nobody tells the parent which one it was.
            clients.iter().for_each(|mut client| drop(client.write(line.get(..n).unwrap_or_default())));
        }
    }
}

/// Reads until `/quit` or the end, and closes its copy. Not a word about the listener or the others' sockets.
fn worker(conn: Socket, mut bus: Socket) -> ! {
    let mut lines = BufReader::new(conn);
    let mut line = String::new();
    while matches!(lines.by_ref().take(1024).read_line(&mut line), Ok(1..)) && line.trim_end() != "/quit" {
        if bus.write(line.as_bytes()).is_err() {
            break;
        }
        line.clear();
    }
    drop(lines); // close, and the end of the conversation as far as this process knows
    // SAFETY: _exit, not exit: what is registered for the parent's end must not run at the child's.
    unsafe { libc::_exit(0) }
}

//! TCP concurrent server: one child process per client.
//!
//! Run: cargo run -p server01-fork
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server00-iterative
//! Next: server02-select
//! Diff base: server00-iterative
//! Overload: queue (with --max-conns children, the other clients wait in the listener's backlog)

use std::io::ErrorKind::Interrupted;

use clap::Parser;
use common::report::{self, Failed};
use lifecycle::{Children, Server, begin_child, on_signal, shutdown};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, fork};
use socket2::{SockAddr, Socket};

/// TCP concurrent server: one child process per client
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
    /// Maximum number of clients, and so of child processes
    #[arg(long, default_value_t = 64, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_conns: u16,
}

fn main() -> Result<(), Failed> {
    let Args { server, max_conns } = Args::parse();
    // SIGTERM and SIGINT request a shutdown. A signal also interrupts accept (EINTR).
    shutdown::on_signals(&server.limits)?;
    // Install the handler before the first fork. Otherwise the SIGCHLD of a short-lived child is
    // lost, and the child stays a zombie.
    on_signal(Signal::SIGCHLD, reap_children)?;
    let listener = server.listen()?;
    // A shutdown makes accept on this socket fail, even if the signal arrives before the call.
    shutdown::register(&listener);

    let mut children = Children::default();
    report::ready(&listener);

    while !shutdown::requested() {
        // At the limit, sleep until a child ends. New clients wait in the listener's backlog.
        children.wait_below(max_conns);
        // Sleep until a client connects.
        let (mut conn, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // A signal interrupted accept.
            Err(e) if e.kind() == Interrupted => continue,
            // Log the error, and pause after EMFILE. An unusable listener ends the server.
            Err(e) => {
                server.accept_failed(&e)?;
                continue;
            }
        };
        // SAFETY: this process has one thread, so the child may call any function.
        match unsafe { fork() } {
            // The child serves this client and exits.
            Ok(ForkResult::Child) => child(listener, conn, &peer, &server),
            Ok(ForkResult::Parent { child }) => children.add(child),
            Err(e) => server.reject(&mut conn, "fork", e),
        }
        // The parent closes its copy. The client reads end of file when the last copy is closed.
        drop(conn);
    }

    children.end();
    server.log.cpu_time();
    Ok(())
}

/// The whole life of a child. The return type `!` makes the compiler check that a child never
/// returns to the parent's loop.
fn child(listener: Socket, mut conn: Socket, peer: &SockAddr, server: &Server) -> ! {
    // The child does not accept. With an open copy of the listener it would keep the port in use.
    drop(listener);
    // From now on the kernel kills this child when its parent dies.
    begin_child();
    server.serve(&mut conn, peer);
    // SAFETY: _exit ends only this process. exit would also run what the parent has registered
    // with atexit.
    unsafe { libc::_exit(0) }
}

/// The handler of SIGCHLD. It calls waitpid in a loop, because signals do not queue: two children
/// that end together may send one SIGCHLD. WNOHANG: do not wait for the children that still run.
extern "C" fn reap_children(_: libc::c_int) {
    // waitpid changes errno, and the interrupted code may be about to read it.
    let errno = Errno::last_raw();
    while let Ok(Some(_)) = waitpid(None, Some(WaitPidFlag::WNOHANG)).map(|status| status.pid()) {}
    Errno::set_raw(errno);
}

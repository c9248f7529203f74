//! TCP concurrent server: one child process per client.
//!
//! Run: cargo run -p server01-fork
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server00-iterative
//! Next: server02-select
//! Diff base: server00-iterative
//! Overload: queue (in the listener's backlog: with --max-conns children the parent does not accept)

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
    /// Clients, and so children, at once
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_conns: u16,
}

fn main() -> Result<(), Failed> {
    let Args { server, max_conns } = Args::parse();
    shutdown::on_signals(&server.limits)?;
    // Before the first fork, or a child that ends at once would stay a zombie.
    on_signal(Signal::SIGCHLD, reap_children)?;
    let listener = server.listen()?;
    shutdown::register(&listener);

    let mut children = Children::default();
    report::ready(&listener);
    while !shutdown::requested() {
        // At the limit: the next clients wait in the listener's backlog until a child ends.
        children.wait_below(max_conns);
        let (mut conn, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // A signal came while accept slept: a child has ended, and the handler has reaped it.
            Err(e) if e.kind() == Interrupted => continue,
            Err(e) => {
                server.accept_failed(&e)?;
                continue;
            }
        };
        // SAFETY: this process has one thread, so the child may do whatever the parent may.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => child(listener, conn, &peer, &server),
            Ok(ForkResult::Parent { child }) => children.add(child),
            Err(e) => server.reject(&mut conn, "fork", e),
        }
        // The client sees the end of the stream only when the last copy is closed: this one must not stay open.
        drop(conn);
    }

    children.end();
    server.log.cpu_time();
    Ok(())
}

/// A child's whole life. `!`: it never returns into the parent's loop, and the compiler checks it.
fn child(listener: Socket, mut conn: Socket, peer: &SockAddr, server: &Server) -> ! {
    drop(listener); // or the port stays taken for as long as this client stays
    begin_child();
    server.serve(&mut conn, peer);
    // SAFETY: _exit, not exit: what is registered for the parent's end must not run at the child's.
    unsafe { libc::_exit(0) }
}

/// SIGCHLD. A loop, since signals do not queue: children that end together may send one. WNOHANG, since others live on.
extern "C" fn reap_children(_: libc::c_int) {
    let errno = Errno::last_raw();
    while let Ok(Some(_)) = waitpid(None, Some(WaitPidFlag::WNOHANG)).map(|status| status.pid()) {}
    Errno::set_raw(errno);
}

//! A file server: a client sends a name and a newline, and receives that file.
//!
//! Run: cargo run -p sendfile --bin file-server -- --root misc/sendfile
//! Try: printf 'README.md\n' | nc -N 127.0.0.1 2000
//! Overload: reject (over --max-conns a client receives `ERR busy`)

use std::io::ErrorKind::Interrupted;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::{self, Builder};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use common::report::{self, Failed};
use common::service::Rejection;
use common::sock::reject;
use lifecycle::{Server, shutdown};
use sendfile::beneath::Root;
use sendfile::session;
use socket2::{SockAddr, Socket};

/// TCP file server with sendfile: one name per connection, only regular files beneath one folder
#[derive(Parser)]
#[command(mut_arg("max_request", |arg| {
    arg.default_value("1073741824").help("Maximum size of a file, in bytes")
}))]
struct Args {
    #[command(flatten)]
    server: Server,
    /// The folder
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// Maximum number of clients, and so of threads
    #[arg(long, default_value_t = 256, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=4096))]
    max_conns: u16,
}

/// What all threads use. The number of its owners, without main, is the number of threads.
struct Shared {
    server: Server,
    max_conns: usize,
    root: Root,
    /// A shutdown makes it report POLLHUP, which all threads wait for.
    listener: Socket,
}

fn main() -> Result<ExitCode, Failed> {
    let Args { server, root, max_conns } = Args::parse();
    shutdown::on_signals(&server.limits)?;
    let opened = Root::open(&root).with_context(|| format!("open {}", root.display()))?;
    // Without openat2 the server cannot keep a name beneath the folder.
    let Some(root) = opened else { return Ok(no_openat2()) };
    let listener = server.listen()?;
    shutdown::register(&listener);
    let shared = Arc::new(Shared { server, max_conns: max_conns.into(), root, listener });
    report::ready(&shared.listener);

    while !shutdown::requested() {
        match shared.listener.accept() {
            Ok((conn, peer)) => start_session(conn, peer, Arc::clone(&shared)),
            // A signal interrupted accept.
            Err(e) if e.kind() == Interrupted => {}
            Err(e) => shared.server.accept_failed(&e)?,
        }
    }

    while Arc::strong_count(&shared) > 1 && !shutdown::timeout_has_passed() {
        thread::sleep(INTERVAL);
    }
    // The exit closes the connections of the other threads. An incomplete file ends with a RST.
    shared.server.log.cpu_time();
    Ok(ExitCode::SUCCESS)
}

/// Bytes of address space for a stack.
const STACK: usize = 256 * 1024;
/// Extra threads that only send `ERR busy`. Beyond them a client is closed without an answer.
const MAX_REJECTING: usize = 8;
/// After a signal: how often main checks whether all clients are done.
const INTERVAL: Duration = Duration::from_millis(10);

/// Creates the thread of this client.
fn start_session(mut conn: Socket, peer: SockAddr, shared: Arc<Shared>) {
    let clients = Arc::strong_count(&shared) - 1;
    if clients > shared.max_conns + MAX_REJECTING {
        return; // drops the connection, which closes it
    }
    let main = Arc::clone(&shared);
    let life = move || {
        let is_served = clients <= shared.max_conns;
        // A panic ends this session only.
        let _ = catch_unwind(AssertUnwindSafe(|| worker(&shared, &mut conn, &peer, is_served)));
        drop(conn); // before `shared`: at the limit all open connections are counted
        drop(shared);
    };
    // Builder, because thread::spawn panics if the kernel cannot create a thread. After an error
    // the closure is dropped: the connection is closed.
    if let Err(e) = Builder::new().stack_size(STACK).spawn(life) {
        main.server.log.repeated("WARN", &format!("clone: {e}"));
    }
}

/// The life of a thread: serves or rejects one client.
fn worker(shared: &Shared, conn: &mut Socket, peer: &SockAddr, is_served: bool) {
    let Shared { server, root, listener, .. } = shared;
    let outcome = match is_served {
        true => session::serve(conn, root, &server.limits, listener),
        false => reject(conn, Rejection::Busy, &server.limits).map(|()| String::new()),
    };
    match (outcome, peer.as_socket()) {
        (Ok(text), Some(addr)) => server.log.info(&format!("client {addr}: {text}")),
        (outcome, _) => server.log.client(peer, &outcome.map(drop)),
    }
}

/// EX_UNAVAILABLE of sysexits.h.
const UNAVAILABLE: u8 = 69;

/// One line on stderr; the server is not ready.
fn no_openat2() -> ExitCode {
    let text = "openat2: not permitted, or the kernel is older than Linux 5.6";
    let _ = writeln!(io::stderr(), "file-server: {text}");
    ExitCode::from(UNAVAILABLE)
}

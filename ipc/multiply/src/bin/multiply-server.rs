//! A TCP service that multiplies, adds, subtracts and divides: a pool of threads, many requests on one connection.
//!
//! Run: cargo run -p multiply --bin multiply-server
//! Try: cargo run -p multiply --bin multiply-client -- 5 10
//! Prev: none
//! Next: none
//! Diff base: none
//! Overload: queue (for a worker, up to --max-conns clients), then refuse with `ERR busy`

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use common::cli::{Limits, Listen, Pool};
use common::report::{Failed, Log};
use common::sock::{Backoff, listen};
use multiply::conn::{Conn, INPUT, Next};
use multiply::frame::Framing;
use multiply::request::Refusal;
use multiply::stop;
use nix::sys::signal::SigSet;
use nix::sys::socket;
use serde::Serialize;
use socket2::{SockAddr, Socket};

const BACKLOG: i32 = 1024;
/// Clients that wait to be told `ERR busy`; one more is closed without a word.
const DEAD_ENDS: usize = 8;
/// A signal does not end a wait on a condition variable: so often it is looked for meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// TCP service that multiplies: a pool of threads
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    pool: Pool,
    /// Clients at once, served or waiting for a worker; the next one is told `ERR busy`
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_conns: u16,
    /// Where a message ends
    #[arg(long, value_enum, default_value_t = Framing::Line)]
    framing: Framing,
    /// Print each step as one JSON object a line
    #[arg(long)]
    events: bool,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    log: Log,
}

/// What happened, with `--events`. What a client sent is escaped, so that it is text whatever it was.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Event<'a> {
    Connected { peer: &'a str },
    Request { peer: &'a str, request: String, answer: &'a str },
    Closed { peer: &'a str, why: String },
}

/// stdout that is full or closed does not end the service.
fn tell(args: &Args, event: &Event) {
    if args.events {
        let _ = writeln!(io::stdout(), "{}", serde_json::to_string(event).unwrap_or_default());
    }
}

/// The descriptors that wait or are being served. A number is taken out before it is closed.
static CLIENTS: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());
static GONE: Condvar = Condvar::new();

fn main() -> Result<(), Failed> {
    let args = Arc::new(Args::parse());
    stop::on_signal()?;
    let listener = listen(&args.listen, BACKLOG)?;
    stop::watch(&listener);
    let (work, refusals) = start_pool(&args)?;

    let mut backoff = Backoff::default();
    while stop::count() == 0 {
        let (conn, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // The handler has shut the listener down: EINVAL now and ever after.
            Err(_) if stop::count() > 0 => break,
            // A signal came while accept slept.
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => {
                backoff.accept_failed(&e, &args.log)?;
                continue;
            }
        };
        // The acceptor waits for nobody: `work` has a place for each of --max-conns, and what finds no place among
        // the refused is dropped, and so closed.
        let full = lock(&CLIENTS).len() >= args.max_conns.into();
        let client = Client { _place: (!full).then(|| Place::of(&conn)), conn, peer };
        let _ = if full { refusals.try_send(client) } else { work.try_send(client) };
    }

    drop((work, refusals));
    end_clients(Duration::from_millis(args.limits.grace));
    args.log.cpu_time();
    Ok(())
}

/// The workers, and one thread more that serves nobody.
fn start_pool(args: &Arc<Args>) -> Result<(SyncSender<Client>, SyncSender<Client>), Failed> {
    let (work, waiting) = sync_channel(args.max_conns.into());
    let (refusals, refused) = sync_channel(DEAD_ENDS);
    let (waiting, refused) = (Arc::new(Mutex::new(waiting)), Arc::new(Mutex::new(refused)));
    // Blocked here, so that the pool inherits it: signals are the main thread's.
    let signals = SigSet::from_iter(stop::SIGNALS);
    signals.thread_block().context("sigprocmask")?;
    for number in 0..=args.pool.workers {
        let (serves, args) = (number > 0, Arc::clone(args));
        let queue = Arc::clone(if serves { &waiting } else { &refused });
        // Not thread::spawn, which panics where there is no thread to be had.
        Builder::new().spawn(move || worker(&args, &queue, serves)).context("clone")?;
    }
    signals.thread_unblock().context("sigprocmask")?;
    Ok((work, refusals))
}

/// One client. Dropped in this order, also by a panic: first the number leaves the table, then it is closed.
struct Client {
    _place: Option<Place>,
    conn: Socket,
    peer: SockAddr,
}

/// An entry among the clients, from the accept to the moment before the close.
struct Place(RawFd);

impl Place {
    fn of(conn: &Socket) -> Self {
        lock(&CLIENTS).insert(conn.as_raw_fd());
        Place(conn.as_raw_fd())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&CLIENTS).remove(&self.0);
        GONE.notify_all();
    }
}

/// A thread's whole life: one client at a time.
fn worker(args: &Args, queue: &Mutex<Receiver<Client>>, serves: bool) {
    loop {
        // The lock is held while it sleeps: one thread waits for a client, the others for the lock.
        let received = lock(queue).recv();
        let Ok(mut client) = received else { return };
        let conn = match serves {
            // Its clock starts here: a request that has waited for a worker is not late.
            true => Conn::new(args.framing, &args.limits, Instant::now()),
            false => Conn::refused(Refusal::Busy, args.framing, &args.limits, Instant::now()),
        };
        let peer = client.peer.as_socket().map(|addr| addr.to_string()).unwrap_or_default();
        tell(args, &Event::Connected { peer: &peer });
        // A panic ends this conversation and not the thread, which the pool could not do without.
        let outcome = catch_unwind(AssertUnwindSafe(|| converse(&mut client, conn, args, &peer)));
        if let Ok(outcome) = outcome {
            args.log.client(&client.peer, &outcome);
            let why = outcome.err().map_or("the client left".to_owned(), |e| e.to_string());
            tell(args, &Event::Closed { peer: &peer, why });
        }
    }
}

/// Does what `conn` asks for, blocking, until it is closed.
fn converse(client: &mut Client, mut conn: Conn, args: &Args, peer: &str) -> io::Result<()> {
    let seen = |message: &[u8], answer: &str| {
        let request = message.escape_ascii().to_string();
        args.log.info(&format!("client {peer}: received '{request}', answered {answer}"));
        tell(args, &Event::Request { peer, request, answer });
    };
    let mut buffer = [0; INPUT];
    loop {
        let left = conn.deadline().saturating_duration_since(Instant::now());
        if left.is_zero() {
            conn.expire(Instant::now());
        }
        let left = left.max(Duration::from_millis(1));
        let step = match conn.next() {
            Next::Read => {
                client.conn.set_read_timeout(Some(left))?;
                let room = conn.room().min(buffer.len());
                client.conn.read(buffer.get_mut(..room).unwrap_or_default()).map(|n| match buffer.get(..n) {
                    Some([]) | None => conn.eof(),
                    Some(bytes) => conn.feed(bytes, Instant::now(), seen),
                })
            }
            Next::Write => {
                client.conn.set_write_timeout(Some(left))?;
                client.conn.write(conn.pending()).map(|n| conn.consume(n, Instant::now(), seen))
            }
            Next::HangUp => {
                let fin = client.conn.shutdown(Shutdown::Write);
                conn.hung_up(Instant::now());
                fin
            }
            Next::Close => return conn.result(),
        };
        match step {
            // A signal, or the deadline: the top of the loop asks the clock.
            Err(e) if !matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => return Err(e),
            _ => {}
        }
    }
}

/// Ends all reading: what was received is still answered. When the grace is over, or a second signal comes, ends all.
fn end_clients(grace: Duration) {
    let end = Instant::now() + grace;
    let mut clients = lock(&CLIENTS);
    shut_down(&clients, socket::Shutdown::Read);
    while !clients.is_empty() && Instant::now() < end && stop::count() < 2 {
        clients = wait(clients);
    }
    shut_down(&clients, socket::Shutdown::Both);
    // The threads that this ended get a moment for their log lines; the end of the process takes whoever is left.
    if !clients.is_empty() {
        drop(wait(clients));
    }
}

/// Gives the lock away, sleeps until somebody has gone or it is time to look for a signal, and takes the lock again.
fn wait(clients: MutexGuard<'static, BTreeSet<RawFd>>) -> MutexGuard<'static, BTreeSet<RawFd>> {
    GONE.wait_timeout(clients, LOOK).unwrap_or_else(PoisonError::into_inner).0
}

/// While the table is locked no thread closes its connection, so each number is a client's and no stranger's.
fn shut_down(clients: &BTreeSet<RawFd>, how: socket::Shutdown) {
    for fd in clients {
        let _ = socket::shutdown(*fd, how);
    }
}

/// A panic that held the lock has left what it guards whole: each change is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! TCP concurrent server: a task per client, as production code writes it, on tokio.
//!
//! Run: cargo run -p server08-tokio
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server07-io-uring
//! Next: none
//! Diff base: server05-threads
//! Overload: refuse (beyond --max-conns a task says `ERR busy` and no more, so that the acceptor never waits for a client)

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use common::cli::{Limits, Listen};
use common::report::{Failed, Log};
use common::service::{Conn, Next, Refusal};
use common::sock::{Backoff, Verdict, accept_failed, listen};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use signal_hook::low_level::register;
use socket2::{SockAddr, SockRef};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout, timeout_at};

const BACKLOG: i32 = 1024;
const MAX_CONNS: u64 = 10_000;
/// Descriptors that are not for clients: the dead ends, the standard streams, the listener, the runtime's own.
const RESERVE: u64 = 32;
/// Tasks beyond the limit, there only to say `ERR busy`.
const DEAD_ENDS: usize = 16;
/// A client that has left frees its place a moment later, when its task sees it: so long a full house is not final.
const PATIENCE: Duration = Duration::from_millis(200);
/// So often the listener is looked at without a reason.
const LOOK: Duration = Duration::from_secs(1);

/// TCP concurrent server: a task per client, on tokio
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    limits: Limits,
    /// Clients, and so tasks, at once [default: 10000, or what the hard limit of descriptors leaves]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_conns: Option<u64>,
    #[command(flatten)]
    log: Log,
}

/// Signals that have come.
static STOPS: AtomicUsize = AtomicUsize::new(0);

fn main() -> Result<(), Failed> {
    let args = Arc::new(Args::parse());
    let max_conns = max_conns(args.max_conns)?;
    // A thread per core, an epoll between them, and a queue of tasks that can go on: made here, and not by a macro.
    // The number is said, since tokio would else take it from its environment, and panic where that is no number.
    let threads = available_parallelism().map_or(1, |n| n.get());
    let runtime = Builder::new_multi_thread().worker_threads(threads).enable_all().build().context("runtime")?;
    runtime.block_on(run(&args, max_conns))?;
    args.log.cpu_time();
    Ok(())
}

/// How many clients at once. The soft limit of descriptors is low for the sake of programs that use select, and any
/// process may raise its own to the hard one.
fn max_conns(wanted: Option<u64>) -> Result<usize, Failed> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("setrlimit")?;
    let most = hard.saturating_sub(RESERVE);
    match wanted.unwrap_or(MAX_CONNS.min(most)) {
        n if (1..=most).contains(&n) => Ok(n as usize),
        n => {
            Err(Failed::new(format!("--max-conns {n}: the hard limit of {hard} descriptors leaves {most} for clients")))
        }
    }
}

async fn run(args: &Arc<Args>, max_conns: usize) -> Result<(), Failed> {
    // Before the ready line, so that a signal sent right after it finds its handler.
    let mut stops = Stops::new()?;
    let listener = listen(&args.listen, BACKLOG)?;
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    let listener = TcpListener::from_std(listener.into()).context("epoll_ctl")?;

    let places = Arc::new(Semaphore::new(max_conns));
    let dead_ends = Arc::new(Semaphore::new(DEAD_ENDS));
    // One value that every task can wait for: whether the stop has come.
    let (stop, stopping) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut backoff = Backoff::default();
    let mut patience = PATIENCE;
    loop {
        // Whoever is first: the future that loses is dropped, and an accept that is dropped has accepted nobody.
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sleep(LOOK) => look_again(&listener),
            // Takes away what ended tasks leave behind, also that one has panicked: it took no other with it.
            Some(_) = tasks.join_next() => continue,
            () = stops.next() => break,
        };
        let (conn, peer) = match accepted {
            Ok(accepted) => accepted,
            // A signal, which the library does not hide; or nobody was there.
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => continue,
            Err(e) => {
                let pause = accept_pause(&e, &mut backoff, &args.log)?;
                // Never thread::sleep: it would take the thread from the tasks that it runs.
                tokio::select! {
                    () = sleep(pause) => continue,
                    () = stops.next() => break,
                }
            }
        };
        let (place, welcome) = tokio::select! {
            place = free_place(&places, &dead_ends, patience) => place?,
            () = stops.next() => break,
        };
        // Waited once, and in vain: from now on refused at once, until one finds a place again.
        patience = if welcome { PATIENCE } else { Duration::ZERO };
        tasks.spawn(client(place, welcome, conn, peer.into(), stopping.clone(), Arc::clone(args)));
    }

    drop(listener); // close: new clients are refused
    let _ = stop.send(true);
    let all_gone = async { while tasks.join_next().await.is_some() {} };
    tokio::select! {
        _ = timeout(Duration::from_millis(args.limits.grace), all_gone) => {}
        () = stops.next() => {}
    }
    // Dropping the set ends the tasks that are left where they wait, and closes their connections.
    Ok(())
}

/// SIGTERM and SIGINT, as something to wait for: tokio's handler writes to a socket pair that its epoll watches. Signals
/// that come close together are one wake-up: so each is counted too, or the second one could be lost behind the first.
struct Stops {
    term: Signal,
    int: Signal,
    taken: usize,
}

impl Stops {
    fn new() -> Result<Self, Failed> {
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            let count = || {
                STOPS.fetch_add(1, SeqCst);
            };
            // SAFETY: adding to an atomic is async-signal-safe. Handlers run in this order: counted, then woken.
            unsafe { register(kind.as_raw_value(), count) }.context("sigaction")?;
        }
        Ok(Stops {
            term: signal(SignalKind::terminate()).context("sigaction SIGTERM")?,
            int: signal(SignalKind::interrupt()).context("sigaction SIGINT")?,
            taken: 0,
        })
    }

    /// Returns once for each signal.
    async fn next(&mut self) {
        while STOPS.load(SeqCst) == self.taken {
            tokio::select! {
                _ = self.term.recv() => {}
                _ = self.int.recv() => {}
            }
        }
        self.taken += 1;
    }
}

/// How long to leave the listener alone after an accept that failed.
fn accept_pause(error: &io::Error, backoff: &mut Backoff, log: &Log) -> Result<Duration, Failed> {
    log.repeated("WARN", &format!("accept: {error}"));
    let errno = error.raw_os_error().unwrap_or_default();
    match accept_failed(errno) {
        Verdict::Next => Ok(Duration::ZERO),
        // Not accept's errno: the library's accept is epoll_ctl too, which has no room left. It costs this client only.
        _ if errno == Errno::ENOSPC as i32 => Ok(Duration::ZERO),
        Verdict::Backoff => Ok(backoff.next(Instant::now())),
        Verdict::Fatal => Err(Failed::new(format!("accept: {error}"))),
    }
}

/// An accept that nobody was announced for. tokio watches edge-triggered: after an EAGAIN it waits for the next client to
/// announce itself, and one that is there already would wait for that one too.
fn look_again(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (conn, peer) = SockRef::from(listener).accept()?;
    conn.set_nonblocking(true)?;
    let conn = TcpStream::from_std(conn.into())?;
    // Not getpeername, which fails if the client has sent a reset meanwhile: that is no fault of the listener.
    Ok((conn, peer.as_socket().ok_or(io::ErrorKind::WouldBlock)?))
}

/// A place, and true; or a dead end and false, where there was no place for so long. Meanwhile the kernel's backlog holds
/// the clients. Where the dead ends are taken too, one of them is done in a second.
async fn free_place(
    places: &Arc<Semaphore>,
    dead_ends: &Arc<Semaphore>,
    patience: Duration,
) -> Result<(OwnedSemaphorePermit, bool), Failed> {
    let place = || Arc::clone(places).acquire_owned();
    let permit = match timeout(patience, place()).await {
        Ok(permit) => (permit, true),
        Err(_) => tokio::select! {
            permit = place() => (permit, true),
            permit = Arc::clone(dead_ends).acquire_owned() => (permit, false),
        },
    };
    Ok((permit.0.context("semaphore")?, permit.1))
}

/// A task's whole life. What it was given is dropped from the last to the first, also by a panic: the connection is
/// closed, and then the place is free.
async fn client(
    _place: OwnedSemaphorePermit,
    welcome: bool,
    mut conn: TcpStream,
    peer: SockAddr,
    mut stopping: watch::Receiver<bool>,
    args: Arc<Args>,
) {
    let mut service = match welcome {
        true => Conn::new(&args.limits, Instant::now()),
        false => Conn::refused(Refusal::Busy, &args.limits, Instant::now()),
    };
    let outcome = serve(&mut conn, &mut service, &mut stopping).await;
    args.log.client(&peer, &outcome);
}

/// Reads like a blocking server; at each `await` the thread goes on with another task.
async fn serve(conn: &mut TcpStream, service: &mut Conn, stopping: &mut watch::Receiver<bool>) -> io::Result<()> {
    let mut is_ending = false;
    loop {
        let deadline = service.deadline().into();
        match service.next() {
            Next::Read => tokio::select! {
                readable = timeout_at(deadline, conn.readable()) => match readable {
                    Ok(readable) => readable.and_then(|()| receive(conn, service))?,
                    Err(_) => service.expire(Instant::now()),
                },
                // Reading ends: what was received is still answered.
                _ = stopping.wait_for(|stop| *stop), if !is_ending => {
                    is_ending = true;
                    let _ = SockRef::from(&*conn).shutdown(Shutdown::Read);
                }
            },
            Next::Write => match timeout_at(deadline, conn.write(service.pending())).await {
                Ok(written) => service.consume(written?, Instant::now()),
                Err(_) => service.expire(Instant::now()),
            },
            Next::HangUp => {
                conn.shutdown().await?;
                service.hung_up(Instant::now());
            }
            Next::Close => return service.result(),
        }
    }
}

/// The buffer is on the thread's stack, and not in the task: an idle client costs none.
fn receive(conn: &TcpStream, service: &mut Conn) -> io::Result<()> {
    let mut buffer = [0; 4096];
    let room = service.room().min(buffer.len());
    match conn.try_read(buffer.get_mut(..room).unwrap_or_default()) {
        Ok(0) => service.eof(),
        Ok(n) => service.feed(buffer.get(..n).unwrap_or_default(), Instant::now()),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
        Err(e) => return Err(e),
    }
    Ok(())
}

//! TCP concurrent server: a task per client, as production code writes it, on tokio.
//!
//! Run: cargo run -p server08-tokio
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server07-io-uring
//! Next: none
//! Diff base: server05-threads
//! Overload: queue (beyond --max-conns nobody is accepted, and the backlog holds them)

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use common::cli::Limits;
use common::report::{self, Failed};
use common::service::{Conn, Next};
use common::sock::Backoff;
use common::descriptors::MaxConns;
use lifecycle::{Server, Signals};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest, unix::AsyncFd};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout, timeout_at};

/// TCP concurrent server: a task per client, on tokio
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    max_conns: MaxConns,
}

fn main() -> Result<(), Failed> {
    let args = Arc::new(Args::parse());
    let max_conns = args.max_conns.within(u64::MAX)?;
    let signals = Signals::new()?; // before the runtime makes its threads, which inherit what is blocked
    // What #[tokio::main] makes too: a thread per core, an epoll between them, and a queue of tasks that can go on.
    let threads = available_parallelism().map_or(1, |n| n.get());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    runtime.context("runtime")?.block_on(run(&args, max_conns, signals))?;
    args.server.log.cpu_time();
    Ok(())
}

async fn run(args: &Arc<Args>, max_conns: usize, signals: Signals) -> Result<(), Failed> {
    // SAFETY: the descriptor is open as long as its owner lives, and the registration has the owner.
    let signals = unsafe { AsyncFd::register(signals) }.context("epoll_ctl")?;
    let listener = args.server.listen()?;
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    report::ready(&listener);
    let listener = TcpListener::from_std(listener.into()).context("epoll_ctl")?;

    let (stop, stopping) = watch::channel(());
    let mut tasks = JoinSet::new();
    let mut backoff = Backoff::default();
    loop {
        // Whoever is first: the futures that lose are dropped, and an accept that is dropped has accepted nobody.
        tokio::select! {
            accepted = listener.accept(), if tasks.len() < max_conns => match accepted {
                Ok((conn, peer)) => {
                    let (args, stopping) = (Arc::clone(args), stopping.clone());
                    tasks.spawn(async move {
                        let outcome = serve(conn, &args.server.limits, stopping).await;
                        args.server.log.client(&peer.into(), &outcome);
                    });
                }
                // Never thread::sleep: it would take the thread from the tasks that it runs.
                Err(e) => sleep(backoff.pause("accept", &e, &args.server.log)?).await,
            },
            Some(_) = tasks.join_next() => {} // what an ended task leaves behind, also one that has panicked
            _ = signals.async_io(Interest::READABLE, Signals::read) => break,
        }
    }

    drop(listener); // close: new clients are rejected
    let _ = stop.send(());
    let all_gone = async { while tasks.join_next().await.is_some() {} };
    tokio::select! {
        _ = timeout(Duration::from_millis(args.server.limits.grace), all_gone) => {}
        _ = signals.async_io(Interest::READABLE, Signals::read) => {}
    }
    Ok(()) // drops the tasks that are left where they wait, and so closes their connections
}

/// A task's whole life. Reads like a blocking server; at each `await` the thread goes on with another task.
async fn serve(mut conn: TcpStream, limits: &Limits, mut stopping: watch::Receiver<()>) -> io::Result<()> {
    let mut service = Conn::new(limits, Instant::now());
    loop {
        let deadline = service.deadline().into();
        match service.next() {
            Next::Read => tokio::select! {
                read = timeout_at(deadline, conn.read(service.space())) => match read {
                    Ok(n) => service.received(n?, Instant::now()),
                    Err(_) => service.expire(Instant::now()),
                },
                // Reading ends: what was received is still answered.
                Ok(()) = stopping.changed() => drop(SockRef::from(&conn).shutdown(Shutdown::Read)),
            },
            Next::Write => match timeout_at(deadline, conn.write(service.pending())).await {
                Ok(n) => service.consume(n?, Instant::now()),
                Err(_) => service.expire(Instant::now()),
            },
            Next::ShutdownWrite => {
                conn.shutdown().await?;
                service.write_shut_down(Instant::now());
            }
            Next::Close => return service.result(),
        }
    }
}

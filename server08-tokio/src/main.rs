//! TCP concurrent server: one task per client on tokio, as production code is written.
//!
//! Run: cargo run -p server08-tokio
//! Try: cargo run -p client -- -i localhost -p 2000 -c 5 -t 10 -b 1024
//! Prev: server07-io-uring
//! Next: none
//! Diff base: server05-threads
//! Overload: queue (with --max-conns tasks, the other clients wait in the listener's backlog)

mod runtime;

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use common::descriptors::MaxConns;
use common::report::{self, Failed};
use common::service::{Conn, Next};
use common::sock::Backoff;
use lifecycle::{Server, Signals};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch::{self, Receiver};
use tokio::{select, task::JoinSet, time};

/// TCP concurrent server: one task per client on tokio
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    max_conns: MaxConns,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    // Before the runtime creates its threads: they inherit the signal mask.
    let signals = count_signals()?;
    // #[tokio::main] creates the same runtime, but panics if it cannot create a thread.
    runtime::start().context("runtime")?.block_on(run(args, signals))
}

async fn run(args: Args, mut signals: Receiver<u32>) -> Result<(), Failed> {
    let max_conns = args.max_conns.within(u64::MAX)?;
    let server = Arc::new(args.server);
    let listener = server.listen()?;
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    let listener = TcpListener::from_std(listener.into()).context("epoll_ctl")?;
    let (mut tasks, mut backoff) = (JoinSet::new(), Backoff::default());
    report::ready(&SockRef::from(&listener));

    loop {
        // Waits until one of the futures is ready, and drops the others. A dropped accept has taken
        // no client from the backlog.
        select! {
            accepted = listener.accept(), if tasks.len() < max_conns => match accepted {
                // Starts a task that serves this client. The loop does not wait for the task.
                Ok(client) => { tasks.spawn(serve(client, Arc::clone(&server), signals.clone())); }
                // A pause after EMFILE, or until a signal. thread::sleep would also block tasks.
                Err(e) => drop(time::timeout(
                    backoff.pause("accept", &e, &server.log)?, signals.clone().changed()).await),
            },
            Some(_) = tasks.join_next() => {} // a task has ended
            _ = signals.changed() => break,
        }
    }

    drop(listener); // close(2): the kernel refuses new clients
    // The tasks see the change of `signals` too. Wait for them, up to the shutdown timeout.
    let all_ended = async { while tasks.join_next().await.is_some() {} };
    select! {
        _ = time::timeout(Duration::from_millis(server.limits.grace), all_ended) => {}
        // A second signal ends the shutdown timeout.
        _ = signals.wait_for(|count| *count > 1) => {}
    }
    server.log.cpu_time();
    Ok(()) // drops the tasks that have not ended, and so closes their connections
}

/// The whole life of a task: it serves one client. A task that waits uses no thread and no stack.
async fn serve(client: (TcpStream, SocketAddr), server: Arc<Server>, mut signals: Receiver<u32>) {
    let (mut conn, peer) = client;
    let mut session = Conn::new(&server.limits, Instant::now());
    let mut outcome = Ok(());
    while outcome.is_ok() && session.next() != Next::Close {
        let deadline = session.deadline().into();
        select! {
            biased; // polls in this order: no timer is started for a step that is ready
            // Shutdown: ends the reading. What was received is still answered.
            Ok(()) = signals.changed() => drop(SockRef::from(&conn).shutdown(Shutdown::Read)),
            result = step(&mut conn, &mut session) => outcome = result,
            () = time::sleep_until(deadline) => session.expire(Instant::now()),
        }
    }
    server.log.client(&peer.into(), &outcome.and_then(|()| session.result()));
}

/// One read or one write. The code looks blocking, but at each `await` the thread can run another
/// task. `serve` may drop this future while it waits. No byte is lost, because a read or write that
/// waits has transferred nothing.
async fn step(conn: &mut TcpStream, session: &mut Conn) -> io::Result<()> {
    let now = Instant::now;
    match session.next() {
        Next::Read => conn.read(session.space()).await.map(|n| session.received(n, now())),
        Next::Write => conn.write(session.pending()).await.map(|n| session.consume(n, now())),
        Next::ShutdownWrite => conn.shutdown().await.map(|()| session.write_shut_down(now())),
        Next::Close => Ok(()),
    }
}

/// Starts a thread that counts SIGTERM and SIGINT. tokio::signal keeps a flag per signal instead of
/// a count: it reports two signals as one if the second arrives before a thread sees the first.
fn count_signals() -> Result<Receiver<u32>, Failed> {
    let signals = Signals::new()?;
    let (count, receiver) = watch::channel(0);
    let count_them = move || loop {
        if signals.wait().is_ok() {
            count.send_modify(|n| *n += 1);
        }
    };
    thread::Builder::new().spawn(count_them).context("clone")?;
    Ok(receiver)
}

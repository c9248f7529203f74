//! A TCP service that multiplies, adds, subtracts and divides. A request ends where its frame says,
//! and not where a recv ends.
//!
//! Run: cargo run -p multiply --bin multiply-server
//! Try: cargo run -p multiply --bin multiply-client -- 5 10
//! Prev: none
//! Next: none
//! Diff base: none
//! Overload: queue (up to --max-conns clients wait for a worker), then reject with `ERR busy`

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use common::cli;
use common::report::{self, Failed};
use lifecycle::{Server, shutdown};
use multiply::events::{Event, Events};
use multiply::frame::Framing;
use multiply::pool::{Action, Pool};
use multiply::request::Rejection;
use multiply::session::{INPUT, Next, Session};
use socket2::{SockAddr, Socket};

/// TCP service that multiplies two numbers; a pool of threads serves the clients
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    pool: cli::Pool,
    /// Clients at once, served or waiting for a worker; further clients are rejected with `ERR
    /// busy`
    #[arg(long, default_value_t = 64, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_conns: u16,
    /// Where a message ends
    #[arg(long, value_enum, default_value_t = Framing::Line)]
    framing: Framing,
    #[command(flatten)]
    events: Events,
}

fn main() -> Result<(), Failed> {
    let args = Arc::new(Args::parse());
    shutdown::on_signals(&args.server.limits)?;
    let listener = args.server.listen()?;
    shutdown::register(&listener);
    let shared = Arc::clone(&args);
    let serve = move |conn: &mut Socket, peer: &SockAddr, action| shared.serve(conn, peer, action);
    let pool = Pool::start(args.pool.workers, args.max_conns, serve)?;
    // The last line before the loop: everything that can fail at the start has succeeded.
    report::ready(&listener);

    while !shutdown::requested() {
        match listener.accept() {
            Ok((conn, peer)) => pool.add(conn, peer),
            // A signal arrived while accept slept.
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => args.server.accept_failed(&e)?,
        }
    }

    // The listener is shut down. The sessions that are open end now, or at the shutdown timeout.
    pool.end();
    args.server.log.cpu_time();
    Ok(())
}

impl Args {
    /// One client from the accept to the close.
    fn serve(&self, conn: &mut Socket, addr: &SockAddr, action: Action) {
        let (limits, now) = (&self.server.limits, Instant::now());
        let session = match action {
            // The time that the client has waited in the queue does not count.
            Action::Serve => Session::new(self.framing, limits, now),
            Action::Reject => Session::rejected(Rejection::Busy, self.framing, limits, now),
        };
        let peer = addr.as_socket().map(|addr| addr.to_string()).unwrap_or_default();
        self.events.emit(&Event::Connected { peer: &peer });
        let outcome = self.exchange(conn, session, &peer);
        self.server.log.client(addr, &outcome);
        let why = outcome.err().map_or("the client left".to_owned(), |e| e.to_string());
        self.events.emit(&Event::Closed { peer: &peer, why });
    }

    /// Makes the calls that the session needs, with blocking calls, until it is closed. One recv
    /// may return a part of a request, or several requests; the session finds out.
    fn exchange(&self, conn: &mut Socket, mut session: Session, peer: &str) -> io::Result<()> {
        let report = |message: &[u8], answer: &str| {
            let request = message.escape_ascii().to_string();
            self.server
                .log
                .info(&format!("client {peer}: received '{request}', answered {answer}"));
            self.events.emit(&Event::Request { peer, request, answer });
        };
        let mut buffer = [0; INPUT];
        loop {
            // Each call may block until the session's deadline, and no longer.
            let left = session.deadline().saturating_duration_since(Instant::now());
            if left.is_zero() {
                session.expire(Instant::now());
            }
            let left = left.max(Duration::from_millis(1));
            let step = match session.next() {
                // The bytes that have arrived: a part of a request, one, or several.
                Next::Read => {
                    conn.set_read_timeout(Some(left))?;
                    let room = buffer.get_mut(..session.room()).unwrap_or_default();
                    conn.read(room).map(|n| match room.get(..n) {
                        Some([]) | None => session.eof(),
                        Some(bytes) => session.feed(bytes, Instant::now(), report),
                    })
                }
                // The kernel may take a part of the answers. The rest stays pending.
                Next::Write => {
                    conn.set_write_timeout(Some(left))?;
                    let sent = conn.write(session.pending());
                    sent.map(|n| session.consume(n, Instant::now(), report))
                }
                // A FIN after an ERR line. A close with unread bytes would send a RST instead, and
                // the client could lose the line.
                Next::ShutdownWrite => {
                    session.write_shut_down(Instant::now());
                    conn.shutdown(Shutdown::Write)
                }
                Next::Close => return session.result(),
            };
            match step {
                // A signal, or the timeout of the call: the top of the loop checks the deadline.
                Err(e) if !matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {
                    return Err(e);
                }
                _ => {}
            }
        }
    }
}

//! A listener whose accept queue is full: who gets in, what the others see, and what the kernel counts.
//!
//! Run: cargo run -p backlog
//! Try: cargo run -p backlog -- retry

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use backlog::probe::{ESTABLISHED, SYN_SENT, client, counter, info, listener, received, told, wait_for};
use backlog::{Stop, finish, network, say};
use clap::{Parser, Subcommand};
use nix::errno::Errno;
use socket2::Socket;

/// The first retry of a SYN comes after a second: a look before that sees who was let in at once.
const BEFORE_THE_RETRY: Duration = Duration::from_millis(900);
/// A burst that is not served by then is shown as it is.
const LONGEST_BURST: Duration = Duration::from_secs(8);

/// A listener whose accept queue is full. Runs in a network namespace of its own: nothing of the machine's is touched
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    experiment: Option<Experiment>,
}

#[derive(Subcommand)]
enum Experiment {
    /// Who gets in: listen(N), nobody accepts, and more clients come than there is room for (the default)
    Queue {
        /// The number given to listen(2); may be repeated
        #[arg(long, value_name = "N", default_values_t = [0, 1, 3], value_parser = clap::value_parser!(i32).range(0..=500))]
        backlog: Vec<i32>,
        /// Clients beyond that number
        #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(i32).range(0..=100))]
        extra: i32,
        /// net.core.somaxconn of the namespace
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_535))]
        somaxconn: Option<u32>,
        /// Show the last one with ss(8) too
        #[arg(long)]
        ss: bool,
    },
    /// When the client that was dropped sends its SYN again
    Retry {
        /// How long it is watched, in seconds
        #[arg(long, default_value_t = 6, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=60))]
        watch: u64,
        /// net.ipv4.tcp_syn_linear_timeouts: so many retries are a second apart, then each takes twice as long
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=127))]
        linear: Option<u32>,
        /// TCP_SYNCNT of the client: so many retries beyond the linear ones, then it gives up. Nobody accepts meanwhile
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=127))]
        give_up: Option<u32>,
    },
    /// What tcp_abort_on_overflow changes: nothing for a SYN, all for a handshake that ends late
    Abort,
    /// A burst of clients at a short queue, which is the bug, and at a long one, which is the cure
    Burst {
        /// Clients that come at once
        #[arg(long, default_value_t = 12, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
        clients: u32,
        /// The server accepts one every so many milliseconds
        #[arg(long, default_value_t = 10, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=100))]
        every: u64,
        /// net.ipv4.tcp_syncookies of the namespace: with 0, a SYN that finds no room for its request is dropped
        #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1))]
        syncookies: u32,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    finish("backlog", network::enter().and_then(|()| run(args)))
}

fn run(args: Args) -> Result<(), Stop> {
    match args.experiment {
        None => queue(&[0, 1, 3], 5, None, false),
        Some(Experiment::Queue { backlog, extra, somaxconn, ss }) => queue(&backlog, extra, somaxconn, ss),
        Some(Experiment::Retry { watch, linear, give_up }) => retry(Duration::from_secs(watch), linear, give_up),
        Some(Experiment::Abort) => abort(),
        Some(Experiment::Burst { clients, every, syncookies }) => {
            network::set("ipv4/tcp_syncookies", syncookies)?;
            burst(clients, Duration::from_millis(every))
        }
    }
}

fn queue(backlogs: &[i32], extra: i32, somaxconn: Option<u32>, ss: bool) -> Result<(), Stop> {
    if let Some(most) = somaxconn {
        network::set("core/somaxconn", most)?;
    }
    say("listen(N)  clients  ESTAB  SYN-SENT  error  Recv-Q  Send-Q  ListenOverflows  ListenDrops");
    for backlog in backlogs {
        let (overflows, drops) = (counter("ListenOverflows")?, counter("ListenDrops")?);
        let (listener, addr) = listener(*backlog)?;
        let mut clients = Vec::new();
        for _ in 0..*backlog + extra {
            // One after the other: of SYNs that come together, all pass a queue that has room for one.
            let dropped = counter("ListenOverflows")?;
            let client = client(addr)?;
            wait_for::<Stop>(BEFORE_THE_RETRY, || {
                Ok(info(&client)?.state == ESTABLISHED || counter("ListenOverflows")? > dropped)
            })?;
            clients.push(client);
        }
        let count = |state| clients.iter().filter(|c| info(c).is_ok_and(|info| info.state == state)).count();
        let failed = clients.iter().filter(|client| !matches!(client.take_error(), Ok(None))).count();
        let of = info(&listener).context("getsockopt TCP_INFO")?;
        say(&format!(
            "{backlog:>9}  {:>7}  {:>5}  {:>8}  {failed:>5}  {:>6}  {:>6}  {:>15}  {:>11}",
            clients.len(),
            count(ESTABLISHED),
            count(SYN_SENT),
            of.queued,
            of.limit,
            counter("ListenOverflows")? - overflows,
            counter("ListenDrops")? - drops
        ));
        if ss && Some(backlog) == backlogs.last() {
            show(&["-ltn"])?;
            show(&["-tn", "state", "syn-sent"])?;
        }
    }
    let (listener, addr) = listener(1)?;
    drop(listener);
    let refused =
        client(addr).and_then(|client| Ok(client.take_error()?.map_or("connected".into(), |e| e.to_string())));
    say(&format!("and where nobody listens: {}", refused.unwrap_or_else(|e| format!("{e:#}"))));
    Ok(())
}

/// ss runs in this namespace, as every child of this process does.
fn show(args: &[&str]) -> Result<(), Stop> {
    let printed = Command::new("ss").args(args).stdin(Stdio::null()).output();
    let printed = printed.map_err(|e| Stop::Unavailable(format!("ss: {e}; it comes with iproute2")))?;
    say(&format!("\n$ ss {}\n{}", args.join(" "), String::from_utf8_lossy(&printed.stdout).trim_end()));
    Ok(())
}

fn retry(watch: Duration, linear: Option<u32>, give_up: Option<u32>) -> Result<(), Stop> {
    if let Some(retries) = linear {
        network::set("ipv4/tcp_syn_linear_timeouts", retries)?;
    }
    let (listener, addr) = listener(0)?;
    let _first = connected(addr)?;
    let dropped = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).context("socket")?;
    dropped.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    if let Some(retries) = give_up {
        set_option(&dropped, libc::TCP_SYNCNT, retries as libc::c_int).context("setsockopt TCP_SYNCNT")?;
    }
    let start = Instant::now();
    let _ = dropped.connect(&addr.into()); // EINPROGRESS
    say(" 0.00 s  SYN sent, and dropped: the accept queue is full");
    let mut seen = 0;
    let ended = wait_for(watch, || {
        let now = info(&dropped).context("getsockopt TCP_INFO")?;
        if now.retransmitted > seen && now.state == SYN_SENT {
            seen = now.retransmitted;
            say(&format!("{:5.2} s  retry {seen}", start.elapsed().as_secs_f64()));
        }
        Ok::<_, Stop>(now.state != SYN_SENT)
    })?;
    if ended || give_up.is_some() {
        say(&format!("{:5.2} s  the client is told: {}", start.elapsed().as_secs_f64(), told(&dropped)));
        return Ok(());
    }
    say(&format!("{:5.2} s  the server accepts one: there is room", start.elapsed().as_secs_f64()));
    let _accepted = listener.accept().context("accept")?;
    // The client does not learn of the room: it waits for its next retry.
    wait_for(Duration::from_secs(70), || Ok::<_, Stop>(info(&dropped)?.state != SYN_SENT))?;
    say(&format!("{:5.2} s  the client: {}", start.elapsed().as_secs_f64(), told(&dropped)));
    Ok(())
}

fn abort() -> Result<(), Stop> {
    say("                                 tcp_abort_on_overflow  the client is told, within 1.5 s");
    for value in [0, 1] {
        network::set("ipv4/tcp_abort_on_overflow", value)?;
        let (_listener, addr) = listener(0)?;
        let _in_the_queue = connected(addr)?;
        let dropped = client(addr)?;
        wait_for(Duration::from_millis(1500), || Ok::<_, Stop>(info(&dropped)?.state != SYN_SENT))?;
        say(&format!("SYN meets a full queue           {value:>21}  {}", told(&dropped)));
    }
    for value in [0, 1] {
        network::set("ipv4/tcp_abort_on_overflow", value)?;
        say(&format!("handshake ends at a full queue   {value:>21}  {}", late()?));
    }
    Ok(())
}

/// A handshake whose last step comes late: with TCP_DEFER_ACCEPT a connection enters the accept queue with its first
/// data, so there may be more of them on the way than there is room. On a real network the round trip does that.
fn late() -> Result<String, Stop> {
    let (listener, addr) = listener(1)?;
    set_option(&listener, libc::TCP_DEFER_ACCEPT, 30).context("setsockopt TCP_DEFER_ACCEPT")?;
    let queued = |many| wait_for(BEFORE_THE_RETRY, || Ok::<_, Stop>(info(&listener)?.queued >= many));
    // Two may be on the way at once, so the third comes when the first has arrived.
    let (one, two) = (connected(addr)?, connected(addr)?);
    one.send(b"1").context("send")?;
    queued(1)?;
    let three = connected(addr)?;
    two.send(b"2").context("send")?;
    queued(2)?;
    three.send(b"3").context("send")?;
    let mut error = None;
    wait_for(Duration::from_millis(1500), || {
        error = three.take_error().context("getsockopt SO_ERROR")?;
        Ok::<_, Stop>(error.is_some())
    })?;
    Ok(match error {
        Some(e) => Errno::from_raw(e.raw_os_error().unwrap_or_default()).to_string(),
        None => format!("{}, and the server has {} others", told(&three), info(&listener)?.queued),
    })
}

/// A client that has seen its handshake end.
fn connected(addr: std::net::SocketAddr) -> Result<Socket, Stop> {
    let client = client(addr)?;
    match wait_for(BEFORE_THE_RETRY, || Ok::<_, Stop>(info(&client)?.state == ESTABLISHED))? {
        true => Ok(client),
        false => Err(anyhow::anyhow!("connect {addr}: {}", told(&client)).into()),
    }
}

/// A client of a burst, and when it saw what, in seconds.
struct Seen {
    client: Socket,
    connected: Option<f64>,
    greeted: Option<f64>,
}

fn burst(clients: u32, every: Duration) -> Result<(), Stop> {
    for (name, backlog) in [("bug", 1), ("cure", 128)] {
        let (overflows, cookies) = (counter("ListenOverflows")?, counter("SyncookiesSent")?);
        let (listener, addr) = listener(backlog)?;
        let start = Instant::now();
        let mut seen = Vec::new();
        for _ in 0..clients {
            seen.push(Seen { client: client(addr)?, connected: None, greeted: None });
        }
        let mut accepted = Vec::new();
        while seen.iter().any(|seen| seen.greeted.is_none()) && start.elapsed() < LONGEST_BURST {
            match listener.accept() {
                Ok((conn, _)) => {
                    conn.send(b"hello\n").context("send")?;
                    accepted.push(conn);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(anyhow::Error::new(e).context("accept").into()),
            }
            std::thread::sleep(every); // the work that keeps this server from accepting
            for seen in &mut seen {
                look(seen, start.elapsed().as_secs_f64());
            }
        }
        let times = |time: fn(&Seen) -> Option<f64>| {
            seen.iter()
                .map(|seen| time(seen).map_or("never".into(), |s| format!("{s:.2}")))
                .collect::<Vec<_>>()
                .join(" ")
        };
        say(&format!("{name:4} listen({backlog}): connected after {} s", times(|seen| seen.connected)));
        say(&format!("{name:4} listen({backlog}): greeted after   {} s", times(|seen| seen.greeted)));
        let count = |name: &str, before: u64| counter(name).map(|now| now - before);
        say(&format!(
            "     ListenOverflows {}, SyncookiesSent {}",
            count("ListenOverflows", overflows)?,
            count("SyncookiesSent", cookies)?
        ));
    }
    Ok(())
}

fn look(seen: &mut Seen, now: f64) {
    if seen.connected.is_none() && info(&seen.client).is_ok_and(|info| info.state == ESTABLISHED) {
        seen.connected = Some(now);
    }
    if seen.greeted.is_none() && received(&mut seen.client) == "hello" {
        seen.greeted = Some(now);
    }
}

/// setsockopt of an int, at the level of TCP.
fn set_option(socket: &Socket, option: libc::c_int, value: libc::c_int) -> std::io::Result<()> {
    let (from, len) = ((&raw const value).cast(), std::mem::size_of_val(&value) as libc::socklen_t);
    // SAFETY: the kernel reads one int.
    let rc = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, option, from, len) };
    Errno::result(rc).map(drop).map_err(Into::into)
}

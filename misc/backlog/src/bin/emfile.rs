//! Out of descriptors at accept: what a server does that did not think of it, and four cures.
//!
//! Run: cargo run -p backlog --bin emfile
//! Try: cargo run -p backlog --bin emfile -- --mode naive

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use backlog::probe::{client, info, listener, received, wait_for};
use backlog::{Stop, finish, network, say};
use clap::{Parser, ValueEnum};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use socket2::{Domain, Socket, Type};

/// Free descriptors while the server runs, and one more where a mode keeps one for itself.
const ROOM: usize = 4;
/// Clients that come.
const CLIENTS: usize = 8;
/// Clients that leave later, so that descriptors come free.
const LEAVING: usize = 2;
/// The first pause of `backoff`; each further one is twice as long ...
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// ... up to this.
const LONGEST_PAUSE: Duration = Duration::from_millis(320);
/// How long each of the two later phases is watched.
const LATER: Duration = Duration::from_millis(400);

/// Out of descriptors at accept. Eight clients come to a server that can hold four; two leave; one more comes
#[derive(Parser)]
struct Args {
    /// Only these; otherwise all
    #[arg(long, value_enum)]
    mode: Vec<Mode>,
    /// How long the server is watched while it has no descriptor, in ms
    #[arg(long, default_value_t = 500, value_name = "MS", value_parser = clap::value_parser!(u64).range(100..=10_000))]
    watch: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Bug: level-triggered, goes on as if nothing was
    Naive,
    /// Bug: edge-triggered, goes on as if nothing was
    Edge,
    /// Bug: ends at the error
    Quit,
    /// Cure: pauses, twice as long each time
    Backoff,
    /// Cure: does not watch the listener until a descriptor is free
    Unwatch,
    /// Cure: gives up a spare descriptor to accept the client and say no
    Reserve,
    /// Cure: takes fewer clients than it has descriptors, so that it never happens
    Limit,
}

fn main() -> ExitCode {
    let args = Args::parse();
    finish("emfile", network::enter().and_then(|()| run(&args)))
}

fn run(args: &Args) -> Result<(), Stop> {
    say("              EMFILE  wake-ups  CPU ms  greeted  busy  reset  waiting  then 2 leave  then 1 comes");
    let all = Mode::value_variants();
    for mode in all.iter().filter(|mode| args.mode.is_empty() || args.mode.contains(mode)) {
        let (bug, name) = match mode {
            Mode::Naive | Mode::Edge | Mode::Quit => ("bug ", format!("{mode:?}").to_lowercase()),
            _ => ("cure", format!("{mode:?}").to_lowercase()),
        };
        say(&format!("{bug} {name:7} {}", experiment(*mode, Duration::from_millis(args.watch))?));
    }
    Ok(())
}

/// A client, and what it has been told.
struct Client {
    socket: Socket,
    heard: String,
}

/// Three phases, each seen by the clients: eight come; two of those that were greeted leave; one more comes.
fn experiment(mode: Mode, watch: Duration) -> Result<String, Stop> {
    // The clients are in this process too, so all their descriptors are made before the limit is set.
    let (listener, addr) = listener(64)?;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Client { socket: client(addr)?, heard: String::new() });
    }
    wait_for(watch, || Ok::<_, Stop>(info(&listener)?.queued == CLIENTS as u32))?;
    let late = Socket::new(Domain::IPV4, Type::STREAM, None).context("socket")?;
    late.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    let mut server = Server::new(mode, listener)?;

    let _limit = Limit::leave_free(ROOM)?;
    let before = cpu()?;
    server.serve(watch)?;
    let (failed, wakes, cpu) = (server.failed, server.wakes, cpu()? - before);
    let [greeted, busy, reset, waiting] = hear(&mut clients);

    for client in clients.iter().filter(|client| client.heard == "hello").take(LEAVING) {
        // Not a close, which would give the server a descriptor of the client's: they are in one process here.
        let _ = client.socket.shutdown(Shutdown::Write);
    }
    server.serve(LATER)?;
    let [later, ..] = hear(&mut clients);
    let _ = late.connect(&addr.into()); // EINPROGRESS
    clients.push(Client { socket: late, heard: String::new() });
    server.serve(LATER)?;
    let [now, ..] = hear(&mut clients);
    Ok(format!(
        "{failed:>7}  {wakes:>8}  {:>6.1}  {greeted:>7}  {busy:>4}  {reset:>5}  {waiting:>7}  {:>12}  {:>12}",
        cpu * 1e3,
        format!("{} greeted", later - greeted),
        format!("{} greeted", now - later)
    ))
}

/// Reads what the clients have been told: how many were greeted, told `ERR busy`, cut off without a word, and told nothing.
fn hear(clients: &mut [Client]) -> [usize; 4] {
    for client in clients.iter_mut().filter(|client| client.heard.is_empty()) {
        client.heard = received(&mut client.socket);
    }
    let count = |what: &dyn Fn(&str) -> bool| clients.iter().filter(|client| what(&client.heard)).count();
    let (greeted, busy, waiting) =
        (count(&|heard| heard == "hello"), count(&|heard| heard == "ERR busy"), count(&str::is_empty));
    [greeted, busy, clients.len() - greeted - busy - waiting, waiting]
}

/// An event loop that greets its clients and keeps them.
struct Server {
    mode: Mode,
    epoll: Epoll,
    /// `None` once a server of mode `quit` has ended.
    listener: Option<Socket>,
    conns: BTreeMap<RawFd, Socket>,
    reserve: Option<File>,
    /// The listener is not watched until then, or for ever: until a descriptor is free.
    resume: Option<Option<Instant>>,
    pause: Duration,
    failed: u64,
    wakes: u64,
}

impl Server {
    fn new(mode: Mode, listener: Socket) -> Result<Server, Stop> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
        let edge = if mode == Mode::Edge { EpollFlags::EPOLLET } else { EpollFlags::empty() };
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN | edge, fd_of(&listener))).context("epoll_ctl")?;
        let reserve = match mode {
            Mode::Reserve => Some(File::open("/dev/null").context("open /dev/null")?),
            _ => None,
        };
        let (conns, pause) = (BTreeMap::new(), FIRST_PAUSE);
        let listener = Some(listener);
        Ok(Server { mode, epoll, listener, conns, reserve, resume: None, pause, failed: 0, wakes: 0 })
    }

    fn serve(&mut self, time: Duration) -> Result<(), Stop> {
        let end = Instant::now() + time;
        while self.listener.is_some() && Instant::now() < end {
            let wake = match self.resume {
                Some(Some(at)) if at <= Instant::now() => {
                    self.watch()?;
                    continue;
                }
                Some(Some(at)) => at.min(end),
                _ => end,
            };
            let left = wake.saturating_duration_since(Instant::now()).as_millis() as u16 + 1;
            let mut events = [EpollEvent::empty(); 16];
            let ready = match self.epoll.wait(&mut events, EpollTimeout::from(left)) {
                Err(nix::errno::Errno::EINTR) => 0,
                ready => ready.context("epoll_wait")?,
            };
            self.wakes += u64::from(ready > 0);
            for event in events.iter().take(ready) {
                match self.conns.contains_key(&(event.data() as RawFd)) {
                    true => self.readable(event.data() as RawFd)?,
                    false => self.acceptable()?,
                }
            }
        }
        Ok(())
    }

    /// One client for an event; after an edge there is no other event for the rest, so all of them.
    fn acceptable(&mut self) -> Result<(), Stop> {
        while let Some(listener) = &self.listener {
            match listener.accept() {
                Ok((conn, _)) if self.mode == Mode::Limit && self.conns.len() >= ROOM - 1 => tell(conn, "ERR busy\n"),
                Ok((conn, _)) => self.greet(conn)?,
                Err(e) if e.raw_os_error() == Some(libc::EMFILE) => {
                    self.failed += 1;
                    return self.out_of_descriptors();
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(anyhow::Error::new(e).context("accept").into()),
            }
            if self.mode != Mode::Edge {
                return Ok(());
            }
        }
        Ok(())
    }

    /// accept(2) said EMFILE. The connection that it was about is still in the queue: the event will come again at
    /// once, level-triggered, and never again, edge-triggered.
    fn out_of_descriptors(&mut self) -> Result<(), Stop> {
        match self.mode {
            Mode::Naive | Mode::Edge => {}
            Mode::Quit => {
                self.listener = None;
                self.conns.clear();
            }
            Mode::Backoff => {
                self.unwatch(Some(Instant::now() + self.pause))?;
                self.pause = LONGEST_PAUSE.min(self.pause * 2);
            }
            Mode::Unwatch | Mode::Limit => self.unwatch(None)?,
            Mode::Reserve => {
                self.reserve = None; // close: one descriptor is free, and nobody else in this process takes it
                if let Some(Ok((conn, _))) = self.listener.as_ref().map(Socket::accept) {
                    tell(conn, "ERR busy\n");
                }
                self.reserve = File::open("/dev/null").ok();
            }
        }
        Ok(())
    }

    fn unwatch(&mut self, until: Option<Instant>) -> Result<(), Stop> {
        if let Some(listener) = &self.listener {
            self.epoll.delete(listener).context("epoll_ctl")?;
        }
        self.resume = Some(until);
        Ok(())
    }

    fn watch(&mut self) -> Result<(), Stop> {
        if let Some(listener) = &self.listener {
            // Level-triggered: what is in the queue is reported at once.
            let event = EpollEvent::new(EpollFlags::EPOLLIN, fd_of(listener));
            self.epoll.add(listener, event).context("epoll_ctl")?;
        }
        self.resume = None;
        Ok(())
    }

    fn greet(&mut self, conn: Socket) -> Result<(), Stop> {
        conn.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
        self.epoll.add(&conn, EpollEvent::new(EpollFlags::EPOLLIN, fd_of(&conn))).context("epoll_ctl")?;
        let _ = (&conn).write_all(b"hello\n");
        self.pause = FIRST_PAUSE;
        self.conns.insert(conn.as_raw_fd(), conn);
        Ok(())
    }

    /// A client has left: its descriptor is free.
    fn readable(&mut self, fd: RawFd) -> Result<(), Stop> {
        let over = |conn: &mut Socket| !matches!(conn.read(&mut [0; 64]), Ok(1..) | Err(_));
        if self.conns.get_mut(&fd).is_some_and(over) {
            self.conns.remove(&fd);
            if self.resume == Some(None) {
                self.watch()?;
            }
        }
        Ok(())
    }
}

/// One line, and the end.
fn tell(conn: Socket, line: &str) {
    let _ = (&conn).write_all(line.as_bytes());
}

fn fd_of(socket: &Socket) -> u64 {
    socket.as_raw_fd() as u64
}

/// RLIMIT_NOFILE while it lives; the old one afterwards.
struct Limit(u64, u64);

impl Limit {
    /// The limit is a bound on the *number* of a descriptor: lower numbers that are not in use are what is left.
    fn leave_free(room: usize) -> Result<Limit, Stop> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit")?;
        let mut free = (0..i32::MAX).filter(|fd| !is_open(*fd));
        let beyond = free.nth(room).unwrap_or_default() as u64;
        if beyond > soft {
            return Err(anyhow::anyhow!("RLIMIT_NOFILE of {soft} is too low for this experiment").into());
        }
        setrlimit(Resource::RLIMIT_NOFILE, beyond, hard).context("setrlimit")?;
        Ok(Limit(soft, hard))
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, self.0, self.1);
    }
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD reads a flag, or fails.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

fn cpu() -> Result<f64, Stop> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("getrusage")?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

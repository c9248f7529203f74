//! The same service over sockets, to compare with the FIFO: a Unix socket, where the kernel says
//! who asks, and TCP on loopback, where nobody does.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use common::report::Failed;
use common::sock::Backoff;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::events::{Event, Events};
use crate::ms;
use crate::numbers::Numbers;
use crate::record::Decoder;
use crate::rundir::my_uid;

/// Connections of one listener at once; the next clients stay in its backlog. Each listener has its
/// own limit: TCP clients, which may be any user's, cannot keep the owner's Unix clients out.
const MAX_CONNS: usize = 64;

/// The options of the sockets.
#[derive(Args, Clone, Copy, Debug)]
pub struct SocketOptions {
    /// Also serve on this TCP port of 127.0.0.1; 0 lets the kernel choose a free one
    #[arg(long, value_name = "PORT")]
    tcp: Option<u16>,
    /// Time in ms from the first byte of a question on a connection to its last byte
    #[arg(long, default_value_t = 10_000, value_name = "MS", value_parser = ms(1))]
    line_timeout: u64,
    /// Time in ms a connection may stay silent between questions
    #[arg(long, default_value_t = 60_000, value_name = "MS", value_parser = ms(1))]
    idle_timeout: u64,
}

impl SocketOptions {
    fn line_timeout(&self) -> Duration {
        Duration::from_millis(self.line_timeout)
    }

    fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout)
    }
}

/// The listeners and their connections.
#[derive(Debug)]
pub struct Sockets {
    listeners: Vec<Listener>,
    options: SocketOptions,
    /// The pauses after a call that failed because the process is out of memory or descriptors.
    pub backoff: Backoff,
}

#[derive(Debug)]
struct Listener {
    socket: Socket,
    conns: Vec<Conn>,
}

#[derive(Debug)]
struct Conn {
    stream: Socket,
    decoder: Decoder,
    /// The client's pid. The kernel stored it at connect(2). Zero for TCP, where there is none.
    pid: i32,
    from: &'static str,
    deadline: Instant,
}

impl Sockets {
    /// Listens on the Unix socket `sock` in `dir`, and on a TCP port if one is given.
    ///
    /// # Errors
    /// One line that names the call, the address and the errno.
    pub fn listen(dir: &Path, options: SocketOptions) -> Result<Self> {
        let path = dir.join("sock");
        let unix = listen_unix(&path).with_context(|| format!("listen {}", path.display()))?;
        let tcp = options.tcp.map(listen_tcp).transpose()?;
        let listeners = [unix].into_iter().chain(tcp);
        let listeners = listeners.map(|socket| Listener { socket, conns: Vec::new() }).collect();
        Ok(Self { listeners, options, backoff: Backoff::default() })
    }

    /// The TCP address, if there is one.
    #[must_use]
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        self.listeners.iter().find_map(|listener| listener.socket.local_addr().ok()?.as_socket())
    }

    /// What poll has to watch: each listener, followed by its connections. A listener that is full
    /// or paused is watched for nothing, so that each descriptor keeps its place.
    pub fn poll_fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        self.listeners.iter().flat_map(|listener| {
            let is_full = listener.conns.len() >= MAX_CONNS;
            let is_accepting = !is_full && self.backoff.until().is_none();
            let interest = if is_accepting { PollFlags::POLLIN } else { PollFlags::empty() };
            let conns = listener.conns.iter();
            let conns = conns.map(|conn| PollFd::new(conn.stream.as_fd(), PollFlags::POLLIN));
            [PollFd::new(listener.socket.as_fd(), interest)].into_iter().chain(conns)
        })
    }

    /// When [`serve`](Self::serve) has something to do, although no descriptor is ready.
    pub fn deadline(&self) -> Option<Instant> {
        let conns = self.listeners.iter().flat_map(|listener| &listener.conns);
        conns.map(|conn| conn.deadline).chain(self.backoff.until()).min()
    }

    /// Serves the connections that are ready and closes those that are late. `ready` has one
    /// element for each of [`poll_fds`](Self::poll_fds), in the same order.
    ///
    /// # Errors
    /// A listener can no longer be used.
    pub fn serve(
        &mut self,
        ready: &mut impl Iterator<Item = bool>,
        numbers: &mut Numbers,
        events: &mut Events,
    ) -> Result<(), Failed> {
        self.backoff.expire(Instant::now());
        for listener in &mut self.listeners {
            // The listener first, then its connections: the order of poll_fds.
            let is_acceptable = ready.next() == Some(true);
            let open = listener.conns.len();
            listener.conns.retain_mut(|conn| {
                let step = match ready.next() == Some(true) {
                    true => conn.read(self.options, numbers, events),
                    false => conn.check_deadline(),
                };
                if let Err(why) = step {
                    events.emit(&Event::Closed { pid: conn.pid, why });
                }
                step.is_ok()
            });
            if listener.conns.len() < open {
                self.backoff.end(); // a descriptor is free: the next accept may succeed
            }
            // Last, so that a new connection does not get the readiness of an old one.
            if is_acceptable {
                accept(listener, self.options, &mut self.backoff, events)?;
            }
        }
        Ok(())
    }
}

fn accept(
    listener: &mut Listener,
    options: SocketOptions,
    backoff: &mut Backoff,
    events: &Events,
) -> Result<(), Failed> {
    let (stream, peer) = match listener.socket.accept() {
        Ok(accepted) => accepted,
        Err(e) => return backoff.pause("accept", &e, events.log()).map(|_| ()),
    };
    let (pid, from) = match peer.is_unix() {
        // The directory is private already. The check shows how a server identifies its peer.
        true => match getsockopt(&stream, PeerCredentials) {
            Ok(peer) if peer.uid() == my_uid() => (peer.pid(), "unix"),
            _ => return Ok(()),
        },
        // TCP gives an address and no process: any user of this machine may ask.
        false => (0, "tcp"),
    };
    if stream.set_nonblocking(true).is_ok() {
        let deadline = Instant::now() + options.line_timeout();
        listener.conns.push(Conn { stream, decoder: Decoder::default(), pid, from, deadline });
    }
    Ok(())
}

impl Conn {
    fn check_deadline(&self) -> Result<(), &'static str> {
        match self.deadline <= Instant::now() {
            true => Err("no whole question in time"),
            false => Ok(()),
        }
    }

    /// Reads once, and answers all questions that are complete now. The error says why the
    /// connection has to be closed.
    fn read(
        &mut self,
        options: SocketOptions,
        numbers: &mut Numbers,
        events: &mut Events,
    ) -> Result<(), &'static str> {
        let mut buffer = [0u8; libc::PIPE_BUF];
        let n = match self.stream.read(&mut buffer) {
            Ok(0) => return Err("the client left"),
            Ok(n) => n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(());
            }
            Err(_) => return Err("read failed"),
        };
        let is_first_byte = self.decoder.is_empty();
        self.decoder.feed(buffer.get(..n).unwrap_or_default());
        // One write for all answers: a client may send several questions at once.
        let mut out = Vec::new();
        while let Some(question) = self.decoder.next_question() {
            events.emit(&Event::question(self.pid, &question, self.from));
            let answer = numbers.answer(question.nonce, question.n);
            events.emit(&Event::answer(self.pid, &answer));
            out.extend(answer.to_bytes());
        }
        // A deadline is for a whole question: a byte now and then does not move it.
        let now = Instant::now();
        match (out.is_empty(), self.decoder.is_empty()) {
            (false, true) => self.deadline = now + options.idle_timeout(),
            (false, false) => self.deadline = now + options.line_timeout(),
            (true, _) if is_first_byte => {
                self.deadline = self.deadline.min(now + options.line_timeout())
            }
            (true, _) => {}
        }
        // The socket is non-blocking: when its buffer is full, write fails with EAGAIN.
        self.stream.write_all(&out).map_err(|_| "the client does not read its answers")?;
        events.add_junk(self.decoder.junk);
        // A connection has one sender: what follows such bytes is not a question either.
        if self.decoder.junk > 0 { Err("not a question") } else { Ok(()) }
    }
}

fn listen_unix(path: &Path) -> io::Result<Socket> {
    // bind makes the name. RunDir has removed the name that a killed server left.
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    listener.bind(&SockAddr::unix(path)?)?;
    listener.listen(lifecycle::BACKLOG)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn listen_tcp(port: u16) -> Result<Socket> {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).context("socket")?;
    listener.set_reuse_address(true).context("setsockopt SO_REUSEADDR")?;
    listener.bind(&addr.into()).with_context(|| format!("bind {addr}"))?;
    listener.listen(lifecycle::BACKLOG).with_context(|| format!("listen {addr}"))?;
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    Ok(listener)
}

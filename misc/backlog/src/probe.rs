//! Listeners, non-blocking clients, and what the kernel reports about both.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::mem;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

use crate::Stop;

/// The state of a TCP socket after its handshake, as the kernel numbers it (net/tcp_states.h).
pub const ESTABLISHED: u8 = 1;
/// The state after connect(2) has sent a SYN and no answer has arrived.
pub const SYN_SENT: u8 = 2;

/// The first retry of a SYN is sent after one second. A check before that time sees which clients
/// connected at the first attempt.
const BEFORE_RETRY: Duration = Duration::from_millis(900);
/// The time between two checks in [`wait_for`].
const INTERVAL: Duration = Duration::from_millis(2);

/// A non-blocking TCP socket.
///
/// # Errors
/// The call that failed.
pub fn socket() -> anyhow::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).context("socket")?;
    socket.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    Ok(socket)
}

/// A non-blocking listener on a port that the kernel chooses: bind(2), then listen(2).
///
/// # Errors
/// The call that failed.
pub fn listen(backlog: i32) -> anyhow::Result<(Socket, SocketAddr)> {
    let listener = socket()?;
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    listener.bind(&any_port.into()).with_context(|| format!("bind {any_port}"))?;
    listener.listen(backlog).with_context(|| format!("listen {any_port}"))?;
    let addr = listener.local_addr().context("getsockname")?.as_socket().context("getsockname")?;
    Ok((listener, addr))
}

/// A client whose connect(2) returns EINPROGRESS: the kernel continues the handshake.
///
/// # Errors
/// The call that failed.
pub fn connect(addr: SocketAddr) -> anyhow::Result<Socket> {
    let client = socket()?;
    match client.connect(&addr.into()) {
        Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => {
            Err(e).with_context(|| format!("connect {addr}"))
        }
        _ => Ok(client),
    }
}

/// A client whose handshake has completed.
///
/// # Errors
/// A call failed, or the handshake did not complete within 0.9 s.
pub fn connected(addr: SocketAddr) -> Result<Socket, Stop> {
    let client = connect(addr)?;
    let check = || Ok::<_, Stop>(info(&client)?.state == ESTABLISHED);
    match wait_for(BEFORE_RETRY, check)? {
        true => Ok(client),
        false => Err(anyhow!("connect {addr}: {}", result(&client)).into()),
    }
}

/// Waits until the client is connected or the kernel has counted its SYN as dropped. Of several
/// SYNs that arrive at the same time, all pass a queue that has room for one.
///
/// # Errors
/// A call failed.
pub fn wait_connected_or_dropped(client: &Socket, overflows: u64) -> Result<(), Stop> {
    let check = || {
        Ok::<_, Stop>(info(client)?.state == ESTABLISHED || counter("ListenOverflows")? > overflows)
    };
    wait_for(BEFORE_RETRY, check).map(drop)
}

/// Waits until the accept queue of the listener holds `length` connections.
///
/// # Errors
/// A call failed.
pub fn wait_queued(listener: &Socket, length: u32) -> Result<(), Stop> {
    wait_for(BEFORE_RETRY, || Ok::<_, Stop>(info(listener)?.queued >= length)).map(drop)
}

/// The part of TCP_INFO that ss(8) prints.
#[derive(Clone, Copy, Debug, Default)]
pub struct Info {
    /// [`ESTABLISHED`], [`SYN_SENT`], ...
    pub state: u8,
    /// How many segments were sent again, SYNs included.
    pub retransmitted: u32,
    /// Of a listener: the length of its accept queue (Recv-Q of ss).
    pub queued: u32,
    /// Of a listener: the limit of that queue (Send-Q of ss).
    pub limit: u32,
}

/// Reads the TCP_INFO of a socket.
///
/// # Errors
/// The errors of getsockopt(2).
pub fn info(socket: &Socket) -> io::Result<Info> {
    // SAFETY: all bytes zero is a valid tcp_info.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut len = mem::size_of::<libc::tcp_info>() as libc::socklen_t;
    let (fd, to) = (socket.as_raw_fd(), (&raw mut info).cast());
    // SAFETY: the kernel writes at most `len` bytes, and that is the size of `info`.
    let rc = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, to, &mut len) };
    Errno::result(rc)?;
    // For a listener the kernel stores the queue length and its limit in these two fields.
    let (queued, limit) = (info.tcpi_unacked, info.tcpi_sacked);
    Ok(Info { state: info.tcpi_state, retransmitted: info.tcpi_total_retrans, queued, limit })
}

/// Sets an integer option at the TCP level.
///
/// # Errors
/// The errors of setsockopt(2).
pub fn set_tcp_option(
    socket: &Socket,
    option: libc::c_int,
    value: libc::c_int,
) -> anyhow::Result<()> {
    let (fd, len) = (socket.as_raw_fd(), mem::size_of_val(&value) as libc::socklen_t);
    let from = (&raw const value).cast();
    // SAFETY: the kernel reads one int.
    let rc = unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, option, from, len) };
    Errno::result(rc).with_context(|| format!("setsockopt TCP option {option}"))?;
    Ok(())
}

/// The result of connect(2) as the client sees it, in words.
pub fn result(client: &Socket) -> String {
    if let Ok(Some(error)) = client.take_error() {
        return Errno::from_raw(error.raw_os_error().unwrap_or_default()).to_string();
    }
    match info(client).map(|info| info.state) {
        Ok(ESTABLISHED) => "connected".to_owned(),
        Ok(SYN_SENT) => "none, stays in SYN-SENT".to_owned(),
        Ok(state) => format!("state {state}"),
        Err(e) => e.to_string(),
    }
}

/// Reads what has arrived, without waiting.
pub fn received(client: &mut Socket) -> String {
    let mut buffer = [0; 64];
    match client.read(&mut buffer) {
        Ok(n) => String::from_utf8_lossy(buffer.get(..n).unwrap_or_default()).trim_end().to_owned(),
        Err(e) if e.kind() == ErrorKind::WouldBlock => String::new(),
        Err(e) => e.to_string(),
    }
}

/// A `TcpExt` counter of /proc/net/netstat, the file that nstat(8) reads. The file has one line of
/// names and one line of values.
///
/// # Errors
/// The kernel has no such counter.
pub fn counter(name: &str) -> anyhow::Result<u64> {
    const PATH: &str = "/proc/self/net/netstat";
    let text = fs::read_to_string(PATH).context(PATH)?;
    let mut lines =
        text.lines().filter(|line| line.starts_with("TcpExt:")).map(str::split_whitespace);
    let (names, values) = (lines.next().context(PATH)?, lines.next().context(PATH)?);
    let (_, value) = names
        .zip(values)
        .find(|(known, _)| *known == name)
        .with_context(|| format!("{PATH}: {name}"))?;
    value.parse().with_context(|| format!("{PATH}: {name}"))
}

/// Calls `check` every 2 ms until it returns true. Returns false after `timeout`.
///
/// # Errors
/// The errors of `check`.
pub fn wait_for<E>(
    timeout: Duration,
    mut check: impl FnMut() -> Result<bool, E>,
) -> Result<bool, E> {
    let end = Instant::now() + timeout;
    while !check()? {
        if Instant::now() >= end {
            return Ok(false);
        }
        std::thread::sleep(INTERVAL);
    }
    Ok(true)
}

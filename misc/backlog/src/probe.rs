//! Listeners, clients that do not wait, and what the kernel says of both.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::mem;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

/// States of a TCP socket as the kernel numbers them (include/net/tcp_states.h).
pub const ESTABLISHED: u8 = 1;
/// Our SYN is out and nothing has come back.
pub const SYN_SENT: u8 = 2;

/// A non-blocking listener on a port that the kernel chooses.
///
/// # Errors
/// The call that failed.
pub fn listener(backlog: i32) -> anyhow::Result<(Socket, SocketAddr)> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).context("socket")?;
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    listener.bind(&any.into()).with_context(|| format!("bind {any}"))?;
    listener.listen(backlog).with_context(|| format!("listen {any}"))?;
    listener.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    let addr = listener.local_addr().context("getsockname")?.as_socket().context("getsockname")?;
    Ok((listener, addr))
}

/// A client whose connect(2) does not wait: its handshake goes on in the kernel.
///
/// # Errors
/// The call that failed.
pub fn client(addr: SocketAddr) -> anyhow::Result<Socket> {
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).context("socket")?;
    client.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    match client.connect(&addr.into()) {
        Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => Err(e).with_context(|| format!("connect {addr}")),
        _ => Ok(client),
    }
}

/// What TCP_INFO says of a socket: it is what ss(8) prints.
#[derive(Clone, Copy, Debug, Default)]
pub struct Info {
    /// [`ESTABLISHED`] and so on.
    pub state: u8,
    /// Segments that were sent again, SYNs too.
    pub retransmitted: u32,
    /// Of a listener: the length of its accept queue (Recv-Q of ss).
    pub queued: u32,
    /// Of a listener: the limit of that queue (Send-Q of ss).
    pub limit: u32,
}

/// getsockopt TCP_INFO.
///
/// # Errors
/// Those of getsockopt(2).
pub fn info(socket: &Socket) -> io::Result<Info> {
    // SAFETY: all bytes zero is a valid tcp_info.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut len = mem::size_of::<libc::tcp_info>() as libc::socklen_t;
    let (fd, to) = (socket.as_raw_fd(), (&raw mut info).cast());
    // SAFETY: the kernel writes at most `len` bytes, and that is the size of `info`.
    let rc = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, to, &mut len) };
    Errno::result(rc)?;
    // For a listener the kernel puts the two figures of its queue where a connection has these.
    let (queued, limit) = (info.tcpi_unacked, info.tcpi_sacked);
    Ok(Info { state: info.tcpi_state, retransmitted: info.tcpi_total_retrans, queued, limit })
}

/// What the client knows of its connection, in words.
pub fn told(client: &Socket) -> String {
    if let Ok(Some(error)) = client.take_error() {
        return Errno::from_raw(error.raw_os_error().unwrap_or_default()).to_string();
    }
    match info(client).map(|info| info.state) {
        Ok(ESTABLISHED) => "connected".to_owned(),
        Ok(SYN_SENT) => "nothing, it sits in SYN-SENT".to_owned(),
        Ok(state) => format!("state {state}"),
        Err(e) => e.to_string(),
    }
}

/// Reads what has come, without waiting.
pub fn received(client: &mut Socket) -> String {
    let mut buffer = [0; 64];
    match client.read(&mut buffer) {
        Ok(n) => String::from_utf8_lossy(buffer.get(..n).unwrap_or_default()).trim_end().to_owned(),
        Err(e) if e.kind() == ErrorKind::WouldBlock => String::new(),
        Err(e) => e.to_string(),
    }
}

/// A counter of the `TcpExt` lines of /proc/net/netstat, which is what nstat(8) reads: one line of names, one of values.
///
/// # Errors
/// Where there is no such counter.
pub fn counter(name: &str) -> anyhow::Result<u64> {
    const PATH: &str = "/proc/self/net/netstat";
    let text = fs::read_to_string(PATH).context(PATH)?;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:")).map(str::split_whitespace);
    let (names, values) = (lines.next().context(PATH)?, lines.next().context(PATH)?);
    let (_, value) = names.zip(values).find(|(known, _)| *known == name).with_context(|| format!("{PATH}: {name}"))?;
    value.parse().with_context(|| format!("{PATH}: {name}"))
}

/// Looks every few milliseconds until `look` says yes, and at most for `bound`.
///
/// # Errors
/// Those of `look`.
pub fn wait_for<E>(bound: Duration, mut look: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
    let end = Instant::now() + bound;
    loop {
        if look()? {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

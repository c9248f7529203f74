//! Sockets that share one port with SO_REUSEPORT, and the lock that keeps a second server away.

use std::net::SocketAddr;

use anyhow::Context;
use common::cli::Listen;
use common::report::Failed;
use common::sock::bind_failed;
use lifecycle::BACKLOG;
use socket2::{Domain, Socket, Type};

/// Binds the port with a socket that never listens. It keeps the port number that the kernel chose
/// for `-p 0`, and it keeps other servers away while no worker runs.
pub fn take_port(at: &Listen) -> Result<Socket, Failed> {
    // Without SO_REUSEPORT, so bind fails if another server listens on the port. With SO_REUSEPORT
    // a second server of the same user would get a share of the clients.
    let port = bind(at.addr()?, false)?;
    // If two servers start at the same moment, both can bind, because of SO_REUSEADDR. Only one of
    // them can listen.
    let addr = local_addr(&port)?;
    let first = bind(addr, false)?;
    first.listen(BACKLOG).with_context(|| format!("listen {addr}: another server starts now"))?;
    // bind needed SO_REUSEADDR because of connections in TIME_WAIT. From now on the option would
    // let in other sockets with SO_REUSEADDR.
    port.set_reuse_address(false).context("setsockopt SO_REUSEADDR")?;
    // From now on sockets with SO_REUSEPORT of the same user can bind the port: the listeners.
    port.set_reuse_port(true).context("setsockopt SO_REUSEPORT")?;
    Ok(port)
}

/// Makes one more listener on the port. Each listener has its own backlog. The kernel chooses the
/// listener of a new connection by a hash of both addresses and both ports.
pub fn share_port(port: &Socket) -> Result<Socket, Failed> {
    let addr = local_addr(port)?;
    let listener = bind(addr, true)?;
    listener.set_tcp_nodelay(true).context("setsockopt TCP_NODELAY")?;
    listener.listen(BACKLOG).with_context(|| format!("listen {addr}"))?;
    Ok(listener)
}

/// A socket that is bound to the address. SO_REUSEPORT must be set before bind: the kernel compares
/// the option of the new socket with the option of every socket that is bound to the port.
fn bind(addr: SocketAddr, reuse_port: bool) -> Result<Socket, Failed> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).context("socket")?;
    socket.set_reuse_address(true).context("setsockopt SO_REUSEADDR")?;
    socket.set_reuse_port(reuse_port).context("setsockopt SO_REUSEPORT")?;
    socket.bind(&addr.into()).map_err(|e| bind_failed(addr, &e))?;
    Ok(socket)
}

fn local_addr(socket: &Socket) -> Result<SocketAddr, Failed> {
    let addr = socket.local_addr().context("getsockname")?;
    Ok(addr.as_socket().context("getsockname: not an IP address")?)
}

//! Which end keeps TIME_WAIT, and when a port in TIME_WAIT can be bound again: SO_REUSEADDR on the
//! old and on the new listener.
//!
//! Run: cargo run -p rst-packet --bin time-wait
//! Try: ss -tan state time-wait, less than a minute later

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use procfs::net::TcpState;
use rst_packet::closing::linger_zero;
use rst_packet::recorded::{TIMEOUT, name, poll};
use socket2::{Domain, Socket, Type};

/// Which end keeps TIME_WAIT, and the table of SO_REUSEADDR
#[derive(Parser)]
struct Args {}

/// Which end sends the first FIN, or a RST.
#[derive(Clone, Copy, Debug)]
enum First {
    Client,
    Server,
    ServerResets,
}

fn main() -> ExitCode {
    Args::parse();
    if let Err(e) = procfs::net::tcp() {
        let _ = writeln!(io::stderr(), "Error: /proc/net/tcp: {e}");
        return ExitCode::from(UNAVAILABLE);
    }
    match tables() {
        Ok(text) => {
            let _ = io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(e) => {
            let _ = writeln!(io::stderr(), "Error: a connection over loopback: {e}");
            ExitCode::FAILURE
        }
    }
}

/// EX_UNAVAILABLE of sysexits.h.
const UNAVAILABLE: u8 = 69;

fn tables() -> io::Result<String> {
    let mut text = "first FIN or RST  TIME_WAIT is kept by\n".to_owned();
    for (first, name) in
        [(First::Client, "the client"), (First::Server, "the server"), (First::ServerResets, "RST")]
    {
        let (server, client) = connection(first, true)?;
        text += &format!("{name:18}{}\n", time_wait_of(server, client)?);
    }
    text += "\nSO_REUSEADDR: old listener  new listener  bind\n";
    for old in [false, true] {
        for new in [false, true] {
            let (addr, _) = connection(First::Server, old)?;
            let result = match listen(addr, new) {
                Ok(_) => "ok".to_owned(),
                Err(e) => name(&e),
            };
            text += &format!("{:14}{:<14}{:<14}{result}\n", "", u8::from(old), u8::from(new));
        }
    }
    Ok(text)
}

fn listen(addr: SocketAddr, reuse: bool) -> io::Result<Socket> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // An accepted connection inherits the option and keeps it in TIME_WAIT.
    listener.set_reuse_address(reuse)?;
    listener.bind(&addr.into())?;
    listener.listen(1)?;
    Ok(listener)
}

/// One connection from handshake to end. Returns the addresses of the server and the client.
fn connection(first: First, reuse: bool) -> io::Result<(SocketAddr, SocketAddr)> {
    let listener = listen((Ipv4Addr::LOCALHOST, 0).into(), reuse)?;
    let server = addr(&listener)?;
    let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    client.connect(&server.into())?;
    let client_addr = addr(&client)?;
    let (conn, _) = listener.accept()?;
    let (first_end, other_end) = match first {
        First::Client => (client, conn),
        First::Server | First::ServerResets => (conn, client),
    };
    match first {
        First::ServerResets => linger_zero(first_end)?,
        _ => drop(first_end), // close: the first FIN
    }
    if poll(&other_end, libc::POLLRDHUP, TIMEOUT)? == 0 {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "no FIN has arrived"));
    }
    drop(other_end); // close: the second FIN
    Ok((server, client_addr))
}

fn addr(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("getsockname: no address"))
}

/// Which end of the connection /proc/net/tcp still lists in TIME_WAIT.
fn time_wait_of(server: SocketAddr, client: SocketAddr) -> io::Result<String> {
    // The kernel sends the last ACK after close has returned.
    for _ in 0..100 {
        let sockets = procfs::net::tcp().map_err(io::Error::other)?;
        let ours = |s: &&procfs::net::TcpNetEntry| {
            [(server, client), (client, server)].contains(&(s.local_address, s.remote_address))
        };
        let left: Vec<_> = sockets.iter().filter(ours).collect();
        match left.as_slice() {
            [] => return Ok("no end".to_owned()),
            [one] if one.state == TcpState::TimeWait && one.local_address == server => {
                return Ok("the server".to_owned());
            }
            [one] if one.state == TcpState::TimeWait => return Ok("the client".to_owned()),
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "the connection has not ended"))
}

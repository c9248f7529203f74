//! Who keeps TIME_WAIT, and when a port can be bound again in spite of it: the 2x2 table of SO_REUSEADDR.
//!
//! Run: cargo run -p rst-packet --bin time-wait
//! Try: ss -tan state time-wait, within a minute of it

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use procfs::net::TcpState;
use rst_packet::closing::linger_zero;
use rst_packet::ours::{PATIENCE, name, poll};
use socket2::{Domain, Socket, Type};

/// EX_UNAVAILABLE of sysexits.h.
const UNAVAILABLE: u8 = 69;

/// Who keeps TIME_WAIT, and the 2x2 table of SO_REUSEADDR
#[derive(Parser)]
struct Args {}

/// Who says FIN, or RST, first.
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

fn tables() -> io::Result<String> {
    let mut text = "who ends it      TIME_WAIT is kept by\n".to_owned();
    for (first, word) in
        [(First::Client, "the client"), (First::Server, "the server"), (First::ServerResets, "a reset")]
    {
        let (listener, client) = conversation(first, true)?;
        text += &format!("{word:17}{}\n", time_wait_of(listener, client)?);
    }
    text += "\nSO_REUSEADDR: old listener  new listener  bind\n";
    for old in [false, true] {
        for new in [false, true] {
            let (addr, _) = conversation(First::Server, old)?;
            let said = match listen(addr, new) {
                Ok(_) => "ok".to_owned(),
                Err(e) => name(&e),
            };
            text += &format!("{:14}{:<14}{:<14}{said}\n", "", u8::from(old), u8::from(new));
        }
    }
    Ok(text)
}

fn listen(addr: SocketAddr, reuse: bool) -> io::Result<Socket> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // Accepted connections inherit it, and keep it in TIME_WAIT: that is how the last run's setting is remembered.
    listener.set_reuse_address(reuse)?;
    listener.bind(&addr.into())?;
    listener.listen(1)?;
    Ok(listener)
}

/// One connection from its handshake to its end, and the end of its listener: the addresses that the two ends had.
fn conversation(first: First, reuse: bool) -> io::Result<(SocketAddr, SocketAddr)> {
    let listener = listen((Ipv4Addr::LOCALHOST, 0).into(), reuse)?;
    let server = addr(&listener)?;
    let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    client.connect(&server.into())?;
    let there = addr(&client)?;
    let (conn, _) = listener.accept()?;
    let (goes, stays) = match first {
        First::Client => (client, conn),
        First::Server | First::ServerResets => (conn, client),
    };
    match first {
        First::ServerResets => linger_zero(goes)?,
        _ => drop(goes), // close: the first FIN
    }
    if poll(&stays, libc::POLLRDHUP, PATIENCE)? == 0 {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "the end of a connection does not arrive"));
    }
    drop(stays); // close: the second FIN
    Ok((server, there))
}

fn addr(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("no address of a socket"))
}

/// Which end of the connection /proc/net/tcp still lists, and in that state.
fn time_wait_of(server: SocketAddr, client: SocketAddr) -> io::Result<String> {
    // The last ACK is the kernel's own business, and may take a moment.
    for _ in 0..100 {
        let sockets = procfs::net::tcp().map_err(io::Error::other)?;
        let ours = |s: &&procfs::net::TcpNetEntry| {
            [(server, client), (client, server)].contains(&(s.local_address, s.remote_address))
        };
        let left: Vec<_> = sockets.iter().filter(ours).collect();
        match left.as_slice() {
            [] => return Ok("nobody".to_owned()),
            [one] if one.state == TcpState::TimeWait && one.local_address == server => {
                return Ok("the server".to_owned());
            }
            [one] if one.state == TcpState::TimeWait => return Ok("the client".to_owned()),
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "the connection does not end"))
}

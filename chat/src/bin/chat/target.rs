//! The server's address, and the connection to it.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The server's address.
pub struct Target {
    pub host: String,
    pub port: u16,
}

impl Target {
    /// Connects to the first address of the host that accepts: `localhost` may be 127.0.0.1, ::1, or both.
    ///
    /// # Errors
    /// The reason, in one short line.
    pub fn connect(&self) -> Result<TcpStream, String> {
        let Target { host, port } = self;
        let addresses = (host.as_str(), *port).to_socket_addrs().map_err(|e| format!("{host}: {e}"))?;
        let mut last = None;
        for address in addresses {
            match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                Ok(conn) => return prepare(conn).map_err(|e| format!("{address}: {e}")),
                // A refusal says more than "network is unreachable" for the other IP version.
                Err(e) if last.is_none() || e.kind() == ErrorKind::ConnectionRefused => last = Some((address, e)),
                Err(_) => {}
            }
        }
        match last {
            Some((address, e)) => Err(explain(address, &e)),
            None => Err(format!("{host}: no address")),
        }
    }
}

fn prepare(conn: TcpStream) -> io::Result<TcpStream> {
    conn.set_nodelay(true)?;
    conn.set_nonblocking(true)?;
    Ok(conn)
}

fn explain(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => format!("connect {address}: connection refused"),
        ErrorKind::TimedOut => format!("connect {address}: no answer"),
        _ => format!("connect {address}: {error}"),
    }
}

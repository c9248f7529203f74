//! What every chat server does before its first accept: the options and the listener.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Command, FromArgMatches};
use common::cli::Listen;
use common::report::{Failed, Log};
use common::sock;
use lifecycle::BACKLOG;
use socket2::{SockAddr, Socket, TcpKeepalive};

use crate::cli::{Limits, Slow};
use crate::room::Room;

/// Seconds of silence before the first keepalive probe, seconds between two probes, and how many may be unanswered (tcp(7)).
/// A member whose cable was cut is disconnected after this time.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(10), 3);
/// How long sent bytes may stay unacknowledged (TCP_USER_TIMEOUT).
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// The options that all chat servers have.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The address to listen on.
    #[command(flatten)]
    pub listen: Listen,
    /// The limits of the chat.
    #[command(flatten)]
    pub limits: Limits,
    /// The server's own log, on stderr.
    #[command(flatten)]
    pub log: Log,
}

impl Options {
    /// The options of a server that has no others.
    pub fn parse(name: &'static str, about: &'static str) -> Options {
        Options::of(Options::command(name, about))
    }

    /// The command line of such a server, for a server that changes a default.
    pub fn command(name: &'static str, about: &'static str) -> Command {
        Options::augment_args(Command::new(name).about(about).version(env!("CARGO_PKG_VERSION")))
    }

    /// The options on the command line. An error or `--help` ends the process.
    pub fn of(command: Command) -> Options {
        Options::from_arg_matches(&command.get_matches()).unwrap_or_else(|e| e.exit())
    }

    /// The room, with the history from the chat log.
    ///
    /// # Errors
    /// The chat log cannot be opened.
    pub fn room<H: Clone + Default>(&self, policy: Slow) -> Result<Room<H>, Failed> {
        Room::open(&self.limits, &self.log, policy)
    }

    /// Makes the listening socket. Accepted sockets inherit its keepalive, the only way to detect a cut cable.
    ///
    /// # Errors
    /// One line that names the call, the address and the errno.
    pub fn listen(&self) -> Result<Socket, Failed> {
        let listener = sock::listen(&self.listen, BACKLOG)?;
        let (time, interval, retries) = KEEPALIVE;
        let keepalive = TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries);
        listener.set_tcp_keepalive(&keepalive).context("setsockopt SO_KEEPALIVE")?;
        listener.set_tcp_user_timeout(Some(USER_TIMEOUT)).context("setsockopt TCP_USER_TIMEOUT")?;
        Ok(listener)
    }
}

/// The address of an accepted client.
pub fn ip(peer: &SockAddr) -> IpAddr {
    peer.as_socket().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip())
}

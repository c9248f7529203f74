//! What can go wrong, in which phase, and what to do about it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why there was no run at all. One line, made to stand behind `client: `.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CouldNotRun {
    /// A zero where at least 1 is needed.
    #[error("{0}")]
    BadPlan(&'static str),
    /// The host name has no address.
    #[error("host {host}: {why}; give a name or an address that exists, such as 127.0.0.1")]
    UnknownHost {
        /// The name as given.
        host: String,
        /// What the resolver said.
        why: String,
    },
    /// The very first connection was refused, at every address of the host.
    #[error(
        "connect {addr}: Connection refused: nobody listens there; start a server first, \
         for example: cargo run -p server01-fork"
    )]
    NobodyListens {
        /// The first address tried.
        addr: SocketAddr,
    },
    /// The very first connection failed in another way.
    #[error("connect {addr}: {failure}; {}", failure.kind().advice())]
    FirstConnect {
        /// The last address tried.
        addr: SocketAddr,
        /// How it failed.
        failure: Failure,
    },
    /// More descriptors are needed than the hard limit allows.
    #[error(
        "{clients} clients need {need} descriptors, the hard limit is {hard}; \
         use -c {} or fewer, or raise the limit (ulimit -Hn)", hard.saturating_sub(need - clients)
    )]
    Descriptors {
        /// Clients asked for.
        clients: u64,
        /// Descriptors needed.
        need: u64,
        /// The hard limit, `RLIMIT_NOFILE`.
        hard: u64,
    },
    /// A local address that no connection can come from.
    #[error("source {addr}: {why}")]
    Source {
        /// The address.
        addr: IpAddr,
        /// What is wrong with it.
        why: String,
    },
    /// The kernel refuses a ring to this process, or has none.
    #[error(
        "io_uring_setup: {}; the engine uring needs Linux 5.19 and kernel.io_uring_disabled = 0; use --engine epoll",
        reason(.0)
    )]
    NoRing(io::Error),
    /// A call that has to work did not.
    #[error("{call}: {}", reason(.source))]
    System {
        /// The call's name.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => Errno::from_raw(errno).desc().to_owned(),
        None => error.to_string(),
    }
}

/// When in the life of a connection a [`Failure`] happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Before the connection was established; no request was sent.
    Connect,
    /// After a request was sent.
    Request,
}

impl Phase {
    /// The phase in one word.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Connect => "connect",
            Phase::Request => "request",
        }
    }
}

/// How one connection or one request failed. Its text is the detail; [`Failure::kind`] says what it is an example of.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Failure {
    /// connect() failed.
    #[error("{}", Errno::from_raw(*.0).desc())]
    Connect(i32),
    /// No SYN-ACK in time.
    #[error("not established after {0} ms")]
    ConnectTimedOut(u128),
    /// Reset, or a broken pipe, before any byte of the answer.
    #[error("{}", Errno::from_raw(*.0).desc())]
    ResetEarly(i32),
    /// End of file before any byte of the answer.
    #[error("end of file instead of an answer")]
    ClosedEarly,
    /// End of file in the answer.
    #[error("end of file after {got} of {want} bytes")]
    ShortAnswer {
        /// Bytes received.
        got: u64,
        /// Bytes asked for.
        want: u32,
    },
    /// Reset in the answer, or behind it where the server's close was awaited.
    #[error("reset after {got} of {want} bytes")]
    ResetInAnswer {
        /// Bytes received.
        got: u64,
        /// Bytes asked for.
        want: u32,
    },
    /// More bytes than were asked for.
    #[error("{extra} or more bytes beyond the {want} asked for")]
    TooManyBytes {
        /// Bytes seen beyond the answer.
        extra: u64,
        /// Bytes asked for.
        want: u32,
    },
    /// A byte that is not the pattern's.
    #[error("offset {offset}: expected '{}', got '{}'", expected.escape_ascii(), got.escape_ascii())]
    WrongByte {
        /// Offset in the answer.
        offset: u64,
        /// The pattern's byte.
        expected: u8,
        /// The byte received.
        got: u8,
    },
    /// The server answered with an error line.
    #[error("\"{0}\"")]
    ErrLine(String),
    /// No byte of the answer in time.
    #[error("no byte after {0} ms")]
    TimedOut(u128),
    /// Some bytes of the answer, not all of them in time.
    #[error("{got} of {want} bytes after {ms} ms")]
    Stalled {
        /// Bytes received.
        got: u64,
        /// Bytes asked for.
        want: u32,
        /// The timeout in milliseconds.
        ms: u128,
    },
    /// The answer was complete; the close that `--close server` waits for did not come.
    #[error("still open {0} ms after the request")]
    NotClosed(u128),
    /// Not complete so long after the request was to start.
    #[error("not answered {0} ms after it was due")]
    DeadlineMissed(u128),
    /// Any other error of send or recv.
    #[error("{}", Errno::from_raw(*.0).desc())]
    Other(i32),
}

/// What a [`Failure`] is an example of: the rows of the failure table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[allow(missing_docs)] // the titles below say it
pub enum Kind {
    Refused,
    ConnectTimedOut,
    ConnectReset,
    Unreachable,
    NoPermission,
    NoLocalPort,
    NoDescriptor,
    ConnectOther,
    ResetEarly,
    ClosedEarly,
    ShortAnswer,
    ResetInAnswer,
    TooManyBytes,
    WrongByte,
    ErrLine,
    TimedOut,
    Stalled,
    NotClosed,
    DeadlineMissed,
    RequestOther,
}

impl Failure {
    /// The row this failure belongs to.
    pub fn kind(&self) -> Kind {
        match self {
            Failure::Connect(errno) => connect_kind(*errno),
            Failure::ConnectTimedOut(_) => Kind::ConnectTimedOut,
            Failure::ResetEarly(_) => Kind::ResetEarly,
            Failure::ClosedEarly => Kind::ClosedEarly,
            Failure::ShortAnswer { .. } => Kind::ShortAnswer,
            Failure::ResetInAnswer { .. } => Kind::ResetInAnswer,
            Failure::TooManyBytes { .. } => Kind::TooManyBytes,
            Failure::WrongByte { .. } => Kind::WrongByte,
            Failure::ErrLine(_) => Kind::ErrLine,
            Failure::TimedOut(_) => Kind::TimedOut,
            Failure::Stalled { .. } => Kind::Stalled,
            Failure::NotClosed(_) => Kind::NotClosed,
            Failure::DeadlineMissed(_) => Kind::DeadlineMissed,
            Failure::Other(_) => Kind::RequestOther,
        }
    }
}

fn connect_kind(errno: i32) -> Kind {
    match errno {
        libc::ECONNREFUSED => Kind::Refused,
        libc::ETIMEDOUT => Kind::ConnectTimedOut,
        libc::ECONNRESET | libc::ECONNABORTED => Kind::ConnectReset,
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN => Kind::Unreachable,
        libc::EACCES | libc::EPERM => Kind::NoPermission,
        libc::EADDRNOTAVAIL | libc::EADDRINUSE => Kind::NoLocalPort,
        libc::EMFILE | libc::ENFILE => Kind::NoDescriptor,
        _ => Kind::ConnectOther,
    }
}

impl Kind {
    /// When it happens.
    pub fn phase(self) -> Phase {
        match self {
            Kind::Refused
            | Kind::ConnectTimedOut
            | Kind::ConnectReset
            | Kind::Unreachable
            | Kind::NoPermission
            | Kind::NoLocalPort
            | Kind::NoDescriptor
            | Kind::ConnectOther => Phase::Connect,
            _ => Phase::Request,
        }
    }

    /// A few words, for the table.
    pub fn title(self) -> &'static str {
        match self {
            Kind::Refused => "connection refused",
            Kind::ConnectTimedOut => "connect timed out",
            Kind::ConnectReset => "reset while connecting",
            Kind::Unreachable => "unreachable",
            Kind::NoPermission => "no permission",
            Kind::NoLocalPort => "no local port",
            Kind::NoDescriptor => "no descriptor",
            Kind::ConnectOther => "connect failed",
            Kind::ResetEarly => "reset before first byte",
            Kind::ClosedEarly => "closed before first byte",
            Kind::ShortAnswer => "short answer",
            Kind::ResetInAnswer => "reset in mid-answer",
            Kind::TooManyBytes => "too many bytes",
            Kind::WrongByte => "wrong bytes",
            Kind::ErrLine => "ERR line from the server",
            Kind::TimedOut => "timed out, no byte",
            Kind::Stalled => "stalled in mid-answer",
            Kind::NotClosed => "server did not close",
            Kind::DeadlineMissed => "deadline missed",
            Kind::RequestOther => "send or receive failed",
        }
    }

    /// What to do about it, in one line.
    pub fn advice(self) -> &'static str {
        match self {
            Kind::Refused => "nobody listens there any more: did the server stop or crash?",
            Kind::ConnectTimedOut => "accept queue full or packets lost: try fewer clients (-c)",
            Kind::ConnectReset => "the server's machine dropped it: look at the server's log",
            Kind::Unreachable => "no route to that address: check -i and the network",
            Kind::NoPermission => "a firewall rule on this machine forbids it",
            Kind::NoLocalPort => "ports ran out: --close rst, -k, or more addresses (-S)",
            Kind::NoDescriptor => "raise ulimit -n, or use fewer clients (-c)",
            Kind::ConnectOther => "connect(2) explains these words of the kernel",
            Kind::ResetEarly => "the server dropped it unread: see its log and its limits",
            Kind::ClosedEarly => "does it serve one request per connection? then use -k 1",
            Kind::ShortAnswer => "the server gave up in mid-answer: look at its log",
            Kind::ResetInAnswer => "the server died or closed on unread bytes: look at its log",
            Kind::TooManyBytes => "the server miscounts: see what it sends for one request, -b 1",
            Kind::WrongByte => "another service, or mixed-up bytes; --verify length takes any",
            Kind::ErrLine => "busy: use fewer clients (-c); out of range: fewer bytes (-b)",
            Kind::TimedOut => "server stuck or too slow: fewer clients (-c) or more --timeout",
            Kind::Stalled => "server stuck, or --timeout too short for so many bytes (-b)",
            Kind::NotClosed => "this server keeps connections open: use --close fin",
            Kind::DeadlineMissed => "too slow for this --rate: a lower rate or more --deadline",
            Kind::RequestOther => "send(2) and recv(2) explain these words of the kernel",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One failure of every kind.
    fn all() -> Vec<Failure> {
        let (got, want, ms) = (1, 2, 3);
        let errnos = [
            libc::ECONNREFUSED,
            libc::ETIMEDOUT,
            libc::ECONNRESET,
            libc::EHOSTUNREACH,
            libc::EACCES,
            libc::EADDRNOTAVAIL,
            libc::EMFILE,
            libc::EINVAL,
        ];
        let mut all: Vec<Failure> = errnos.into_iter().map(Failure::Connect).collect();
        all.extend([
            Failure::ResetEarly(libc::EPIPE),
            Failure::ClosedEarly,
            Failure::ShortAnswer { got, want },
            Failure::ResetInAnswer { got, want },
            Failure::TooManyBytes { extra: 1, want },
            Failure::WrongByte { offset: 0, expected: b'a', got: b'\n' },
            Failure::ErrLine("ERR busy".into()),
            Failure::TimedOut(ms),
            Failure::Stalled { got, want, ms },
            Failure::NotClosed(ms),
            Failure::DeadlineMissed(ms),
            Failure::Other(libc::EIO),
        ]);
        all
    }

    #[test]
    fn every_kind_has_its_own_title_and_one_line_of_advice_that_fits() {
        let mut titles = Vec::new();
        for failure in all() {
            let kind = failure.kind();
            assert!(kind.title().len() <= 25 && !titles.contains(&kind.title()), "{kind:?}");
            assert!((10..=62).contains(&kind.advice().len()), "{kind:?}: {}", kind.advice().len());
            assert!(!failure.to_string().contains('\n'), "{failure}");
            titles.push(kind.title());
        }
    }

    #[test]
    fn what_happens_before_the_connection_is_there_is_of_the_connect_phase() {
        for (place, failure) in all().iter().enumerate() {
            assert_eq!(failure.kind().phase() == Phase::Connect, place < 8, "{failure:?}");
        }
        assert_eq!(Failure::ConnectTimedOut(1).kind().phase(), Phase::Connect);
    }
}

//! Four ways in which a peer goes away, and the calls that find it out: the same for the bug and for the cures.
#![warn(missing_docs)]

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use clap::ValueEnum;
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{MsgFlags, recv, send};
use socket2::{Domain, Socket, Type};

/// On loopback the end of a connection is there at once; a call that finds none is ended after this.
const PATIENCE: Duration = Duration::from_secs(5);

/// How the peer goes away, and which of our calls comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// The peer resets the connection; we read first
    AbortRead,
    /// The peer resets the connection; we write first
    AbortWrite,
    /// The peer closes: a FIN
    Fin,
    /// The peer replies and closes with what we sent unread
    Unread,
}

#[derive(Clone, Copy)]
enum Call {
    Recv,
    Send,
    /// A send that is to work: its answer, a reset, is waited for.
    SendAndWait,
}

impl Case {
    /// The calls that are made once the peer has gone.
    fn calls(self) -> &'static [Call] {
        match self {
            Case::AbortRead => &[Call::Recv, Call::Recv, Call::Send, Call::Send],
            Case::AbortWrite => &[Call::Send, Call::Send, Call::Recv],
            Case::Fin => &[Call::Recv, Call::SendAndWait, Call::Send, Call::Recv],
            Case::Unread => &[Call::Recv, Call::Recv, Call::Send],
        }
    }

    /// Makes the calls, and hands each to `say` when it has returned: who dies in a call does not hear of it.
    ///
    /// # Errors
    /// No socket, or no connection over loopback, or no end of it.
    pub fn play(self, flags: MsgFlags, mut say: impl FnMut(String)) -> io::Result<()> {
        let conn = self.connection()?;
        // The FIN or the reset is here; POLLERR and POLLHUP need not be asked for.
        wait(&conn, libc::POLLRDHUP)?;
        for call in self.calls() {
            match call {
                Call::Recv => say(receive(&conn)),
                Call::Send | Call::SendAndWait => say(word("send", send(conn.as_raw_fd(), b"x", flags))),
            }
            if let Call::SendAndWait = call {
                wait(&conn, 0)?;
            }
        }
        Ok(())
    }

    /// A connection whose other end has gone.
    fn connection(self) -> io::Result<Socket> {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        listener.listen(1)?;
        let conn = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        conn.set_read_timeout(Some(PATIENCE))?;
        conn.connect(&listener.local_addr()?)?;
        let (peer, _) = listener.accept()?;
        match self {
            Case::AbortRead | Case::AbortWrite => peer.set_linger(Some(Duration::ZERO))?,
            Case::Fin => {}
            Case::Unread => {
                send(conn.as_raw_fd(), b"hello", MsgFlags::MSG_NOSIGNAL)?;
                wait(&peer, libc::POLLIN)?;
                send(peer.as_raw_fd(), b"reply", MsgFlags::MSG_NOSIGNAL)?;
            }
        }
        drop(peer); // close: RST, FIN, or RST, in the order of the arms
        Ok(conn)
    }
}

/// What SIGPIPE does to this process from now on, all its threads. A parent may have left it blocked: it would wait.
///
/// # Errors
/// Those of sigaction(2) and sigprocmask(2).
pub fn on_sigpipe(handler: SigHandler) -> io::Result<()> {
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handlers of this crate touch one atomic.
    unsafe { sigaction(Signal::SIGPIPE, &action) }?;
    Ok(SigSet::from(Signal::SIGPIPE).thread_unblock()?)
}

fn receive(conn: &Socket) -> String {
    let mut buffer = [0; 64];
    match recv(conn.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
        Ok(0) => "recv 0".to_owned(),
        Ok(n) => format!("recv '{}'", String::from_utf8_lossy(buffer.get(..n).unwrap_or_default())),
        Err(errno) => word("recv", Err::<(), Errno>(errno)),
    }
}

fn word<T>(call: &str, said: nix::Result<T>) -> String {
    said.map_or_else(|errno| format!("{call} {errno:?}"), |_| format!("{call} ok"))
}

fn wait(conn: &Socket, events: i16) -> io::Result<()> {
    let mut entry = libc::pollfd { fd: conn.as_raw_fd(), events, revents: 0 };
    // SAFETY: one entry, which the kernel reads and writes.
    let rc = unsafe { libc::poll(&mut entry, 1, PATIENCE.as_millis() as i32) };
    match Errno::result(rc)? {
        0 => Err(io::Error::new(io::ErrorKind::TimedOut, "the peer's end does not arrive")),
        _ => Ok(()),
    }
}

//! Four ways in which a peer ends a connection, and the calls that notice it. The bug and the fixes
//! use the same cases.
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

/// The timeout of a wait. On loopback a FIN or a RST arrives at once.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How the peer ends the connection, and which of our calls is first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// The peer sends a RST; we read first
    AbortRead,
    /// The peer sends a RST; we write first
    AbortWrite,
    /// The peer closes with a FIN
    Fin,
    /// The peer replies and closes without reading our bytes
    Unread,
}

#[derive(Clone, Copy)]
enum Call {
    Recv,
    Send,
    /// A send that succeeds. Then wait for the RST that answers it.
    SendAndWait,
}

impl Case {
    /// The calls after the peer has closed.
    fn calls(self) -> &'static [Call] {
        match self {
            Case::AbortRead => &[Call::Recv, Call::Recv, Call::Send, Call::Send],
            Case::AbortWrite => &[Call::Send, Call::Send, Call::Recv],
            Case::Fin => &[Call::Recv, Call::SendAndWait, Call::Send, Call::Recv],
            Case::Unread => &[Call::Recv, Call::Recv, Call::Send],
        }
    }

    /// Makes the calls and passes each result to `print`. A process that is killed in a call does
    /// not print it.
    ///
    /// # Errors
    /// The call that failed, or no FIN and no RST has arrived.
    pub fn play(self, flags: MsgFlags, mut print: impl FnMut(String)) -> io::Result<()> {
        let conn = self.connection()?;
        // Wait for the FIN or the RST. poll reports POLLERR and POLLHUP without being asked for
        // them.
        wait(&conn, libc::POLLRDHUP)?;
        for call in self.calls() {
            match call {
                Call::Recv => print(receive(&conn)),
                Call::Send | Call::SendAndWait => {
                    print(text("send", send(conn.as_raw_fd(), b"x", flags)));
                }
            }
            if let Call::SendAndWait = call {
                wait(&conn, 0)?;
            }
        }
        Ok(())
    }

    /// A connection whose other end has closed.
    fn connection(self) -> io::Result<Socket> {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        listener.listen(1)?;
        let conn = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        conn.set_read_timeout(Some(TIMEOUT))?;
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
        drop(peer); // close: sends RST, FIN or RST, in the order of the arms
        Ok(conn)
    }
}

/// Sets the disposition of SIGPIPE for the process, and unblocks it: a parent may have blocked it.
///
/// # Errors
/// The errors of sigaction(2) and sigprocmask(2).
pub fn on_sigpipe(handler: SigHandler) -> io::Result<()> {
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handlers of this crate only change one atomic.
    unsafe { sigaction(Signal::SIGPIPE, &action) }?;
    Ok(SigSet::from(Signal::SIGPIPE).thread_unblock()?)
}

fn receive(conn: &Socket) -> String {
    let mut buffer = [0; 64];
    match recv(conn.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
        Ok(0) => "recv 0".to_owned(),
        Ok(n) => format!("recv '{}'", String::from_utf8_lossy(buffer.get(..n).unwrap_or_default())),
        Err(errno) => text("recv", Err::<(), Errno>(errno)),
    }
}

fn text<T>(call: &str, result: nix::Result<T>) -> String {
    result.map_or_else(|errno| format!("{call} {errno:?}"), |_| format!("{call} ok"))
}

fn wait(conn: &Socket, events: i16) -> io::Result<()> {
    let mut entry = libc::pollfd { fd: conn.as_raw_fd(), events, revents: 0 };
    // SAFETY: one entry, which the kernel reads and writes.
    let rc = unsafe { libc::poll(&mut entry, 1, TIMEOUT.as_millis() as i32) };
    match Errno::result(rc)? {
        0 => Err(io::Error::new(io::ErrorKind::TimedOut, "no FIN and no RST has arrived")),
        _ => Ok(()),
    }
}

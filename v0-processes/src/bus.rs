//! How the processes talk: pairs of Unix sockets of the type SOCK_SEQPACKET. A record is written whole and read whole
//! (unix(7)); a full socket makes the writer wait; when the last writer is gone, for whatever reason, the reader sees the
//! end; nothing has a name that must be cleaned up; and a descriptor can travel with the words, in their order.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Instant;

use chat::{ClientId, Event};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::PollTimeout;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

/// Longer than this is no record: an escaped line takes at most 4 KiB, and JSON doubles its backslashes.
const RECORD: usize = 16 * 1024;

/// A record.
#[derive(Debug, Serialize, Deserialize)]
pub enum Record {
    /// From the parent to the hub, with the client's socket.
    Client { id: ClientId, address: IpAddr, has_worker: bool },
    /// From the parent to the hub, with the hub's end of the link to that client's worker.
    Link { id: ClientId },
    /// From a worker to the hub.
    Event(Event),
}

/// What came.
pub enum Received {
    /// Without its descriptor if this process has no number left for it.
    Record(Record, Option<OwnedFd>),
    /// Nobody is left to write.
    End,
    /// There is nothing now.
    Nothing,
}

/// Two ends.
pub fn pair() -> io::Result<(Socket, Socket)> {
    Socket::pair(Domain::UNIX, Type::SEQPACKET, None)
}

/// Writes a record, and a copy of a descriptor with it. A full socket makes the writer wait.
pub fn send(to: &Socket, record: &Record, fd: Option<&Socket>) -> io::Result<()> {
    let bytes = serde_json::to_vec(record)?;
    let fds: Vec<RawFd> = fd.map(AsRawFd::as_raw_fd).into_iter().collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &[] } else { &rights[..] };
    loop {
        match sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(&bytes)], rights, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            outcome => return Ok(outcome.map(drop)?),
        }
    }
}

/// Reads a record, and the descriptor that came with it. Never waits.
pub fn receive(from: &Socket) -> io::Result<Received> {
    let mut bytes = [0; RECORD];
    let (mut slices, mut space) = ([IoSliceMut::new(&mut bytes)], cmsg_space!(RawFd));
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = match recvmsg::<()>(from.as_raw_fd(), &mut slices, Some(&mut space), flags) {
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Received::Nothing),
        // A record is never empty.
        Ok(message) if message.bytes == 0 => return Ok(Received::End),
        message => message?,
    };
    // An error is MSG_CTRUNC: the kernel has left the descriptor out.
    let rights = message.cmsgs().ok().and_then(|mut messages| messages.next());
    let fd = match rights {
        // SAFETY: the kernel has just installed this number for us, and nobody else knows it.
        Some(ControlMessageOwned::ScmRights(fds)) => fds.first().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }),
        _ => None,
    };
    let n = message.bytes;
    let record = serde_json::from_slice(bytes.get(..n).unwrap_or_default());
    Ok(Received::Record(record.map_err(|e| io::Error::new(ErrorKind::InvalidData, e))?, fd))
}

/// Until the deadline, rounded up: to wake a moment early would be to spin.
pub fn timeout(deadline: Option<Instant>) -> PollTimeout {
    let left = deadline.map(|at| at.saturating_duration_since(Instant::now()).as_millis() + 1);
    left.map_or(PollTimeout::NONE, |ms| PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX))
}

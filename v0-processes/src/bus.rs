//! Messages between the processes, over pairs of Unix sockets of the type SOCK_SEQPACKET, unix(7).
//!
//! The kernel keeps the boundaries of messages: one send is one receive. A full socket blocks the
//! sender. When the last copy of one end is closed, the other end reads end of file, after all
//! messages. A message can carry a descriptor (SCM_RIGHTS). The sockets have no name in the file
//! system, so nothing is left to remove.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use chat::ClientId;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

/// The longest message in bytes. A line has at most 4 KiB, and JSON may double some of its bytes.
const MAX_MESSAGE: usize = 16 * 1024;
/// How long to sleep after a failed poll.
const PAUSE: Duration = Duration::from_millis(10);

/// From the parent to the hub. A worker sends a `chat::Event` to the hub and nothing else.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToHub {
    /// Carries the hub's end of the link to the worker of the next client.
    Link,
    /// Carries the socket of a new client.
    Client { id: ClientId, address: IpAddr, has_worker: bool },
}

/// The result of [`receive`].
pub enum Received<M> {
    /// A message with its descriptor. None: it had no descriptor, or the kernel has dropped it,
    /// because this process has no free one.
    Message(M, Option<OwnedFd>),
    /// No process can write any more.
    EndOfFile,
    /// No message has arrived.
    Nothing,
}

/// Creates two connected sockets.
pub fn pair() -> io::Result<(Socket, Socket)> {
    Socket::pair(Domain::UNIX, Type::SEQPACKET, None)
}

/// Sends a message, and a copy of a descriptor with it. Blocks while the socket is full.
pub fn send(to: &Socket, message: &impl Serialize, fd: Option<&Socket>) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let fds: Vec<RawFd> = fd.map(AsRawFd::as_raw_fd).into_iter().collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &[] } else { &rights[..] };
    let parts = [IoSlice::new(&bytes)];
    loop {
        match sendmsg::<()>(to.as_raw_fd(), &parts, rights, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            outcome => return Ok(outcome.map(drop)?),
        }
    }
}

/// Receives a message and its descriptor. Never blocks.
pub fn receive<M: DeserializeOwned>(from: &Socket) -> io::Result<Received<M>> {
    let mut bytes = [0; MAX_MESSAGE];
    let (mut parts, mut space) = ([IoSliceMut::new(&mut bytes)], cmsg_space!(RawFd));
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = match recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut space), flags) {
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Received::Nothing),
        // No message is empty, so 0 bytes are end of file.
        Ok(message) if message.bytes == 0 => return Ok(Received::EndOfFile),
        message => message?,
    };
    // nix returns an error for MSG_CTRUNC: the kernel has dropped the descriptor.
    let rights = message.cmsgs().ok().and_then(|mut messages| messages.next());
    let fd = match rights {
        Some(ControlMessageOwned::ScmRights(fds)) => fds.first().map(|fd| {
            // SAFETY: the kernel has just made this descriptor, and nothing else uses it.
            unsafe { OwnedFd::from_raw_fd(*fd) }
        }),
        _ => None,
    };
    let length = message.bytes;
    Ok(Received::Message(serde_json::from_slice(bytes.get(..length).unwrap_or_default())?, fd))
}

/// Sleeps in poll until a descriptor is ready or the deadline has passed. If poll fails (ENOMEM),
/// no descriptor is ready, and the caller's loop calls poll again.
pub fn wait(fds: &mut [PollFd], deadline: Option<Instant>) {
    if poll(fds, timeout(deadline)).is_err() {
        thread::sleep(PAUSE);
    }
}

/// The time until a deadline, rounded up: a process that wakes just before it has nothing to do.
pub fn timeout(deadline: Option<Instant>) -> PollTimeout {
    let left = deadline.map(|at| at.saturating_duration_since(Instant::now()).as_millis() + 1);
    left.map_or(PollTimeout::NONE, |ms| PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX))
}

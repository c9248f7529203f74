//! A descriptor through a Unix socket: sendmsg(2) and recvmsg(2) with SCM_RIGHTS, written out.
//!
//! What travels is a reference to the open file: the receiver gets a number of its own for it, and offset and O_NONBLOCK
//! are shared. While it is on the way it is open, even if the sender closes its number at once.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// The byte that goes along: on many sockets a control message without data is not sent at all.
const HANDOVER: u8 = b'h';

/// A control message with room for exactly one descriptor, as cmsg(3) lays it out: the header, then the data. (A buffer
/// of CMSG_SPACE bytes ends in padding, and on 64 bits the kernel would put a second descriptor there, unasked.)
#[repr(C)]
struct OneDescriptor {
    header: libc::cmsghdr,
    fd: RawFd,
}

/// What came through the channel.
pub enum Received {
    Descriptor(OwnedFd),
    /// The kernel has dropped the descriptor: this process has no number left for it.
    NoRoom,
    /// Something else, which `send_fd` does not send. Whatever was in it is closed.
    NoHandover,
    /// The other end is closed, or this one is shut down.
    End,
}

/// Sends a copy of `fd`; the caller's stays open.
pub fn send_fd(channel: &impl AsRawFd, fd: &impl AsRawFd) -> io::Result<()> {
    let mut control = room_for_one();
    (control.header.cmsg_level, control.header.cmsg_type) = (libc::SOL_SOCKET, libc::SCM_RIGHTS);
    control.fd = fd.as_raw_fd();
    with_message(&mut [HANDOVER], &mut control, |message| {
        // SAFETY: the message points at a byte and a control block that outlive the call.
        unsafe { libc::sendmsg(channel.as_raw_fd(), message, libc::MSG_NOSIGNAL) }
    })
    .map(drop)
}

/// Waits for a descriptor.
pub fn recv_fd(channel: &impl AsRawFd) -> io::Result<Received> {
    let (mut byte, mut control) = ([0], room_for_one());
    let (n, flags) = with_message(&mut byte, &mut control, |message| {
        // SAFETY: as above; the kernel writes at most the lengths that the message states.
        unsafe { libc::recvmsg(channel.as_raw_fd(), message, libc::MSG_CMSG_CLOEXEC) }
    })?;
    if n == 0 {
        return Ok(Received::End);
    }
    let rights = (control.header.cmsg_level, control.header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS);
    // SAFETY: the kernel has just installed this number for us, and nobody else knows it.
    let fd = (rights && control.fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(control.fd) });
    // MSG_CTRUNC: the kernel has left something out. Who does not look takes for a descriptor what the buffer held before.
    Ok(match (fd, flags & libc::MSG_CTRUNC != 0) {
        (Some(fd), false) if byte == [HANDOVER] => Received::Descriptor(fd),
        (None, true) => Received::NoRoom,
        _ => Received::NoHandover, // the drop of `fd` closes it
    })
}

fn room_for_one() -> OneDescriptor {
    // SAFETY: only arithmetic.
    let cmsg_len = unsafe { libc::CMSG_LEN(size_of::<RawFd>() as u32) } as usize;
    OneDescriptor { header: libc::cmsghdr { cmsg_len, cmsg_level: 0, cmsg_type: 0 }, fd: -1 }
}

/// Builds the msghdr around one byte and one control block, and says how many bytes went and what msg_flags became.
fn with_message(
    byte: &mut [u8; 1],
    control: &mut OneDescriptor,
    call: impl FnOnce(*mut libc::msghdr) -> isize,
) -> io::Result<(usize, libc::c_int)> {
    let mut data = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
    // SAFETY: all zero bytes are an empty msghdr.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&mut data, 1);
    (message.msg_control, message.msg_controllen) = (ptr::from_mut(control).cast(), control.header.cmsg_len);
    match call(&mut message) {
        n @ 0.. => Ok((n as usize, message.msg_flags)),
        _ => Err(io::Error::last_os_error()),
    }
}

//! Passes a descriptor through a Unix domain socket: sendmsg(2), recvmsg(2) and SCM_RIGHTS.
//!
//! The message carries a reference to the open file description. The receiver gets a descriptor
//! number of its own for it. Sender and receiver share the file offset and O_NONBLOCK. While the
//! message is in the channel the file stays open, even if the sender closes its descriptor.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// The data of the message. On a stream socket the kernel sends no control message without data.
const DATA: u8 = b'c';
/// cmsg_level and cmsg_type of a message that carries descriptors.
const RIGHTS: (libc::c_int, libc::c_int) = (libc::SOL_SOCKET, libc::SCM_RIGHTS);

/// A control message with room for exactly one descriptor: a header, then the data, as in cmsg(3).
/// A buffer of CMSG_SPACE bytes ends in padding, and on 64-bit machines the kernel would put a
/// second descriptor there.
#[repr(C)]
struct OneDescriptor {
    header: libc::cmsghdr,
    fd: RawFd,
}

/// What `recv_fd` has received.
pub enum Received {
    Descriptor(OwnedFd),
    /// MSG_CTRUNC: the kernel closed the descriptor, because this process has no free number.
    Truncated,
    /// A message that `send_fd` does not send. Any descriptor in it is closed.
    Unexpected,
    /// The other end is closed.
    EndOfFile,
}

/// Sends a copy of `fd`. The descriptor of the caller stays open.
pub fn send_fd(channel: &impl AsRawFd, fd: &impl AsRawFd) -> io::Result<()> {
    let mut control = control_message(RIGHTS, fd.as_raw_fd());
    with_message(&mut [DATA], &mut control, |message| {
        // SAFETY: the message points to one byte and one control message that outlive the call.
        unsafe { libc::sendmsg(channel.as_raw_fd(), message, libc::MSG_NOSIGNAL) }
    })
    .map(drop)
}

/// Sleeps until a message arrives.
pub fn recv_fd(channel: &impl AsRawFd) -> io::Result<Received> {
    let (mut byte, mut control) = ([0], control_message((0, 0), -1));
    let (n, flags) = with_message(&mut byte, &mut control, |message| {
        // SAFETY: as in send_fd. The kernel writes at most the lengths that the message states.
        unsafe { libc::recvmsg(channel.as_raw_fd(), message, libc::MSG_CMSG_CLOEXEC) }
    })?;
    if n == 0 {
        return Ok(Received::EndOfFile);
    }
    let kind = (control.header.cmsg_level, control.header.cmsg_type);
    let has_fd = kind == RIGHTS && control.fd >= 0;
    // SAFETY: the kernel has just made this descriptor for us, and no other code owns it.
    let fd = has_fd.then(|| unsafe { OwnedFd::from_raw_fd(control.fd) });
    // MSG_CTRUNC: the kernel left something out. recvmsg succeeds all the same, so a receiver that
    // does not check the flag takes the old content of its buffer for a descriptor.
    Ok(match (fd, flags & libc::MSG_CTRUNC != 0) {
        (Some(fd), false) if byte == [DATA] => Received::Descriptor(fd),
        (None, true) => Received::Truncated,
        _ => Received::Unexpected, // dropping `fd` closes the descriptor
    })
}

/// For recvmsg the values are placeholders: the descriptor stays -1 if the kernel sends none.
fn control_message((level, kind): (libc::c_int, libc::c_int), fd: RawFd) -> OneDescriptor {
    // SAFETY: CMSG_LEN only calculates.
    let cmsg_len = unsafe { libc::CMSG_LEN(size_of::<RawFd>() as u32) } as usize;
    OneDescriptor { header: libc::cmsghdr { cmsg_len, cmsg_level: level, cmsg_type: kind }, fd }
}

/// Calls `call` with a message of one byte and one control message. Returns the number of bytes
/// sent or received, and the msg_flags that the kernel has set.
fn with_message(
    byte: &mut [u8; 1],
    control: &mut OneDescriptor,
    call: impl FnOnce(*mut libc::msghdr) -> isize,
) -> io::Result<(usize, libc::c_int)> {
    let mut data = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
    // SAFETY: a msghdr of zero bytes is valid and empty.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&mut data, 1);
    message.msg_control = ptr::from_mut(control).cast();
    message.msg_controllen = control.header.cmsg_len;
    match call(&mut message) {
        n @ 0.. => Ok((n as usize, message.msg_flags)),
        _ => Err(io::Error::last_os_error()),
    }
}

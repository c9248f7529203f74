//! The calls of this lesson under the names of their man pages. A failed one is the errno, as std gives it.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

fn count(rc: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(rc).map_err(|_| io::Error::last_os_error())
}

/// Makes the call again where a signal came first: without a handler too, a stop and SIGCONT do that to a call on a
/// socket with a timeout (signal(7)).
///
/// # Errors
/// Those of the call, EINTR left out.
pub fn again<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// sendfile(2): from `offset` of the file, which it moves on. Fewer than `len` where the socket has no more room, or
/// the file ends; 0 at its end.
///
/// # Errors
/// Those of sendfile(2).
pub fn sendfile(to: impl AsFd, file: impl AsFd, offset: &mut i64, len: usize) -> io::Result<usize> {
    let (to, file) = (to.as_fd().as_raw_fd(), file.as_fd().as_raw_fd());
    // SAFETY: both descriptors are open, and the kernel reads and writes one offset.
    count(unsafe { libc::sendfile(to, file, offset, len) })
}

/// splice(2) out of a file into a pipe: the pipe then holds the pages of the file, not a copy.
///
/// # Errors
/// Those of splice(2).
pub fn splice_in(file: impl AsFd, offset: &mut i64, pipe: impl AsFd, len: usize) -> io::Result<usize> {
    let (file, pipe) = (file.as_fd().as_raw_fd(), pipe.as_fd().as_raw_fd());
    // SAFETY: both descriptors are open, and the kernel reads and writes one offset.
    count(unsafe { libc::splice(file, offset, pipe, std::ptr::null_mut(), len, libc::SPLICE_F_MOVE) })
}

/// splice(2) out of a pipe into a socket.
///
/// # Errors
/// Those of splice(2).
pub fn splice_out(pipe: impl AsFd, to: impl AsFd, len: usize) -> io::Result<usize> {
    let (pipe, to) = (pipe.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    let none = std::ptr::null_mut();
    // SAFETY: both descriptors are open, and no offset is given.
    count(unsafe { libc::splice(pipe, none, to, none, len, libc::SPLICE_F_MOVE) })
}

/// send(2) with MSG_ZEROCOPY: the kernel pins the buffer, and reads it until the completion says otherwise.
///
/// # Errors
/// Those of send(2); ENOBUFS where too much is pinned already.
pub fn send_zerocopy(to: impl AsFd, buffer: &[u8]) -> io::Result<usize> {
    let fd = to.as_fd().as_raw_fd();
    // SAFETY: the buffer is readable. Were it changed before the completion, wrong bytes would be sent, and no more.
    count(unsafe { libc::send(fd, buffer.as_ptr().cast(), buffer.len(), libc::MSG_ZEROCOPY | libc::MSG_NOSIGNAL) })
}

/// setsockopt SO_ZEROCOPY, without which MSG_ZEROCOPY is ignored.
///
/// # Errors
/// Those of setsockopt(2).
pub fn permit_zerocopy(socket: impl AsFd) -> io::Result<()> {
    let (fd, one) = (socket.as_fd().as_raw_fd(), 1 as libc::c_int);
    let (from, len) = ((&raw const one).cast(), size_of_val(&one) as libc::socklen_t);
    // SAFETY: the kernel reads one int.
    count(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_ZEROCOPY, from, len) } as libc::ssize_t).map(drop)
}

/// What the kernel reports of sends with MSG_ZEROCOPY: the sends number `first` to `last` are done with their buffers.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// 5: SO_EE_ORIGIN_ZEROCOPY.
    pub origin: u8,
    /// 1, SO_EE_CODE_ZEROCOPY_COPIED: the kernel made a copy after all; otherwise 0.
    pub code: u8,
    /// The first of the sends, counted from 0.
    pub first: u32,
    /// The last of them.
    pub last: u32,
}

/// recvmsg(2) with MSG_ERRQUEUE, which never waits: the next completion, or `None` where there is none yet.
///
/// # Errors
/// Those of recvmsg(2).
pub fn completion(socket: impl AsFd) -> io::Result<Option<Completion>> {
    // Room for one sock_extended_err and the address behind it, aligned as a cmsghdr wants it.
    let mut control = [0u64; 16];
    // SAFETY: all bytes zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the kernel writes into `control` only, within its length.
    let rc = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &mut message, libc::MSG_ERRQUEUE) };
    match count(rc) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        done => done?,
    };
    // SAFETY: the kernel has filled msg_control and set its length.
    let header = unsafe { libc::CMSG_FIRSTHDR(&message) };
    if header.is_null() {
        return Ok(None);
    }
    // SAFETY: the header is in `control`, and the data behind it too.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: an error queue's message carries a sock_extended_err; it is copied out, whatever its alignment.
    let error: libc::sock_extended_err = unsafe { std::ptr::read_unaligned(data.cast()) };
    Ok(Some(Completion { origin: error.ee_origin, code: error.ee_code, first: error.ee_info, last: error.ee_data }))
}

//! The system calls of this lesson. If a call fails, the result is the errno.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

fn count(rc: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(rc).map_err(|_| io::Error::last_os_error())
}

/// Repeats the call while it fails with EINTR. On a socket with a timeout that happens even without
/// a signal handler, after SIGSTOP and SIGCONT (signal(7)).
///
/// # Errors
/// The errors of the call, except EINTR.
pub fn retry_eintr<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// sendfile(2): sends from `offset` of the file and advances `offset`. It sends fewer than `len`
/// bytes if the socket is full or the file ends, and returns 0 at the end of the file.
///
/// # Errors
/// The errors of sendfile(2).
pub fn sendfile(to: impl AsFd, file: impl AsFd, offset: &mut i64, len: usize) -> io::Result<usize> {
    let (to, file) = (to.as_fd().as_raw_fd(), file.as_fd().as_raw_fd());
    // SAFETY: both descriptors are open, and the kernel reads and writes one offset.
    count(unsafe { libc::sendfile(to, file, offset, len) })
}

/// splice(2) from a file into a pipe. The pipe then holds pages of the file, not a copy.
///
/// # Errors
/// The errors of splice(2).
pub fn splice_in(
    file: impl AsFd,
    offset: &mut i64,
    pipe: impl AsFd,
    len: usize,
) -> io::Result<usize> {
    let (file, pipe) = (file.as_fd().as_raw_fd(), pipe.as_fd().as_raw_fd());
    // SAFETY: both descriptors are open, and the kernel reads and writes one offset.
    count(unsafe {
        libc::splice(file, offset, pipe, std::ptr::null_mut(), len, libc::SPLICE_F_MOVE)
    })
}

/// splice(2) from a pipe into a socket.
///
/// # Errors
/// The errors of splice(2).
pub fn splice_out(pipe: impl AsFd, to: impl AsFd, len: usize) -> io::Result<usize> {
    let (pipe, to) = (pipe.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    let none = std::ptr::null_mut();
    // SAFETY: both descriptors are open, and no offset is given.
    count(unsafe { libc::splice(pipe, none, to, none, len, libc::SPLICE_F_MOVE) })
}

/// send(2) with MSG_ZEROCOPY: the kernel pins the buffer and may read it until the completion.
///
/// # Errors
/// The errors of send(2). ENOBUFS: too much memory is pinned.
pub fn send_zerocopy(to: impl AsFd, buffer: &[u8]) -> io::Result<usize> {
    let fd = to.as_fd().as_raw_fd();
    let flags = libc::MSG_ZEROCOPY | libc::MSG_NOSIGNAL;
    // SAFETY: the buffer is readable. A change before the completion changes only what is sent.
    count(unsafe { libc::send(fd, buffer.as_ptr().cast(), buffer.len(), flags) })
}

/// Sets SO_ZEROCOPY. Without it the kernel ignores MSG_ZEROCOPY.
///
/// # Errors
/// The errors of setsockopt(2).
pub fn enable_zerocopy(socket: impl AsFd) -> io::Result<()> {
    let (fd, one) = (socket.as_fd().as_raw_fd(), 1 as libc::c_int);
    let (from, len) = ((&raw const one).cast(), size_of_val(&one) as libc::socklen_t);
    // SAFETY: the kernel reads one int.
    let rc = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_ZEROCOPY, from, len) };
    count(rc as libc::ssize_t).map(drop)
}

/// A report of the kernel: the sends number `first` to `last` no longer need their buffers.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// 5: SO_EE_ORIGIN_ZEROCOPY.
    pub origin: u8,
    /// 1, SO_EE_CODE_ZEROCOPY_COPIED: the kernel has copied the buffer; otherwise 0.
    pub code: u8,
    /// The number of the first send, counted from 0.
    pub first: u32,
    /// The number of the last send.
    pub last: u32,
}

/// recvmsg(2) with MSG_ERRQUEUE, which does not wait. Returns the next completion, or `None` if the
/// error queue is empty.
///
/// # Errors
/// The errors of recvmsg(2).
pub fn completion(socket: impl AsFd) -> io::Result<Option<Completion>> {
    // Space for one sock_extended_err and an address, aligned for a cmsghdr.
    let mut control = [0u64; 16];
    // SAFETY: all bytes zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the kernel writes only into `control`, within its length.
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
    // SAFETY: the header and its data are in `control`.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: a message of the error queue holds a sock_extended_err. The read needs no alignment.
    let error: libc::sock_extended_err = unsafe { std::ptr::read_unaligned(data.cast()) };
    let (origin, code) = (error.ee_origin, error.ee_code);
    Ok(Some(Completion { origin, code, first: error.ee_info, last: error.ee_data }))
}

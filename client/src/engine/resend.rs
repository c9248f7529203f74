//! Whether TCP had to send something of a connection again.

use std::mem::{self, MaybeUninit};
use std::os::fd::AsRawFd;

use socket2::Socket;

/// Whether any segment of this connection was sent again; false if the kernel does not say. On a connection that has
/// just been established, or is not yet, that was the SYN.
pub fn retransmitted(socket: &Socket) -> bool {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = mem::size_of::<libc::tcp_info>() as libc::socklen_t;
    let fd = socket.as_raw_fd();
    // SAFETY: the kernel writes at most `length` bytes into `info`, which has so many.
    let result =
        unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut length) };
    // SAFETY: all of it was zeroed, which is a value of a struct of integers.
    let info = unsafe { info.assume_init() };
    result == 0 && info.tcpi_total_retrans > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_on_loopback_needs_no_second_syn() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let conn = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(!retransmitted(&conn.into()));
    }
}

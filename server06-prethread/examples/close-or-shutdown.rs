//! A thread sleeps in accept. close by another thread does not end the call; shutdown does.
//!
//! Run: cargo run -p server06-prethread --example close-or-shutdown

use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, Builder};
use std::time::Duration;

use nix::errno::Errno;

/// Enough time for a thread to call accept, or to return from it.
const WAIT: Duration = Duration::from_millis(300);

fn main() -> io::Result<()> {
    let mut out = io::stdout();

    let (listener, accepted) = sleeper()?;
    let addr = listener.local_addr()?;
    // The thread uses the descriptor number, as the threads of a C program do.
    drop(listener); // close
    let _ = writeln!(out, "close:     accept returned {}", result_of(&accepted));
    let _client = TcpStream::connect(addr)?;
    let _ = writeln!(out, "           a client connects: accept returned {}", result_of(&accepted));
    let next = TcpStream::connect(addr).err().map_or("accepted".to_owned(), |e| e.to_string());
    let _ = writeln!(out, "           the next client: {next}");

    let (listener, accepted) = sleeper()?;
    // SAFETY: the descriptor is open.
    Errno::result(unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RD) })?;
    let _ = writeln!(out, "shutdown:  accept returned {}", result_of(&accepted));
    Ok(())
}

/// A listener, and a thread that sleeps in accept on it. The thread sends what accept returns.
fn sleeper() -> io::Result<(TcpListener, Receiver<nix::Result<RawFd>>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let fd = listener.as_raw_fd();
    let (result, accepted) = channel();
    Builder::new().spawn(move || {
        // SAFETY: null pointers mean that the caller does not want the peer's address.
        let conn = unsafe { libc::accept4(fd, null_mut(), null_mut(), libc::SOCK_CLOEXEC) };
        let _ = result.send(Errno::result(conn));
    })?;
    thread::sleep(WAIT);
    Ok((listener, accepted))
}

fn result_of(accepted: &Receiver<nix::Result<RawFd>>) -> String {
    match accepted.recv_timeout(WAIT) {
        Err(_) => "nothing: the thread still sleeps".to_owned(),
        Ok(Err(errno)) => format!("{errno:?}"),
        Ok(Ok(fd)) => {
            // SAFETY: the kernel has just created this descriptor, and nothing else uses it.
            let conn = TcpStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
            format!("{}, a connection", conn.as_raw_fd())
        }
    }
}

//! A thread sleeps in accept, and another one wants it to stop: with close, which does nothing, and with shutdown.
//!
//! Run: cargo run -p server06-prethread --example close-or-shutdown

use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::mpsc::{Receiver, channel};
use std::thread::Builder;
use std::time::Duration;

use nix::errno::Errno;

/// Long enough for a thread to reach accept, and to return from it.
const MOMENT: Duration = Duration::from_millis(300);

fn main() -> io::Result<()> {
    let mut out = io::stdout();

    let (listener, accepted) = sleeper()?;
    let addr = listener.local_addr()?;
    // The thread knows the listener by its number, as the threads of a C program do.
    drop(listener); // close
    let _ = writeln!(out, "close:     accept has returned {}", heard(&accepted));
    let _client = TcpStream::connect(addr)?;
    let _ = writeln!(out, "           a client connects: accept has returned {}", heard(&accepted));
    let refused = TcpStream::connect(addr).err().map_or_else(|| "accepted".to_owned(), |e| e.to_string());
    let _ = writeln!(out, "           another one: {refused}");

    let (listener, accepted) = sleeper()?;
    // SAFETY: the descriptor is open.
    Errno::result(unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RD) })?;
    let _ = writeln!(out, "shutdown:  accept has returned {}", heard(&accepted));
    Ok(())
}

/// A listener, and a thread in accept on it that will say what accept returned.
fn sleeper() -> io::Result<(TcpListener, Receiver<nix::Result<RawFd>>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let fd = listener.as_raw_fd();
    let (tell, told) = channel();
    Builder::new().spawn(move || {
        // SAFETY: null pointers say that the peer's address is not wanted.
        let accepted = unsafe { libc::accept4(fd, std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC) };
        let _ = tell.send(Errno::result(accepted));
    })?;
    std::thread::sleep(MOMENT);
    Ok((listener, told))
}

fn heard(accepted: &Receiver<nix::Result<RawFd>>) -> String {
    match accepted.recv_timeout(MOMENT) {
        Err(_) => "nothing: it sleeps on".to_owned(),
        Ok(Err(errno)) => format!("{errno:?}"),
        Ok(Ok(fd)) => {
            // SAFETY: the kernel has just made it, and nobody else has it.
            let conn = TcpStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
            format!("{}, a connection", conn.as_raw_fd())
        }
    }
}

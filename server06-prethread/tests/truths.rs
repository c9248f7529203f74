//! Kernel truth (q): shutdown wakes a thread that sleeps in accept, and close does not.
#![allow(clippy::unwrap_used, clippy::panic)] // test code

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;

use nix::errno::Errno;
use nix::unistd::gettid;
use testkit::{Server, eventually, procs};

/// A listener, and a thread that sleeps in accept on it.
struct Sleeper {
    addr: SocketAddr,
    fd: RawFd,
    tid: i32,
    /// What accept returns.
    accepted: Receiver<nix::Result<RawFd>>,
}

fn sleeper() -> Sleeper {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    let fd = listener.into_raw_fd();
    let (result, accepted) = channel();
    let (own_tid, tid) = channel();
    thread::spawn(move || {
        own_tid.send(gettid().as_raw()).unwrap();
        // SAFETY: null pointers mean that the caller does not want the peer's address.
        let conn = unsafe { libc::accept4(fd, null_mut(), null_mut(), libc::SOCK_CLOEXEC) };
        result.send(Errno::result(conn)).unwrap();
    });
    let tid = tid.recv().unwrap();
    eventually("the thread sleeps in accept", || sleeps_in_accept(tid).then_some(()));
    Sleeper { addr, fd, tid, accepted }
}

fn sleeps_in_accept(tid: i32) -> bool {
    let wchan = fs::read_to_string(format!("/proc/self/task/{tid}/wchan"));
    wchan.is_ok_and(|function| function == "inet_csk_accept")
}

fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel returned this number to this test, and the caller gives up its copy.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The call in progress holds a reference to the socket. accept returns the next connection,
/// although no descriptor refers to the listener any more.
#[test]
fn truth_q_close_does_not_wake_accept_and_the_next_client_is_accepted() {
    let Sleeper { addr, fd, tid, accepted } = sleeper();
    drop(own(fd)); // close
    thread::sleep(std::time::Duration::from_millis(300)); // accept has time to return, but does not
    assert_eq!(accepted.try_recv(), Err(TryRecvError::Empty));
    assert!(sleeps_in_accept(tid));

    let mut client = TcpStream::connect(addr).unwrap();
    let conn = own(accepted.recv_timeout(testkit::TIMEOUT).unwrap().unwrap());
    client.write_all(b"x").unwrap();
    let conn = TcpStream::from(conn);
    assert_eq!(conn.peek(&mut [0]).unwrap(), 1, "the connection works");
    // The call has returned, and with it the last reference to the listener is gone.
    eventually("connections are refused", || TcpStream::connect(addr).is_err().then_some(()));
}

#[test]
fn truth_q_shutdown_wakes_accept_with_einval_and_later_calls_fail_too() {
    let Sleeper { addr, fd, accepted, .. } = sleeper();
    let listener = own(fd);
    // SAFETY: the listener is open.
    assert_eq!(unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RD) }, 0);
    assert_eq!(accepted.recv_timeout(testkit::TIMEOUT).unwrap(), Err(Errno::EINVAL));
    // SAFETY: null pointers mean that the caller does not want the peer's address.
    let again = unsafe { libc::accept(listener.as_raw_fd(), null_mut(), null_mut()) };
    assert_eq!(Errno::result(again), Err(Errno::EINVAL));
    assert!(TcpStream::connect(addr).is_err(), "the kernel refuses clients of the open listener");
}

/// The same with the real pool: another process shuts the listener down, and all eight threads
/// return from accept. No signal has requested a shutdown, so this is an error of the server.
#[test]
fn truth_q_one_shutdown_of_the_listener_wakes_the_whole_pool() {
    let mut server = Server::start(env!("CARGO_BIN_EXE_server06-prethread"), &[]);
    let in_accept = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap().flatten();
        let wchan = tasks.filter_map(|task| fs::read_to_string(task.path().join("wchan")).ok());
        wchan.filter(|function| function == "inet_csk_accept").count()
    };
    eventually("all threads sleep in accept", || (in_accept() == 8).then_some(()));
    procs::borrow_listener(server.pid()).shutdown(Shutdown::Read).unwrap();
    let status = server.wait();
    assert_eq!(status.code(), Some(1), "{}", server.log());
    assert!(server.log().contains("accept: Invalid argument"), "{}", server.log());
}

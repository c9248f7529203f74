//! Kernel truth (q): what wakes a thread that sleeps in accept, and what does not.
#![allow(clippy::unwrap_used, clippy::panic)] // test code

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;

use nix::errno::Errno;
use nix::unistd::gettid;
use testkit::{Server, eventually, procs};

/// A listener, and a thread that sleeps in accept on it: its address, its number, and what accept will have returned.
fn sleeper() -> (SocketAddr, RawFd, i32, Receiver<nix::Result<RawFd>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    let fd = listener.into_raw_fd();
    let (tell, told) = channel();
    let (tell_tid, tid) = channel();
    thread::spawn(move || {
        tell_tid.send(gettid().as_raw()).unwrap();
        // SAFETY: null pointers say that the peer's address is not wanted.
        let accepted = unsafe { libc::accept4(fd, std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC) };
        tell.send(Errno::result(accepted)).unwrap();
    });
    let tid = tid.recv().unwrap();
    eventually("it sleeps in accept", || sleeps_in_accept(tid).then_some(()));
    (at, fd, tid, told)
}

fn sleeps_in_accept(tid: i32) -> bool {
    fs::read_to_string(format!("/proc/self/task/{tid}/wchan")).is_ok_and(|at| at == "inet_csk_accept")
}

fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller has the number from the kernel, and hands it over.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The call holds the file as long as it sleeps. The next client is accepted by a listener that no number names any more.
#[test]
fn truth_q_close_does_not_wake_accept_and_the_next_client_is_accepted() {
    let (at, fd, tid, told) = sleeper();
    drop(own(fd)); // close
    thread::sleep(std::time::Duration::from_millis(300)); // in which nothing is to happen
    assert_eq!(told.try_recv(), Err(TryRecvError::Empty));
    assert!(sleeps_in_accept(tid));

    let mut client = TcpStream::connect(at).unwrap();
    let conn = own(told.recv_timeout(testkit::PATIENCE).unwrap().unwrap());
    client.write_all(b"x").unwrap();
    let conn = TcpStream::from(conn);
    assert_eq!(conn.peek(&mut [0]).unwrap(), 1, "a connection like any other");
    // With that call the last reference is gone.
    eventually("refused", || TcpStream::connect(at).is_err().then_some(()));
}

#[test]
fn truth_q_shutdown_wakes_accept_with_einval_and_every_later_one() {
    let (at, fd, _, told) = sleeper();
    let listener = own(fd);
    // SAFETY: the listener is open.
    assert_eq!(unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RD) }, 0);
    assert_eq!(told.recv_timeout(testkit::PATIENCE).unwrap(), Err(Errno::EINVAL));
    // SAFETY: null pointers say that the peer's address is not wanted.
    let again = unsafe { libc::accept(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut()) };
    assert_eq!(Errno::result(again), Err(Errno::EINVAL));
    assert!(TcpStream::connect(at).is_err(), "and clients are refused while the listener is open");
}

/// The same on the real pool: one shutdown on the listener, made by somebody else, and all eight threads return from
/// accept. A signal does no more than that in this server; without one it is an error.
#[test]
fn truth_q_one_shutdown_wakes_the_whole_pool() {
    let mut server = Server::start(env!("CARGO_BIN_EXE_server06-prethread"), &[]);
    let threads = || fs::read_dir(format!("/proc/{}/task", server.pid())).into_iter().flatten().flatten();
    let in_accept = || {
        threads().filter(|task| fs::read_to_string(task.path().join("wchan")).is_ok_and(|at| at == "inet_csk_accept"))
    };
    eventually("all sleep in accept", || (in_accept().count() == 8).then_some(()));
    procs::borrow_listener(server.pid()).shutdown(Shutdown::Read).unwrap();
    let status = server.wait();
    assert_eq!(status.code(), Some(1), "{}", server.log());
    assert!(server.log().contains("accept: Invalid argument"), "{}", server.log());
}

//! Kernel truth (r): what Rust's std does without being asked, and the raw calls of this lesson therefore show.
#![allow(clippy::unwrap_used, clippy::panic)] // test code

#[path = "../examples/std-server.rs"]
mod std_server;

use std::net::{TcpListener, TcpStream};
use std::process::Command;

use testkit::{Server, tools};

#[test]
fn truth_r_what_std_does_without_being_asked() {
    const TEST: &str = "truth_r_what_std_does_without_being_asked";
    if std::env::var("STD_PROGRAM").is_ok() {
        return std_server::main().unwrap();
    }
    if !tools::have("strace", TEST) {
        return;
    }
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", "signal=none", "-e"]);
    strace.arg("trace=socket,setsockopt,bind,listen,accept4,accept,sendto,write,ioctl,fcntl,clone,clone3,rt_sigaction");
    strace.arg(std::env::current_exe().unwrap()).args(["--exact", TEST]).env("STD_PROGRAM", "1");
    let output = strace.output().unwrap();
    let trace = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{trace}");
    let has =
        |parts: &[&str]| trace.lines().any(|line| parts.iter().all(|part| line.contains(part)));
    for call in [
        &["rt_sigaction(SIGPIPE, {sa_handler=SIG_IGN"][..],
        &["socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC"],
        &["setsockopt(", "SOL_SOCKET, SO_REUSEADDR, [1]"],
        // 128, whatever net.core.somaxconn is.
        &["listen(", ", 128"],
        &["accept4", "SOCK_CLOEXEC) = "],
        &["sendto(", "\"hello\", 5, MSG_NOSIGNAL"],
        &["ioctl(", "FIONBIO, [1]"],
        &["clone3("],
    ] {
        assert!(has(call), "no {call:?} in\n{trace}");
    }
    assert!(!has(&["O_NONBLOCK"]), "FIONBIO, and not fcntl:\n{trace}");
    assert!(!has(&["TCP_NODELAY"]), "Nagle's algorithm is on:\n{trace}");
}

/// On Linux O_NONBLOCK stays with the listener, on the BSDs it does not: accept(2).
#[test]
fn truth_r_accepted_sockets_do_not_inherit_nonblocking() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (conn, _) = testkit::eventually("accepted", || listener.accept().ok());
    let flags = |socket: &dyn std::os::fd::AsRawFd| {
        // SAFETY: asks only.
        unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_GETFL) }
    };
    assert_ne!(flags(&listener) & libc::O_NONBLOCK, 0);
    assert_eq!(flags(&conn) & libc::O_NONBLOCK, 0);
}

/// They do inherit TCP_NODELAY, which is why this server sets it once, on the listener. Seen from outside: two answers,
/// and no wait for the client's delayed ACK between them.
#[test]
fn truth_r_the_server_sets_what_std_does_not() {
    if !tools::have("strace", "truth_r_the_server_sets_what_std_does_not") {
        return;
    }
    let mut strace = Command::new("strace");
    strace.args(["-qq", "-e", "signal=none", "-e", "trace=setsockopt,listen,accept4"]);
    let mut server =
        Server::start_with(strace.arg(env!("CARGO_BIN_EXE_server00-iterative")).args(["-p", "0"]));
    server.connect().ask(1);
    let traced = server.family().into_iter().find(|p| p.pid != server.pid()).unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(traced.pid),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert_eq!(server.wait().code(), Some(0));
    let trace = server.log();
    for call in ["SO_REUSEADDR, [1]", "TCP_NODELAY, [1]", ", 1024)", "SOCK_CLOEXEC) = "] {
        assert!(trace.contains(call), "no {call} in\n{trace}");
    }
}

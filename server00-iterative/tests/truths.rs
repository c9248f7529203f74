//! Kernel truth (r): the options that Rust's std sets without a call in the program. server00 makes
//! these calls itself.
#![allow(clippy::unwrap_used, clippy::panic)] // test code

#[path = "../examples/std-server.rs"]
mod std_server;

use std::net::{TcpListener, TcpStream};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::{End, Peer, Server, procs, tools};

#[test]
fn truth_r_std_sets_reuseaddr_cloexec_and_a_backlog_of_128() {
    const TEST: &str = "truth_r_std_sets_reuseaddr_cloexec_and_a_backlog_of_128";
    if std::env::var("STD_PROGRAM").is_ok() {
        return std_server::main().unwrap();
    }
    if !tools::have("strace", TEST) {
        return;
    }
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", "signal=none", "-e"]);
    strace.arg(
        "trace=socket,setsockopt,bind,listen,accept4,accept,sendto,write,ioctl,fcntl,clone,clone3,\
         rt_sigaction",
    );
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
        // std passes 128 for every value of net.core.somaxconn.
        &["listen(", ", 128"],
        &["accept4", "SOCK_CLOEXEC) = "],
        &["sendto(", "\"hello\", 5, MSG_NOSIGNAL"],
        &["ioctl(", "FIONBIO, [1]"],
        &["clone3("],
    ] {
        assert!(has(call), "no {call:?} in\n{trace}");
    }
    assert!(!has(&["O_NONBLOCK"]), "std sets O_NONBLOCK with FIONBIO, not with fcntl:\n{trace}");
    assert!(!has(&["TCP_NODELAY"]), "std leaves Nagle's algorithm on:\n{trace}");
}

/// On Linux an accepted socket does not inherit O_NONBLOCK. On the BSDs it does: see accept(2).
#[test]
fn truth_r_accepted_socket_does_not_inherit_o_nonblock() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (conn, _) = testkit::eventually("accept returns a connection", || listener.accept().ok());
    let flags = |socket: &dyn std::os::fd::AsRawFd| {
        // SAFETY: F_GETFL only reads the flags.
        unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_GETFL) }
    };
    assert_ne!(flags(&listener) & libc::O_NONBLOCK, 0);
    assert_eq!(flags(&conn) & libc::O_NONBLOCK, 0);
}

/// server00 sets TCP_NODELAY once, on the listener.
#[test]
fn truth_r_accepted_socket_inherits_tcp_nodelay() {
    let mut server = Server::start(env!("CARGO_BIN_EXE_server00-iterative"), &[]);
    let mut peer = server.connect();
    peer.ask(1);
    assert!(procs::borrow_connection(&server, &peer).tcp_nodelay().unwrap());
    drop(peer);
    server.stop().unwrap();
}

#[test]
fn truth_r_server_makes_the_calls_that_std_hides() {
    if !tools::have("strace", "truth_r_server_makes_the_calls_that_std_hides") {
        return;
    }
    let mut strace = Command::new("strace");
    strace.args(["-qq", "-e", "signal=none", "-e", "trace=setsockopt,listen,accept4"]);
    strace.args([env!("CARGO_BIN_EXE_server00-iterative"), "-p", "0"]);
    let mut server = Server::start_with(&mut strace);
    server.connect().ask(1);
    let traced = server.family().into_iter().find(|p| p.pid != server.pid()).unwrap();
    kill(Pid::from_raw(traced.pid), Signal::SIGTERM).unwrap();
    assert_eq!(server.wait().code(), Some(0));
    let trace = server.log();
    for call in ["SO_REUSEADDR, [1]", "TCP_NODELAY, [1]", ", 1024)", "SOCK_CLOEXEC) = "] {
        assert!(trace.contains(call), "no {call} in\n{trace}");
    }
}

/// shutdown(2) and close(2) of a listener reset the connections that no process has accepted.
#[test]
fn truth_r_clients_in_the_backlog_are_reset_when_the_listener_is_shut_down() {
    let mut server = Server::start(env!("CARGO_BIN_EXE_server00-iterative"), &[]);
    let mut served = server.connect();
    served.ask(10);
    let mut queued: Vec<Peer> = (0..20).map(|_| server.connect()).collect();
    queued.iter_mut().for_each(|peer| peer.send("10\n"));
    server.signal(Signal::SIGTERM);
    for mut peer in queued {
        assert_eq!(peer.read_to_end(), (Vec::new(), End::Reset));
    }
    assert_eq!(served.read_to_end(), (Vec::new(), End::Eof), "the accepted client gets a FIN");
    assert_eq!(server.wait().code(), Some(0));
}

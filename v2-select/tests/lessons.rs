//! What this version teaches: a set has 1024 bits, and a read of 0 bytes is the end of file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use testkit::chat::GREETING;
use testkit::{End, Peer, Server, eventually, procs};

const BIN: &str = env!("CARGO_BIN_EXE_v2-select");
const NAIVE: &str = env!("CARGO_BIN_EXE_naive-spin");
const FD_SETSIZE: i32 = 1024;
const FULL: &str = "! server-full try again later\n";

/// Raises the limit of descriptors of this process, and of the servers, which inherit it.
fn raise_limit() {
    procs::limit_descriptors(std::process::id() as i32, 4096);
}

/// Reads the greeting and the welcome.
fn welcome(peer: &mut Peer, nick: &str, here: u32) {
    let wanted = format!("{GREETING}\n* welcome {nick}; {here} here");
    assert_eq!(String::from_utf8_lossy(&peer.read_exactly(wanted.len())), wanted);
}

fn assert_full(peer: &mut Peer) {
    let (bytes, end) = peer.read_to_end();
    assert_eq!((String::from_utf8_lossy(&bytes).as_ref(), end), (FULL, End::Eof));
}

#[test]
fn eleven_hundred_clients_at_once() {
    raise_limit();
    let mut server = Server::start(BIN, &[]);
    let mut peers: Vec<Peer> = (0..1100).map(|_| server.connect()).collect();
    let mut late = peers.split_off(960);
    // The server must read the nick first: a close with unread bytes sends a RST.
    late.iter_mut().for_each(|peer| drop(peer.try_send("late\n")));
    for mut peer in late {
        assert_full(&mut peer);
    }
    let highest = *procs::descriptors(server.pid()).last_key_value().unwrap().0;
    assert!(highest < FD_SETSIZE, "descriptor {highest}");
    peers[0].send("first\n");
    welcome(&mut peers[0], "first", 1);
    peers[959].send("last\n");
    welcome(&mut peers[959], "last", 2);
    drop(peers);
    server.stop().unwrap();
}

/// The server, started by a process that left descriptors 3 to `end` - 1 open.
fn command_with_open(end: i32) -> Command {
    let mut command = Command::new(BIN);
    command.args(["-p", "0"]);
    let leave_open = move || {
        for fd in 3..end {
            // SAFETY: dup2 is async-signal-safe. Its copies are not close-on-exec.
            if unsafe { libc::dup2(0, fd) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing and takes no lock.
    unsafe { command.pre_exec(leave_open) };
    command
}

#[test]
fn descriptor_that_no_set_can_hold_is_never_handed_out() {
    raise_limit();
    let mut server = Server::start_with(&mut command_with_open(1003));
    let used = procs::descriptors(server.pid());
    let free = (0..FD_SETSIZE).filter(|fd| !used.contains_key(fd)).count();
    assert!((10..24).contains(&free), "{free} numbers are free");
    let mut peers: Vec<Peer> = (0..60).map(|_| server.connect()).collect();
    // The others stay in the backlog until a client leaves.
    server.wait_log("Too many open files");
    peers[59].send("last\n");
    peers[0].send("first\n");
    welcome(&mut peers[0], "first", 1);
    let mut last = peers.pop().unwrap();
    drop(peers.split_off(1));
    welcome(&mut last, "last", 2);
    server.stop().unwrap();
    assert!(!server.log().contains("panicked"), "{}", server.log());

    let Output { status, stdout, stderr } = command_with_open(FD_SETSIZE).output().unwrap();
    let text = String::from_utf8_lossy(&stderr);
    assert_eq!((status.code(), stdout.len(), text.lines().count()), (Some(1), 0, 1), "{text}");
    assert!(text.starts_with("Error: ") && text.contains("Too many open files"), "{text}");
}

#[test]
fn loop_that_ignores_the_end_of_file_spins() {
    let (naive, right) = (Server::start(NAIVE, &[]), Server::start(BIN, &[]));
    for server in [&naive, &right] {
        let mut peer = server.connect();
        peer.send("bob\n");
        drop(peer);
    }
    let before = procs::cpu_ns(right.pid());
    // Half a second of CPU without any client.
    eventually("the naive server spins", || {
        (procs::cpu_ns(naive.pid()) > 500_000_000).then_some(())
    });
    let spent = procs::cpu_ns(right.pid()) - before;
    assert!(spent < 100_000_000, "{spent} ns for one client that came and went");
}

//! FD_SETSIZE limits descriptor numbers. Whatever numbers are free, each client is served, rejected
//! or queued, and the server does not panic.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use testkit::oracle::{self, Baseline};
use testkit::{End, Peer, Server, procs};

const BIN: &str = env!("CARGO_BIN_EXE_server02-select");
const FD_SETSIZE: i32 = 1024;

/// Raises the limit of descriptors of this process. The servers inherit it.
fn raise_limit() {
    procs::limit_descriptors(std::process::id() as i32, 4096);
}

/// A server that inherits open descriptors with the numbers 3 to `end` - 1.
fn command_with_open(end: i32) -> Command {
    let mut command = Command::new(BIN);
    command.args(["-p", "0"]);
    let leave_open = move || {
        for fd in 3..end {
            // SAFETY: dup2 is async-signal-safe. The copies are not close-on-exec.
            if unsafe { libc::dup2(0, fd) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure allocates no memory and takes no lock.
    unsafe { command.pre_exec(leave_open) };
    command
}

fn assert_busy(peer: &mut Peer) {
    let (bytes, end) = peer.read_to_end();
    assert_eq!((String::from_utf8_lossy(&bytes).as_ref(), end), ("ERR busy\n", End::Eof));
}

#[test]
fn clients_over_the_limit_are_rejected_and_no_descriptor_reaches_fd_setsize() {
    raise_limit();
    let server = Server::start(BIN, &[]);
    let base = Baseline::of(&server);
    let mut peers: Vec<Peer> = (0..1100).map(|_| server.connect()).collect();
    let mut late = peers.split_off(992);
    peers.iter_mut().for_each(|peer| peer.ask(100));
    // A close with unread bytes would send a RST, and the error line would be lost.
    late.iter_mut().for_each(|peer| drop(peer.try_send("3000\n")));
    for mut peer in late {
        assert_busy(&mut peer);
    }
    let highest = *procs::descriptors(server.pid()).last_key_value().unwrap().0;
    assert!(highest < FD_SETSIZE, "descriptor {highest}");
    peers.iter_mut().for_each(|peer| peer.ask(100));
    drop(peers);
    oracle::finish(server, &base);
}

#[test]
fn clients_without_a_free_descriptor_wait_in_the_backlog() {
    raise_limit();
    let mut server = Server::start_with(&mut command_with_open(1003));
    let used = procs::descriptors(server.pid());
    let free = (0..FD_SETSIZE).filter(|fd| !used.contains_key(fd)).count();
    assert!((10..24).contains(&free), "{free} descriptors are free");
    for _ in 0..3 {
        let mut peers: Vec<Peer> = (0..200).map(|_| server.connect()).collect();
        let mut late = peers.split_off(free);
        peers.iter_mut().for_each(|peer| peer.ask(100_000));
        late.iter_mut().for_each(|peer| peer.send("3000\n"));
        peers.iter_mut().for_each(|peer| peer.ask(100_000));
        assert!(late.iter().all(Peer::is_waiting), "a client without a descriptor got an answer");
        drop(peers);
        for mut peer in late {
            assert!(peer.read_exactly(3000) == testkit::pattern(3000));
        }
        let descriptors = || procs::descriptors(server.pid()).len();
        testkit::eventually("all are closed", || (descriptors() == used.len()).then_some(()));
    }
    server.stop().unwrap();
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

/// The signals get the number `end`, the listener the next one, and the first client the one after
/// it.
#[test]
fn server_serves_up_to_the_last_number_below_fd_setsize_and_otherwise_prints_one_line() {
    raise_limit();
    for end in 1018..1030 {
        if end + 1 < FD_SETSIZE {
            let mut server = Server::start_with(&mut command_with_open(end));
            match end + 2 < FD_SETSIZE {
                true => server.connect().ask(10),
                false => {
                    server.connect().send("10\n");
                    server.wait_log("accept: Too many open files");
                }
            }
            server.stop().unwrap();
        } else {
            let Output { status, stdout, stderr } = command_with_open(end).output().unwrap();
            let text = String::from_utf8_lossy(&stderr);
            assert_eq!((status.code(), stdout.len()), (Some(1), 0), "{end}: {text}");
            assert_eq!(text.lines().count(), 1, "{end}: {text}");
            assert!(text.contains("EMFILE") || text.contains("Too many open files"), "{text}");
        }
    }
}

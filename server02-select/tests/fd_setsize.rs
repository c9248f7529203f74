//! FD_SETSIZE is a bound on descriptor *numbers*: whatever they are, nobody is lost without a word, and nothing panics.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use testkit::oracle::{self, Baseline};
use testkit::{End, Peer, Server, procs};

const BIN: &str = env!("CARGO_BIN_EXE_server02-select");
const FD_SETSIZE: i32 = 1024;

/// Descriptors enough for this process, and for the servers, which inherit the limit.
fn raise_limit() {
    procs::limit_descriptors(std::process::id() as i32, 4096);
}

/// The server as somebody starts it who left descriptors 3 to `end` - 1 open.
fn command_with_open(end: i32) -> Command {
    let mut command = Command::new(BIN);
    command.args(["-p", "0"]);
    let leave_open = move || {
        for fd in 3..end {
            // SAFETY: dup2 is async-signal-safe. Its copies are not close-on-exec; what it replaces would have been.
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

fn assert_busy(peer: &mut Peer) {
    let (bytes, end) = peer.read_to_end();
    assert_eq!((String::from_utf8_lossy(&bytes).as_ref(), end), ("ERR busy\n", End::Eof));
}

#[test]
fn eleven_hundred_clients_at_once() {
    raise_limit();
    let server = Server::start(BIN, &[]);
    let base = Baseline::of(&server);
    let mut peers: Vec<Peer> = (0..1100).map(|_| server.connect()).collect();
    let mut late = peers.split_off(992);
    peers.iter_mut().for_each(|peer| peer.ask(100));
    // Their question is in their way: a close with unread bytes would be a reset, and the error line lost.
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
fn a_thousand_inherited_descriptors() {
    raise_limit();
    let mut server = Server::start_with(&mut command_with_open(1003));
    let used = procs::descriptors(server.pid());
    let places = (0..FD_SETSIZE).filter(|fd| !used.contains_key(fd)).count();
    assert!((10..24).contains(&places), "{places} places are left in a set");
    for _ in 0..3 {
        let mut peers: Vec<Peer> = (0..200).map(|_| server.connect()).collect();
        let mut late = peers.split_off(places);
        peers.iter_mut().for_each(|peer| peer.ask(100_000));
        late.iter_mut().for_each(|peer| peer.send("3000\n"));
        peers.iter_mut().for_each(|peer| peer.ask(100_000));
        assert!(late.iter().all(Peer::is_waiting), "no descriptor is left for them");
        drop(peers);
        late.into_iter().for_each(|mut peer| assert!(peer.read_exactly(3000) == testkit::pattern(3000)));
        testkit::eventually("all are gone", || (procs::descriptors(server.pid()).len() == used.len()).then_some(()));
    }
    server.stop().unwrap();
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

/// Around the end of the set: either there is room for the signals, the listener and a client, or one line says why not.
#[test]
fn no_room_for_the_listener() {
    raise_limit();
    for end in 1018..1030 {
        // The signals come to `end`, the listener behind them, and then the first client.
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
            assert_eq!((status.code(), stdout.len(), text.lines().count()), (Some(1), 0, 1), "{end}: {text}");
            assert!(text.contains("EMFILE") || text.contains("Too many open files"), "{text}");
        }
    }
}

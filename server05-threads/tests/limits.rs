//! What this example promises beyond the suite: a kernel without threads to give, and a bounded number of them.

use testkit::tools::{self, Injection};
use testkit::{End, Peer, Server, eventually, oracle};

const BIN: &str = env!("CARGO_BIN_EXE_server05-threads");
const DEAD_ENDS: i64 = 8;

fn threads(server: &Server) -> i64 {
    server.family().iter().map(|proc| proc.threads).sum()
}

/// A13: thread::spawn would panic here, and the acceptor with it.
#[test]
fn a_thread_that_cannot_be_made_costs_one_client() {
    if !tools::have("strace", "a_thread_that_cannot_be_made_costs_one_client") {
        return;
    }
    let server = Server::start(BIN, &[]);
    let base = oracle::Baseline::of(&server);
    for errno in ["EAGAIN", "ENOMEM"] {
        let injection = Injection::attach(&[server.pid()], false, &format!("clone3,?clone:error={errno}:when=1"));
        let mut peer = server.connect();
        peer.send("10\n");
        assert_eq!(peer.read_to_end(), (b"ERR busy\n".to_vec(), End::Eof), "{errno}");
        server.connect().ask(10);
        drop(injection);
    }
    assert!(server.log().contains("clone: "), "{}", server.log());
    oracle::finish(server, &base);
}

/// Silent clients far beyond the limit: the limit's are served, the dead ends' are told, the rest wait in the backlog.
#[test]
fn the_threads_are_counted() {
    const LIMIT: usize = 4;
    let server = Server::start(BIN, &["--max-conns", "4"]);
    let base = oracle::Baseline::of(&server);
    let mut served: Vec<Peer> = (0..LIMIT).map(|_| server.connect()).collect();
    served.iter_mut().for_each(|peer| peer.ask(10));
    assert_eq!(threads(&server), 1 + LIMIT as i64);
    let late: Vec<Peer> = (0..40).map(|_| server.connect()).collect();
    let mut most = 0;
    eventually("every client too many is told", || {
        most = most.max(threads(&server));
        late.iter().all(|peer| !peer.is_waiting()).then_some(())
    });
    assert!(most > 1 + LIMIT as i64, "the dead ends were never seen");
    // A thread that has given its place back may take a moment to end.
    assert!(most <= 1 + LIMIT as i64 + DEAD_ENDS + 2, "{most} threads for a limit of {LIMIT}");
    for mut peer in late {
        assert_eq!(peer.read_to_end(), (b"ERR busy\n".to_vec(), End::Eof));
    }
    served.iter_mut().for_each(|peer| peer.ask(10));
    drop(served);
    oracle::finish(server, &base);
}

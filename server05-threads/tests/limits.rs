//! What this example promises beyond the suite: a kernel without threads to give, and a bounded number of them.

use testkit::tools::{self, Injection};
use testkit::{End, Peer, Server, oracle};

const BIN: &str = env!("CARGO_BIN_EXE_server05-threads");

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
        let (bytes, end) = peer.read_to_end();
        assert!(bytes.is_empty() && end != End::Silence, "{errno}");
        server.connect().ask(10);
        drop(injection);
    }
    assert!(server.log().contains("clone: "), "{}", server.log());
    oracle::finish(server, &base);
}

/// Silent clients far beyond the limit: they wait in the backlog, and there is no thread for them.
#[test]
fn the_threads_are_counted() {
    const LIMIT: usize = 4;
    let server = Server::start(BIN, &["--max-conns", "4"]);
    let base = oracle::Baseline::of(&server);
    let mut served: Vec<Peer> = (0..LIMIT).map(|_| server.connect()).collect();
    served.iter_mut().for_each(|peer| peer.ask(10));
    assert_eq!(threads(&server), 1 + LIMIT as i64);
    let mut late: Vec<Peer> = (0..40).map(|_| server.connect()).collect();
    late.iter_mut().for_each(|peer| peer.send("20\n"));
    served.iter_mut().for_each(|peer| peer.ask(10));
    assert_eq!(threads(&server), 1 + LIMIT as i64);
    assert!(late.iter().all(Peer::is_waiting));
    drop(served);
    for mut peer in late {
        assert!(peer.read_exactly(20) == testkit::pattern(20), "served in turn");
    }
    oracle::finish(server, &base);
}

//! What this example promises beyond the suite: a failed clone costs one client, and the number of
//! threads is limited.

use testkit::tools::{self, Injection};
use testkit::{End, Peer, Server, oracle};

const BIN: &str = env!("CARGO_BIN_EXE_server05-threads");

fn threads(server: &Server) -> i64 {
    server.family().iter().map(|proc| proc.threads).sum()
}

/// A13: thread::spawn would panic here and end the main thread.
#[test]
fn failed_clone_closes_one_connection_and_the_server_goes_on() {
    if !tools::have("strace", "failed_clone_closes_one_connection_and_the_server_goes_on") {
        return;
    }
    let server = Server::start(BIN, &[]);
    let base = oracle::Baseline::of(&server);
    for errno in ["EAGAIN", "ENOMEM"] {
        let call = format!("clone3,?clone:error={errno}:when=1");
        let injection = Injection::attach(&[server.pid()], false, &call);
        let mut peer = server.connect();
        let (bytes, end) = peer.read_to_end();
        assert!(bytes.is_empty() && end != End::Silence, "{errno}");
        server.connect().ask(10);
        drop(injection);
    }
    assert!(server.log().contains("clone: "), "{}", server.log());
    oracle::finish(server, &base);
}

/// Far more clients than the limit connect and send a request. They wait in the backlog without a
/// thread, and are served when the first clients have gone.
#[test]
fn clients_over_the_limit_wait_without_a_thread() {
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
        assert!(peer.read_exactly(20) == testkit::pattern(20), "a client of the backlog is served");
    }
    oracle::finish(server, &base);
}

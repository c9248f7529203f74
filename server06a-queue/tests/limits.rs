//! What this example promises beyond the suite: a queue with an end, and what happens there.

#![allow(clippy::unwrap_used)] // test code

use testkit::{Peer, Server, eventually, oracle, procs};

const BIN: &str = env!("CARGO_BIN_EXE_server06a-queue");

/// A server with one worker and two places to wait, all taken: who is served, and who waits.
fn full_house(args: &[&str]) -> (Server, oracle::Baseline, Peer, Vec<Peer>) {
    let server = Server::start(BIN, &[&["-n", "1", "--queue", "2"], args].concat());
    let base = oracle::Baseline::of(&server);
    let mut served = server.connect();
    served.ask(10);
    let mut waiting: Vec<Peer> = (0..2).map(|_| server.connect()).collect();
    waiting.iter_mut().for_each(|peer| peer.send("20\n"));
    (server, base, served, waiting)
}

/// Accepted by the server: it holds the client's connection.
fn held(server: &Server, peer: &Peer) -> bool {
    !procs::holders(server, peer).is_empty()
}

#[test]
fn the_queue_takes_its_limit_and_the_backlog_the_rest() {
    let (server, base, mut served, waiting) = full_house(&[]);
    let mut late: Vec<Peer> = (0..3).map(|_| server.connect()).collect();
    late.iter_mut().for_each(|peer| peer.send("30\n"));
    served.ask(10);
    eventually("the queue is full", || waiting.iter().all(|peer| held(&server, peer)).then_some(()));
    // One more is in the acceptor's hand, which waits for room; the others are the kernel's.
    eventually("one is in hand", || (late.iter().filter(|peer| held(&server, peer)).count() == 1).then_some(()));
    served.ask(10);
    assert!(waiting.iter().chain(&late).all(Peer::is_waiting));
    drop(served);
    for mut peer in waiting {
        assert!(peer.read_exactly(20) == testkit::pattern(20), "served in turn");
    }
    for mut peer in late {
        assert!(peer.read_exactly(30) == testkit::pattern(30), "served in turn");
    }
    oracle::finish(server, &base);
}

/// D24: who was reset while it waited costs its worker one read.
#[test]
fn who_is_gone_is_dropped() {
    let (server, base, mut served, waiting) = full_house(&[]);
    waiting.into_iter().for_each(Peer::reset);
    let mut late = server.connect();
    served.ask(10);
    drop(served);
    late.ask(30);
    drop(late);
    oracle::finish(server, &base);
}

/// A full queue is no obstacle to a stop: what was received is answered.
#[test]
fn a_full_queue_can_be_stopped() {
    let (mut server, _, _served, waiting) = full_house(&[]);
    let _late: Vec<Peer> = (0..3).map(|_| server.connect()).collect();
    eventually("the queue is full", || waiting.iter().all(|peer| held(&server, peer)).then_some(()));
    server.stop().unwrap();
    for mut peer in waiting {
        assert!(peer.read_exactly(20) == testkit::pattern(20), "what was asked before the stop is answered");
    }
}

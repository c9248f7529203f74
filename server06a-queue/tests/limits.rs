//! What this example promises beyond the suite: a bounded queue, and no accept while it is full.

#![allow(clippy::unwrap_used)] // test code

use testkit::{Peer, Server, eventually, oracle, procs};

const BIN: &str = env!("CARGO_BIN_EXE_server06a-queue");

/// A server whose only worker serves one client. Two more clients fill the queue.
struct Full {
    server: Server,
    base: oracle::Baseline,
    served: Peer,
    queued: Vec<Peer>,
}

fn full_queue() -> Full {
    let server = Server::start(BIN, &["-n", "1", "--queue", "2"]);
    let base = oracle::Baseline::of(&server);
    let mut served = server.connect();
    served.ask(10);
    let mut queued: Vec<Peer> = (0..2).map(|_| server.connect()).collect();
    queued.iter_mut().for_each(|peer| peer.send("20\n"));
    eventually("the queue is full", || {
        queued.iter().all(|peer| is_accepted(&server, peer)).then_some(())
    });
    Full { server, base, served, queued }
}

/// True if the server has a descriptor of the client's connection.
fn is_accepted(server: &Server, peer: &Peer) -> bool {
    !procs::holders(server, peer).is_empty()
}

#[test]
fn full_queue_stops_accept_and_all_clients_are_served_in_the_end() {
    let Full { server, base, mut served, queued } = full_queue();
    let mut late: Vec<Peer> = (0..3).map(|_| server.connect()).collect();
    late.iter_mut().for_each(|peer| peer.send("30\n"));
    served.ask(10);
    // The acceptor has accepted one more client and waits for room. The other clients are in the
    // backlog.
    eventually("one more client is accepted", || {
        (late.iter().filter(|peer| is_accepted(&server, peer)).count() == 1).then_some(())
    });
    served.ask(10);
    assert!(queued.iter().chain(&late).all(Peer::is_waiting));
    drop(served);
    for mut peer in queued {
        assert!(peer.read_exactly(20) == testkit::pattern(20), "a client of the queue is served");
    }
    for mut peer in late {
        assert!(peer.read_exactly(30) == testkit::pattern(30), "a client of the backlog is served");
    }
    oracle::finish(server, &base);
}

/// D24: a client that resets its connection while it is in the queue costs its worker one read.
#[test]
fn clients_that_reset_in_the_queue_do_not_stop_the_next_client() {
    let Full { server, base, mut served, queued } = full_queue();
    queued.into_iter().for_each(Peer::reset);
    let mut late = server.connect();
    served.ask(10);
    drop(served);
    late.ask(30);
    drop(late);
    oracle::finish(server, &base);
}

/// The shutdown wakes the acceptor that waits for room, and what was received is answered.
#[test]
fn server_with_a_full_queue_answers_the_queue_and_stops() {
    let Full { mut server, queued, served: _served, .. } = full_queue();
    let _late: Vec<Peer> = (0..3).map(|_| server.connect()).collect();
    server.stop().unwrap();
    for mut peer in queued {
        assert!(peer.read_exactly(20) == testkit::pattern(20), "a request sent before is answered");
    }
}

//! What this example promises beyond the suite: a queue with an end, and what happens there.

use std::time::{Duration, Instant};

use testkit::{End, Peer, Server, eventually, oracle};

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

#[test]
fn the_queue_takes_its_limit_and_not_one_more() {
    let (server, base, mut served, waiting) = full_house(&[]);
    for _ in 0..3 {
        let mut late = server.connect();
        late.send("30\n");
        assert_eq!(late.read_to_end(), (b"ERR busy\n".to_vec(), End::Eof));
    }
    served.ask(10);
    assert!(waiting.iter().all(Peer::is_waiting), "who waits is neither served nor refused");
    drop(served);
    for mut peer in waiting {
        assert!(peer.read_exactly(20) == testkit::pattern(20), "served in turn");
    }
    oracle::finish(server, &base);
}

/// Silent clients beyond all places hold up neither the acceptor nor the refuser for long: every one gets an end.
#[test]
fn a_crowd_beyond_the_queue_is_told_or_closed() {
    let (server, base, mut served, waiting) = full_house(&[]);
    let start = Instant::now();
    let crowd: Vec<Peer> = (0..30).map(|_| server.connect()).collect();
    let mut told = 0;
    for mut peer in crowd {
        let (bytes, end) = peer.read_to_end();
        assert!(bytes.is_empty() || bytes == b"ERR busy\n");
        assert_ne!(end, End::Silence);
        told += usize::from(!bytes.is_empty());
    }
    assert!(told >= 8, "only {told} were told");
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    served.ask(10);
    drop((served, waiting));
    oracle::finish(server, &base);
}

/// D24: who was reset while it waited costs its worker one read, and who waited beyond its deadline none at all.
#[test]
fn who_is_gone_or_too_late_is_dropped() {
    let (server, base, mut served, waiting) = full_house(&["--idle-timeout", "600"]);
    waiting.into_iter().for_each(Peer::reset);
    let mut late: Option<Peer> = None;
    eventually("the served client's own deadline", || {
        served.ask(10);
        late.get_or_insert_with(|| server.connect()).is_waiting().then_some(())
    });
    // Kept busy by the first client until the one in the queue has waited too long.
    let until = Instant::now() + Duration::from_millis(700);
    while Instant::now() < until {
        served.ask(10);
        std::thread::sleep(Duration::from_millis(20)); // the stimulus: a request now and then
    }
    drop(served);
    let (bytes, end) = late.unwrap().read_to_end();
    assert_eq!((bytes.as_slice(), end), (b"ERR busy\n".as_slice(), End::Eof));
    oracle::finish(server, &base);
}

//! What the supervisor promises: dead workers are replaced and their places are free again, one worker can be ended
//! alone, a crash loop ends the server.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // test code
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::oracle::{self, Baseline};
use testkit::tools::{self, Injection};
use testkit::{End, Peer, Server, eventually, procs};

const WORKERS: usize = 4;

fn start(args: &[&str]) -> Server {
    let server =
        Server::start(env!("CARGO_BIN_EXE_server03b-reuseport"), &[&["-n", "4"], args].concat());
    eventually("the pool is complete", || (workers(&server).len() == WORKERS).then_some(()));
    server
}

fn workers(server: &Server) -> BTreeSet<i32> {
    server
        .family()
        .iter()
        .filter(|p| p.pid != server.pid() && p.state != 'Z')
        .map(|p| p.pid)
        .collect()
}

fn tell(pids: &BTreeSet<i32>, signal: Signal) {
    pids.iter().for_each(|pid| kill(Pid::from_raw(*pid), signal).unwrap());
}

/// The pool is complete again, and none of `old` is in it.
fn replaced(server: &Server, old: &BTreeSet<i32>) {
    eventually("the pool is complete again", || {
        let now = workers(server);
        (now.len() == WORKERS && now.is_disjoint(old)).then_some(())
    });
}

/// The worker that serves this client.
fn worker_of(server: &Server, peer: &Peer) -> i32 {
    procs::holders(server, peer).into_iter().next().unwrap()
}

#[test]
fn a_killed_worker_is_replaced_at_once() {
    let server = start(&[]);
    let base = Baseline::of(&server);
    let before = workers(&server);
    let one = before.iter().copied().take(1).collect();
    let start = Instant::now();
    tell(&one, Signal::SIGKILL);
    replaced(&server, &one);
    let first = start.elapsed();
    // The one in the same place that dies young is replaced after a pause, so the two can be compared.
    let second: BTreeSet<i32> = workers(&server).difference(&before).copied().collect();
    let start = Instant::now();
    tell(&second, Signal::SIGKILL);
    replaced(&server, &second);
    assert!(
        first < start.elapsed() && first < Duration::from_millis(200),
        "{first:?}, then {:?}",
        start.elapsed()
    );
    eprintln!("replaced after {first:?}, the second time after {:?}", start.elapsed());
    let listening = || workers(&server).into_iter().filter_map(procs::listening_socket).count();
    assert_eq!(listening(), WORKERS, "a new worker listens like the others");
    oracle::finish(server, &base);
}

/// The limit is the pool's, wherever the hash sends the clients; and what a dead worker held is given back.
#[test]
fn the_limit_is_of_all_workers_together() {
    let server = start(&["--max-conns", "12"]);
    let base = Baseline::of(&server);
    // The place of the first client is free when its worker has seen it leave.
    let mut served: Vec<Peer> = Vec::new();
    while served.len() < 12 {
        let mut peer = server.connect();
        served.extend(peer.try_ask(10).is_ok().then_some(peer));
    }
    let refused = || {
        let mut late = server.connect();
        assert_eq!(late.read_to_end(), (b"ERR busy\n".to_vec(), End::Eof));
    };
    refused();
    let victim = worker_of(&server, served.first().unwrap());
    let (lost, mut kept): (Vec<Peer>, Vec<Peer>) =
        served.into_iter().partition(|peer| worker_of(&server, peer) == victim);
    assert!(!kept.is_empty(), "one worker has them all");
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    replaced(&server, &BTreeSet::from([victim]));
    kept.iter_mut().for_each(|peer| peer.ask(10));
    eprintln!("{} of 12 clients are lost with their worker", lost.len());
    kept.extend(lost.iter().map(|_| {
        let mut peer = server.connect();
        peer.ask(10);
        peer
    }));
    refused();
    drop(kept);
    oracle::finish(server, &base);
}

#[test]
fn a_pool_that_was_killed_serves_again() {
    let server = start(&[]);
    let base = Baseline::of(&server);
    let all = workers(&server);
    let start = Instant::now();
    tell(&all, Signal::SIGKILL);
    // Refused perhaps: the listeners died with their workers.
    eventually("served", || Peer::try_connect(server.addr).ok()?.try_ask(3000).ok());
    eprintln!("served {:?} after the death of all workers", start.elapsed());
    replaced(&server, &all);
    oracle::finish(server, &base);
}

#[test]
fn one_worker_can_be_told_to_end() {
    let server = start(&[]);
    let base = Baseline::of(&server);
    let mut peer = Peer::connect_small_window(server.addr);
    peer.send("1048576\n".repeat(10));
    peer.read_exactly(1);
    let busy = worker_of(&server, &peer);
    // A second signal means `now` to the parent only: Ctrl-C reaches a worker twice.
    kill(Pid::from_raw(busy), Signal::SIGTERM).unwrap();
    eventually("it gives up its listener", || {
        procs::listening_socket(busy).is_none().then_some(())
    });
    kill(Pid::from_raw(busy), Signal::SIGINT).unwrap();
    // Its own stop: this client gets all of its answer, and the others go on accepting.
    (0..20).for_each(|_| server.connect().ask(3000));
    let (rest, end) = peer.read_to_end();
    assert_eq!((rest.len(), end), ((10 << 20) - 1, End::Eof));
    replaced(&server, &BTreeSet::from([busy]));
    oracle::finish(server, &base);
}

#[test]
fn a_stopped_worker_ends_with_the_grace() {
    let mut server = start(&["--grace", "300"]);
    let one: BTreeSet<i32> = workers(&server).into_iter().take(1).collect();
    one.iter().for_each(|pid| procs::stop(*pid));
    server.stop().unwrap();
}

#[test]
fn a_crash_loop_gives_up() {
    if !tools::have("strace", "a_crash_loop_gives_up") {
        return;
    }
    // The workers that live already go on; a new one finds that it cannot have an interest list.
    let mut server = start(&[]);
    let injection = Injection::attach(&[server.pid()], true, "epoll_create1:error=ENOMEM");
    tell(&workers(&server).into_iter().take(1).collect(), Signal::SIGKILL);
    let start = Instant::now();
    let status = server.wait();
    drop(injection);
    let log = server.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert_eq!(
        log.matches("Error: epoll_create1: ").count(),
        5,
        "one line for each worker that failed: {log}"
    );
    assert!(log.ends_with("Error: 5 workers failed at their start within 10s\n"), "{log}");
    // 0, 100, 200, 400 ms: were there no pauses, it would be over at once.
    assert!(start.elapsed() > Duration::from_millis(700), "{:?}", start.elapsed());
    assert_eq!(server.family(), []);
}

#[test]
fn a_fork_or_a_listener_that_fails_is_tried_again() {
    if !tools::have("strace", "a_fork_or_a_listener_that_fails_is_tried_again") {
        return;
    }
    let server = start(&[]);
    let base = Baseline::of(&server);
    for (fault, said) in [
        ("clone,clone3,?fork,?vfork:error=EAGAIN:when=1..3", "fork: EAGAIN"),
        ("listen:error=EADDRINUSE:when=1..3", "listen: "),
    ] {
        let one = workers(&server).into_iter().take(1).collect();
        let injection = Injection::attach(&[server.pid()], false, fault);
        tell(&one, Signal::SIGKILL);
        server.wait_log(said);
        server.connect().ask(10);
        replaced(&server, &one);
        drop(injection);
    }
    oracle::finish(server, &base);
}

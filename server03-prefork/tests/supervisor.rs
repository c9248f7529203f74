//! What the supervisor promises: dead workers are replaced, one worker can be ended alone, a crash loop ends the server.

#![allow(clippy::unwrap_used)] // test code
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::oracle::{self, Baseline};
use testkit::tools::{self, Injection};
use testkit::{End, Peer, Server, eventually, procs};

const WORKERS: usize = 4;

fn start(args: &[&str]) -> Server {
    let server = Server::start(env!("CARGO_BIN_EXE_server03-prefork"), &[&["-n", "4"], args].concat());
    eventually("the pool is complete", || (workers(&server).len() == WORKERS).then_some(()));
    server
}

fn workers(server: &Server) -> BTreeSet<i32> {
    server.family().iter().filter(|p| p.pid != server.pid() && p.state != 'Z').map(|p| p.pid).collect()
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
    assert!(first < start.elapsed() && first < Duration::from_millis(200), "{first:?}, then {:?}", start.elapsed());
    eprintln!("replaced after {first:?}, the second time after {:?}", start.elapsed());
    oracle::finish(server, &base);
}

#[test]
fn a_pool_that_was_killed_serves_again() {
    let server = start(&[]);
    let base = Baseline::of(&server);
    let all = workers(&server);
    let start = Instant::now();
    tell(&all, Signal::SIGKILL);
    // Into the backlog: the parent holds the listener, so nobody is refused while there is no worker. Not served at the
    // first try perhaps: a process that is dying can still take a connection with it.
    eventually("served", || server.connect().try_ask(3000).ok());
    eprintln!("served {:?} after the death of all workers", start.elapsed());
    replaced(&server, &all);
    oracle::finish(server, &base);
}

#[test]
fn one_worker_can_be_told_to_end() {
    let server = start(&[]);
    let base = Baseline::of(&server);
    let mut peer = Peer::connect_small_window(server.addr);
    peer.send("1048576\n");
    peer.read_exactly(1);
    let busy: BTreeSet<i32> = procs::holders(&server, &peer).into_iter().collect();
    let idle = workers(&server).difference(&busy).copied().take(1).collect();
    tell(&idle, Signal::SIGTERM);
    replaced(&server, &idle);
    tell(&busy, Signal::SIGTERM);
    // Its own stop: this client gets all of its answer, and the others go on accepting.
    server.connect().ask(3000);
    let (rest, end) = peer.read_to_end();
    assert_eq!((rest.len(), end), (1_048_575, End::Eof));
    replaced(&server, &busy);
    oracle::finish(server, &base);
}

#[test]
fn a_stopped_worker_holds_up_nobody_else_and_ends_with_the_grace() {
    let mut server = start(&["--grace", "300"]);
    let one: BTreeSet<i32> = workers(&server).into_iter().take(1).collect();
    one.iter().for_each(|pid| procs::stop(*pid));
    (0..20).for_each(|_| server.connect().ask(100));
    server.stop().unwrap();
}

#[test]
fn a_crash_loop_gives_up() {
    if !tools::have("strace", "a_crash_loop_gives_up") {
        return;
    }
    // The workers that live already go on; a new one finds that accept has become impossible.
    let mut server = start(&[]);
    let injection = Injection::attach(&[server.pid()], true, "accept4:error=ENOTSOCK");
    tell(&workers(&server).into_iter().take(1).collect(), Signal::SIGKILL);
    let start = Instant::now();
    let status = server.wait();
    drop(injection);
    let log = server.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert_eq!(log.matches("Error: accept: ").count(), 5, "one line for each worker that failed: {log}");
    assert!(log.ends_with("Error: 5 workers failed at their start within 10s\n"), "{log}");
    // 0, 100, 200, 400 ms: were there no pauses, it would be over at once.
    assert!(start.elapsed() > Duration::from_millis(700), "{:?}", start.elapsed());
    assert_eq!(server.family(), []);
}

#[test]
fn a_fork_that_fails_is_tried_again() {
    if !tools::have("strace", "a_fork_that_fails_is_tried_again") {
        return;
    }
    let server = start(&[]);
    let base = Baseline::of(&server);
    let one = workers(&server).into_iter().take(1).collect();
    let injection = Injection::attach(&[server.pid()], false, "clone,clone3,?fork,?vfork:error=EAGAIN:when=1..3");
    tell(&one, Signal::SIGKILL);
    server.wait_log("fork: EAGAIN");
    server.connect().ask(10);
    replaced(&server, &one);
    drop(injection);
    oracle::finish(server, &base);
}

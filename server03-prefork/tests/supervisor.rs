//! The supervisor replaces workers that have ended, lets one worker end alone, and ends the server
//! if workers fail at every start.
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
    let args = [&["-n", "4"], args].concat();
    let server = Server::start(env!("CARGO_BIN_EXE_server03-prefork"), &args);
    assert_eq!(workers(&server).len(), WORKERS, "the ready line means that all workers exist");
    let sleeps = |worker: &i32| procs::thread_states(*worker) == ['S'];
    eventually("all workers sleep in accept", || workers(&server).iter().all(sleeps).then_some(()));
    server
}

fn workers(server: &Server) -> BTreeSet<i32> {
    let is_worker = |pid: i32, state: char| pid != server.pid() && state != 'Z';
    server.family().iter().filter(|p| is_worker(p.pid, p.state)).map(|p| p.pid).collect()
}

fn one_of(workers: &BTreeSet<i32>) -> BTreeSet<i32> {
    workers.iter().copied().take(1).collect()
}

fn signal(pids: &BTreeSet<i32>, signal: Signal) {
    pids.iter().for_each(|pid| kill(Pid::from_raw(*pid), signal).unwrap());
}

/// Waits until the pool is complete and contains none of `old`. Returns the new workers.
fn wait_until_replaced(server: &Server, old: &BTreeSet<i32>) -> BTreeSet<i32> {
    eventually("the pool is complete again", || {
        let now = workers(server);
        (now.len() == WORKERS && now.is_disjoint(old)).then_some(now)
    })
}

/// Kills a worker, then its replacement, then the replacement of that one. Returns how long the
/// slowest replacement took.
fn slowest_of_three_kills(server: &Server) -> Duration {
    let mut all = workers(server);
    let mut victim = one_of(&all);
    let mut slowest = Duration::ZERO;
    for _ in 0..3 {
        let start = Instant::now();
        signal(&victim, Signal::SIGKILL);
        let now = wait_until_replaced(server, &victim);
        slowest = slowest.max(start.elapsed());
        victim = now.difference(&all).copied().collect();
        all = now;
    }
    slowest
}

#[test]
fn killed_worker_is_replaced_within_200_ms_also_at_the_third_kill_within_a_second() {
    let server = start(&[]);
    let base = Baseline::of(&server);
    // A busy machine can delay some attempts. A delay in the supervisor delays every attempt.
    let attempts: Vec<_> = (0..5).map(|_| slowest_of_three_kills(&server)).collect();
    eprintln!("slowest of three replacements: {attempts:?}");
    assert!(attempts.iter().any(|slowest| *slowest < Duration::from_millis(200)), "{attempts:?}");
    oracle::finish(server, &base);
}

#[test]
fn pool_whose_workers_were_all_killed_serves_again() {
    let server = start(&[]);
    let base = Baseline::of(&server);
    let all = workers(&server);
    signal(&all, Signal::SIGKILL);
    // The parent holds the listener, so connect succeeds while there is no worker. A worker that
    // is being killed may have accepted the first connection, so the client may have to retry.
    eventually("a client is served", || server.connect().try_ask(3000).ok());
    wait_until_replaced(&server, &all);
    oracle::finish(server, &base);
}

#[test]
fn sigterm_to_one_worker_ends_only_this_worker_after_its_client() {
    let server = start(&[]);
    let base = Baseline::of(&server);
    let mut peer = Peer::connect_small_window(server.addr);
    peer.send("1048576\n");
    peer.read_exactly(1);
    let busy: BTreeSet<i32> = procs::holders(&server, &peer).into_iter().collect();
    let idle = one_of(&workers(&server).difference(&busy).copied().collect());
    signal(&idle, Signal::SIGTERM);
    wait_until_replaced(&server, &idle);
    signal(&busy, Signal::SIGTERM);
    // The client of this worker gets its whole answer, and the other workers accept new clients.
    server.connect().ask(3000);
    let (rest, end) = peer.read_to_end();
    assert_eq!((rest.len(), end), (1_048_575, End::Eof));
    wait_until_replaced(&server, &busy);
    oracle::finish(server, &base);
}

#[test]
fn stopped_worker_blocks_no_client_and_is_killed_after_the_shutdown_timeout() {
    let mut server = start(&["--grace", "300"]);
    one_of(&workers(&server)).iter().for_each(|pid| procs::stop(*pid));
    (0..20).for_each(|_| server.connect().ask(100));
    server.stop().unwrap();
}

#[test]
fn server_ends_with_status_1_if_five_workers_fail_at_their_start() {
    const TEST: &str = "server_ends_with_status_1_if_five_workers_fail_at_their_start";
    if !tools::have("strace", TEST) {
        return;
    }
    // accept fails in every worker that the parent forks from now on. The old workers go on.
    let mut server = start(&[]);
    let injection = Injection::attach(&[server.pid()], true, "accept4:error=ENOTSOCK");
    signal(&one_of(&workers(&server)), Signal::SIGKILL);
    let start = Instant::now();
    let status = server.wait();
    drop(injection);
    let log = server.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert_eq!(log.matches("Error: accept: ").count(), 5, "one line for each worker: {log}");
    assert!(log.lines().last().unwrap().starts_with("Error: "), "{log}");
    // The supervisor waits before each replacement: 100, 200, 400 and 800 ms.
    assert!(start.elapsed() > Duration::from_millis(1500), "{:?}", start.elapsed());
    assert_eq!(server.family(), []);
}

#[test]
fn fork_that_fails_is_repeated_until_the_pool_is_complete() {
    const TEST: &str = "fork_that_fails_is_repeated_until_the_pool_is_complete";
    if !tools::have("strace", TEST) {
        return;
    }
    let server = start(&[]);
    let base = Baseline::of(&server);
    let one = one_of(&workers(&server));
    let fault = "clone,clone3,?fork,?vfork:error=EAGAIN:when=1..3";
    let injection = Injection::attach(&[server.pid()], false, fault);
    signal(&one, Signal::SIGKILL);
    server.wait_log("fork: EAGAIN");
    server.connect().ask(10);
    wait_until_replaced(&server, &one);
    drop(injection);
    oracle::finish(server, &base);
}

//! The supervisor replaces workers that have ended and frees their slots, lets one worker end
//! alone, and ends the server if workers fail at every start.
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
    let server = Server::start(env!("CARGO_BIN_EXE_server03b-reuseport"), &args);
    assert_eq!(workers(&server).len(), WORKERS, "the ready line means that all workers exist");
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

/// The worker that serves this client.
fn worker_of(server: &Server, peer: &Peer) -> i32 {
    procs::holders(server, peer).into_iter().next().unwrap()
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
    let listeners = workers(&server).into_iter().filter_map(procs::listening_socket).count();
    assert_eq!(listeners, WORKERS, "a new worker has a listener");
    oracle::finish(server, &base);
}

#[test]
fn limit_counts_the_clients_of_all_workers_and_not_those_of_a_dead_worker() {
    let server = start(&["--max-conns", "12"]);
    let base = Baseline::of(&server);
    // A worker publishes its count after a client has disconnected, so a client may have to retry.
    let mut served: Vec<Peer> = Vec::new();
    while served.len() < 12 {
        let mut peer = server.connect();
        served.extend(peer.try_ask(10).is_ok().then_some(peer));
    }
    let next_client_is_rejected = || {
        let mut peer = server.connect();
        assert_eq!(peer.read_to_end(), (b"ERR busy\n".to_vec(), End::Eof));
    };
    next_client_is_rejected();
    let victim = worker_of(&server, served.first().unwrap());
    let (lost, mut kept): (Vec<Peer>, Vec<Peer>) =
        served.into_iter().partition(|peer| worker_of(&server, peer) == victim);
    assert!(!kept.is_empty(), "one worker has all clients");
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    wait_until_replaced(&server, &BTreeSet::from([victim]));
    kept.iter_mut().for_each(|peer| peer.ask(10));
    eprintln!("{} of 12 clients are lost with their worker", lost.len());
    kept.extend(lost.iter().map(|_| {
        let mut peer = server.connect();
        peer.ask(10);
        peer
    }));
    next_client_is_rejected();
    drop(kept);
    oracle::finish(server, &base);
}

#[test]
fn clients_that_connect_together_do_not_exceed_the_limit_of_the_pool() {
    let server = start(&["--max-conns", "4"]);
    let base = Baseline::of(&server);
    for _ in 0..200 {
        // The clients wait in the backlogs. Then all workers accept at the same time.
        let all = workers(&server);
        all.iter().for_each(|pid| procs::stop(*pid));
        let mut peers: Vec<Peer> = (0..24).map(|_| server.connect()).collect();
        peers.iter_mut().for_each(|peer| peer.send("1\n"));
        signal(&all, Signal::SIGCONT);
        let answers: Vec<_> = peers.iter_mut().map(|peer| peer.read_exactly(1)).collect();
        let served = answers.iter().filter(|answer| *answer == b"a").count();
        assert!(served <= 4, "{served} clients at once");
        drop(peers);
    }
    oracle::finish(server, &base);
}

#[test]
fn pool_whose_workers_were_all_killed_serves_again() {
    let server = start(&[]);
    let base = Baseline::of(&server);
    let all = workers(&server);
    signal(&all, Signal::SIGKILL);
    // The listeners end with the workers, so connect may fail until a new worker listens.
    eventually("a client is served", || Peer::try_connect(server.addr).ok()?.try_ask(3000).ok());
    wait_until_replaced(&server, &all);
    oracle::finish(server, &base);
}

#[test]
fn sigterm_to_one_worker_ends_only_this_worker_after_its_client() {
    let server = start(&[]);
    let base = Baseline::of(&server);
    let mut peer = Peer::connect_small_window(server.addr);
    peer.send("1048576\n".repeat(10));
    peer.read_exactly(1);
    let busy = worker_of(&server, &peer);
    kill(Pid::from_raw(busy), Signal::SIGTERM).unwrap();
    eventually("it does not listen any more", || {
        procs::listening_socket(busy).is_none().then_some(())
    });
    // Ctrl-C reaches the workers too. In a worker SIGINT must not end the shutdown timeout.
    kill(Pid::from_raw(busy), Signal::SIGINT).unwrap();
    // The client of this worker gets all its answers, and the other workers accept new clients.
    (0..20).for_each(|_| server.connect().ask(3000));
    let (rest, end) = peer.read_to_end();
    assert_eq!((rest.len(), end), ((10 << 20) - 1, End::Eof));
    wait_until_replaced(&server, &BTreeSet::from([busy]));
    oracle::finish(server, &base);
}

/// The signal shuts the listener down. accept on this listener would return EINVAL.
#[test]
fn signal_before_a_connection_in_one_iteration_ends_the_worker_with_status_0() {
    let mut server = start(&["-v"]);
    let all = workers(&server);
    all.iter().for_each(|pid| procs::stop(*pid));
    signal(&all, Signal::SIGTERM);
    // Enough connections for every worker.
    let queued: Vec<Peer> = (0..40).map(|_| server.connect()).collect();
    signal(&all, Signal::SIGCONT);
    wait_until_replaced(&server, &all);
    drop(queued);
    server.stop().unwrap();
    assert!(!server.log().contains("Error: "), "{}", server.log());
}

#[test]
fn stopped_worker_is_killed_after_the_shutdown_timeout() {
    let mut server = start(&["--grace", "300"]);
    one_of(&workers(&server)).iter().for_each(|pid| procs::stop(*pid));
    server.stop().unwrap();
}

#[test]
fn server_ends_with_status_1_if_five_workers_fail_at_their_start() {
    const TEST: &str = "server_ends_with_status_1_if_five_workers_fail_at_their_start";
    if !tools::have("strace", TEST) {
        return;
    }
    // epoll_create1 fails in every worker that the parent forks from now on. The old workers go on.
    let mut server = start(&[]);
    let injection = Injection::attach(&[server.pid()], true, "epoll_create1:error=ENOMEM");
    signal(&one_of(&workers(&server)), Signal::SIGKILL);
    let start = Instant::now();
    let status = server.wait();
    drop(injection);
    let log = server.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert_eq!(log.matches("Error: epoll_create1: ").count(), 5, "one line for each worker: {log}");
    assert!(log.lines().last().unwrap().starts_with("Error: "), "{log}");
    // The supervisor waits before each replacement: 100, 200, 400 and 800 ms.
    assert!(start.elapsed() > Duration::from_millis(1500), "{:?}", start.elapsed());
    assert_eq!(server.family(), []);
}

#[test]
fn fork_or_listener_that_fails_is_repeated_until_the_pool_is_complete() {
    const TEST: &str = "fork_or_listener_that_fails_is_repeated_until_the_pool_is_complete";
    if !tools::have("strace", TEST) {
        return;
    }
    let server = start(&[]);
    let base = Baseline::of(&server);
    for (fault, line) in [
        ("clone,clone3,?fork,?vfork:error=EAGAIN:when=1..3", "fork: EAGAIN"),
        ("listen:error=EADDRINUSE:when=1..3", "listener: listen "),
    ] {
        let one = one_of(&workers(&server));
        let injection = Injection::attach(&[server.pid()], false, fault);
        signal(&one, Signal::SIGKILL);
        server.wait_log(line);
        // After a failed fork the parent closes the new listener, and resets its clients.
        eventually("a client is served", || server.connect().try_ask(10).ok());
        wait_until_replaced(&server, &one);
        drop(injection);
    }
    oracle::finish(server, &base);
}

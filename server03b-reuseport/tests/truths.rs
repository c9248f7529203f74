//! What SO_REUSEPORT does: counts that even out and load that does not, queues that die with their listener, a port that
//! is shared with nobody else.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, clippy::indexing_slicing)] // test code
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::net::TcpState;
use testkit::oracle::{self, Baseline};
use testkit::{End, Peer, Server, eventually, procs, tools};

const WORKERS: usize = 4;
const BIN: &str = env!("CARGO_BIN_EXE_server03b-reuseport");

fn start(args: &[&str]) -> Server {
    let server = Server::start(BIN, &[&["-n", "4"], args].concat());
    eventually("every worker has a listener of its own", || {
        let listeners: BTreeSet<u64> =
            workers(&server).into_iter().filter_map(listener_of).collect();
        (listeners.len() == WORKERS && procs::listening_socket(server.pid()).is_none())
            .then_some(())
    });
    server
}

fn workers(server: &Server) -> Vec<i32> {
    server
        .family()
        .iter()
        .filter(|p| p.pid != server.pid() && p.state != 'Z')
        .map(|p| p.pid)
        .collect()
}

/// The inode number of a worker's listener.
fn listener_of(pid: i32) -> Option<u64> {
    procs::listening_socket(pid).map(|(_, inode)| inode)
}

/// Connections in the accept queue of this listener.
fn queued(inode: u64) -> usize {
    let sockets = procfs::net::tcp().unwrap();
    sockets
        .iter()
        .filter(|s| s.inode == inode && s.state == TcpState::Listen)
        .map(|s| s.rx_queue as usize)
        .sum()
}

/// Stops a worker, so that those who are hashed to it wait in its queue: its process and its listener.
fn stop_one(server: &Server) -> (i32, u64) {
    let pid = workers(server)[0];
    procs::stop(pid);
    (pid, listener_of(pid).unwrap())
}

/// Connects one client after the other; those that the kernel gave to the listener `inode` stay, the others are served.
fn wait_behind(server: &Server, inode: u64, clients: usize) -> Vec<Peer> {
    let mut waiting = Vec::new();
    for _ in 0..clients {
        let mut peer = server.connect();
        peer.send("1\n");
        eventually("served or queued", || {
            (peer.unread() > 0 || queued(inode) > waiting.len()).then_some(())
        });
        match peer.unread() {
            0 => waiting.push(peer),
            _ => assert_eq!(peer.read_exactly(1), b"a"),
        }
    }
    waiting
}

/// The rows of the table that is printed at the end: connections, refused, and CPU time, of each worker.
fn table(server: &Server) -> Vec<[u64; 3]> {
    let log = server.log();
    let rows = log.lines().skip_while(|line| !line.starts_with("worker  connections")).skip(1);
    let numbers = |line: &str| {
        line.split_whitespace().skip(1).map(|word| word.parse().unwrap()).collect::<Vec<u64>>()
    };
    rows.take(WORKERS).map(|line| numbers(line).try_into().unwrap()).collect()
}

/// Uneven over tens, even over thousands: that is a hash, and no turns.
#[test]
fn truth_b_counts_even_out_over_thousands() {
    for connections in [8, 40, 400, 2000] {
        let mut server = start(&[]);
        (0..connections).for_each(|_| server.connect().ask(1));
        server.stop().unwrap();
        let counts: Vec<u64> = table(&server).iter().map(|row| row[0]).collect();
        eprintln!("{connections} connections: {counts:?}");
        assert_eq!(
            (counts.len(), counts.iter().sum::<u64>()),
            (WORKERS, connections),
            "{}",
            server.log()
        );
        let all = format!("all  {connections:11}        0");
        assert!(server.log().contains(&all), "{}", server.log());
        if connections == 2000 {
            assert!(counts.iter().all(|count| (375..625).contains(count)), "{counts:?}");
            assert!(counts.iter().any(|count| *count != 500), "as even as turns: {counts:?}");
        }
    }
}

/// One of four hundred clients has as much to do as all the others cannot make up for: the counts do not show it.
#[test]
fn truth_b_even_counts_are_not_balance() {
    let mut server = start(&[]);
    let mut heavy = server.connect();
    heavy.ask(1);
    let its_worker = procs::holders(&server, &heavy)[0];
    (0..300).for_each(|_| heavy.ask(1_048_576));
    (0..400).for_each(|_| server.connect().ask(1));
    let cpu = |pid: &i32| procs::cpu_ns(*pid);
    let others: Vec<u64> =
        workers(&server).iter().filter(|pid| **pid != its_worker).map(cpu).collect();
    let busy = cpu(&its_worker);
    drop(heavy);
    server.stop().unwrap();
    let rows = table(&server);
    eprintln!("CPU time of one: {busy} ns, of the others: {others:?}; {}", server.log());
    assert!(rows.iter().all(|row| (50..160).contains(&row[0])), "{rows:?}");
    assert!(others.iter().all(|other| busy > 3 * other), "{busy}, {others:?}");
    assert!(rows.iter().any(|row| row[2] >= busy / 1_000_000), "the table shows it too: {rows:?}");
}

#[test]
fn truth_b_a_client_waits_for_a_busy_worker_while_others_are_idle() {
    let server = start(&[]);
    let base = Baseline::of(&server);
    let (stopped, inode) = stop_one(&server);
    let waiting = wait_behind(&server, inode, 40);
    eprintln!("{} of 40 clients wait for one of {WORKERS} workers", waiting.len());
    assert!(!waiting.is_empty() && waiting.iter().all(Peer::is_waiting));
    assert_eq!(queued(inode), waiting.len());
    kill(Pid::from_raw(stopped), Signal::SIGCONT).unwrap();
    waiting.into_iter().for_each(|mut peer| assert_eq!(peer.read_exactly(1), b"a"));
    oracle::finish(server, &base);
}

#[test]
fn d17_the_queue_of_a_dead_worker_is_lost() {
    kill_with_a_queue("d17_the_queue_of_a_dead_worker_is_lost", "0", |waiting| {
        waiting
            .into_iter()
            .for_each(|mut peer| assert_eq!(peer.read_to_end(), (Vec::new(), End::Reset)));
        "reset"
    });
}

#[test]
fn d17_the_queue_of_a_dead_worker_moves_with_tcp_migrate_req() {
    kill_with_a_queue(
        "d17_the_queue_of_a_dead_worker_moves_with_tcp_migrate_req",
        "1",
        |waiting| {
            waiting.into_iter().for_each(|mut peer| assert_eq!(peer.read_exactly(1), b"a"));
            "served"
        },
    );
}

/// A worker is stopped, 40 clients come, the worker is killed; then those that waited for it. The test runs itself again
/// in a network of its own, where the setting harms nobody.
fn kill_with_a_queue(test: &str, migrate: &str, fate: impl FnOnce(Vec<Peer>) -> &'static str) {
    if std::env::var("OWN_NETWORK").as_deref() != Ok(test) {
        let Some(mut again) = tools::own_network(test) else { return };
        again.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
        let output = again.env("OWN_NETWORK", test).output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        text.lines()
            .filter(|line| line.starts_with("tcp_migrate_req"))
            .for_each(|line| eprintln!("{line}"));
        return;
    }
    fs::write("/proc/sys/net/ipv4/tcp_migrate_req", migrate).unwrap();
    let server = start(&[]);
    let base = Baseline::of(&server);
    let mut beside: Vec<Peer> = (0..20).map(|_| server.connect()).collect();
    beside.iter_mut().for_each(|peer| peer.ask(1));
    let (stopped, inode) = stop_one(&server);
    beside.retain(|peer| !procs::holders(&server, peer).contains(&stopped));
    let waiting = wait_behind(&server, inode, 40);
    let count = waiting.len();
    assert_eq!(queued(inode), count);
    kill(Pid::from_raw(stopped), Signal::SIGKILL).unwrap();
    let fate = fate(waiting);
    eprintln!(
        "tcp_migrate_req={migrate}: {count} of 40 clients waited for the worker that was killed, and were {fate}"
    );
    // Nobody else's.
    beside.iter_mut().for_each(|peer| peer.ask(1));
    drop(beside);
    oracle::finish(server, &base);
}

/// A start on the port of a server that runs already.
fn second_start(server: &Server) {
    let second = Server::try_start(Command::new(BIN).args(["-p", &server.addr.port().to_string()]));
    let error = second.err().unwrap_or_else(|| panic!("it takes a share of the clients"));
    assert!(error.contains("Address already in use"), "{error}");
}

/// A second server would take a share of the clients: neither beside the first one's listeners, nor while all of its
/// workers are dead.
#[test]
fn it_cannot_be_started_twice() {
    let server = start(&[]);
    second_start(&server);
    let base = Baseline::of(&server);
    server.signal(Signal::SIGSTOP);
    eventually("stopped", || server.family().iter().any(|p| p.state == 'T').then_some(()));
    workers(&server).into_iter().for_each(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap());
    eventually("nobody listens", || Peer::try_connect(server.addr).is_err().then_some(()));
    second_start(&server);
    server.signal(Signal::SIGCONT);
    eventually("served again", || Peer::try_connect(server.addr).ok()?.try_ask(1).ok());
    oracle::finish(server, &base);
}

/// All of them bind before the first one listens, since each is held up after bind; and one gets the port.
#[test]
fn of_starts_at_the_same_moment_one_gets_the_port() {
    if !tools::have("strace", "of_starts_at_the_same_moment_one_gets_the_port") {
        return;
    }
    let held_up = [
        "-f",
        "-o",
        "/dev/null",
        "-e",
        "trace=bind",
        "-e",
        "inject=bind:delay_exit=100000:when=1..2",
    ];
    for _ in 0..4 {
        let port = Server::start(BIN, &["-n", "1"]).addr.port().to_string();
        let start = || {
            Server::try_start(
                Command::new("strace").args(held_up).args([BIN, "-n", "1", "-p", &port]),
            )
        };
        let started: Vec<_> = thread::scope(|scope| {
            let starts: Vec<_> = (0..3).map(|_| scope.spawn(start)).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        let errors: Vec<&String> =
            started.iter().filter_map(|start| start.as_ref().err()).collect();
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(errors.iter().all(|error| error.contains("Address already in use")), "{errors:?}");
    }
}

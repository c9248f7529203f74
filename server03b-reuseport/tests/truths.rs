//! What SO_REUSEPORT does: it distributes connections evenly and work not, the backlog of a worker
//! ends with its listener, and no second server gets the port.
#![allow(clippy::unwrap_used, clippy::panic)] // test code
#![allow(clippy::print_stderr, clippy::indexing_slicing)] // test code

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
    // A child closes its copies of the parent's sockets after the ready line.
    eventually("every worker has its own listener", || {
        let listeners: BTreeSet<u64> =
            workers(&server).into_iter().filter_map(listener_of).collect();
        (listeners.len() == WORKERS).then_some(())
    });
    assert_eq!(procs::listening_socket(server.pid()), None, "the parent has no listener");
    server
}

fn workers(server: &Server) -> Vec<i32> {
    let is_worker = |pid: i32, state: char| pid != server.pid() && state != 'Z';
    server.family().iter().filter(|p| is_worker(p.pid, p.state)).map(|p| p.pid).collect()
}

/// The inode number of a worker's listener.
fn listener_of(pid: i32) -> Option<u64> {
    procs::listening_socket(pid).map(|(_, inode)| inode)
}

/// The number of connections in the backlog of this listener.
fn queued(inode: u64) -> usize {
    let is_it = |s: &procfs::net::TcpNetEntry| s.inode == inode && s.state == TcpState::Listen;
    procfs::net::tcp().unwrap().iter().filter(|s| is_it(s)).map(|s| s.rx_queue as usize).sum()
}

/// Stops a worker, so that its clients wait in its backlog. Returns its PID and its listener.
fn stop_one(server: &Server) -> (i32, u64) {
    let pid = workers(server)[0];
    procs::stop(pid);
    (pid, listener_of(pid).unwrap())
}

/// Connects one client after the other. Returns the clients that wait in the backlog of the
/// listener `inode`. The other clients are served.
fn wait_in_backlog(server: &Server, inode: u64, clients: usize) -> Vec<Peer> {
    let mut waiting = Vec::new();
    for _ in 0..clients {
        let mut peer = server.connect();
        peer.send("1\n");
        eventually("the client is served or waits", || {
            (peer.unread() > 0 || queued(inode) > waiting.len()).then_some(())
        });
        match peer.unread() {
            0 => waiting.push(peer),
            _ => assert_eq!(peer.read_exactly(1), b"a"),
        }
    }
    waiting
}

/// The table that the server prints at its end: connections, rejected connections and CPU time of
/// each worker.
fn table(server: &Server) -> Vec<[u64; 3]> {
    let log = server.log();
    let rows = log.lines().skip_while(|line| !line.starts_with("worker  connections")).skip(1);
    let numbers = |line: &str| -> Vec<u64> {
        line.split_whitespace().skip(1).map(|word| word.parse().unwrap()).collect()
    };
    rows.take(WORKERS).map(|line| numbers(line).try_into().unwrap()).collect()
}

/// Tens of connections are distributed unevenly, thousands evenly: a hash does that, round robin
/// does not.
#[test]
fn truth_b_counts_even_out_over_thousands() {
    for connections in [8, 40, 400, 2000] {
        let mut server = start(&[]);
        (0..connections).for_each(|_| server.connect().ask(1));
        server.stop().unwrap();
        let rows = table(&server);
        let counts: Vec<u64> = rows.iter().map(|row| row[0]).collect();
        eprintln!("{connections} connections: {counts:?}");
        let sum: u64 = counts.iter().sum();
        assert_eq!((counts.len(), sum), (WORKERS, connections), "{}", server.log());
        assert!(rows.iter().all(|row| row[1] == 0), "{rows:?}");
        if connections == 2000 {
            assert!(counts.iter().all(|count| (375..625).contains(count)), "{counts:?}");
            assert!(counts.iter().any(|count| *count != 500), "round robin: {counts:?}");
        }
    }
}

/// One client of 401 causes most of the work. The counts of connections do not show it.
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
    assert!(rows.iter().any(|row| row[2] >= busy / 1_000_000), "not in the table: {rows:?}");
}

#[test]
fn truth_b_a_client_waits_for_a_busy_worker_while_others_are_idle() {
    let server = start(&[]);
    let base = Baseline::of(&server);
    let (stopped, inode) = stop_one(&server);
    let waiting = wait_in_backlog(&server, inode, 40);
    eprintln!("{} of 40 clients wait for one of {WORKERS} workers", waiting.len());
    assert!(!waiting.is_empty() && waiting.iter().all(Peer::is_waiting));
    assert_eq!(queued(inode), waiting.len());
    kill(Pid::from_raw(stopped), Signal::SIGCONT).unwrap();
    waiting.into_iter().for_each(|mut peer| assert_eq!(peer.read_exactly(1), b"a"));
    oracle::finish(server, &base);
}

#[test]
fn d17_backlog_of_a_dead_worker_is_lost() {
    kill_with_a_backlog("d17_backlog_of_a_dead_worker_is_lost", "0", |waiting| {
        let reset = (Vec::new(), End::Reset);
        waiting.into_iter().for_each(|mut peer| assert_eq!(peer.read_to_end(), reset));
        "reset"
    });
}

#[test]
fn d17_backlog_of_a_dead_worker_moves_with_tcp_migrate_req() {
    kill_with_a_backlog(
        "d17_backlog_of_a_dead_worker_moves_with_tcp_migrate_req",
        "1",
        |waiting| {
            waiting.into_iter().for_each(|mut peer| assert_eq!(peer.read_exactly(1), b"a"));
            "served"
        },
    );
}

/// Stops a worker, connects 40 clients, and kills the worker. `check` gets the clients that were in
/// its backlog. The test runs itself again in its own network namespace, because the setting
/// applies to a whole namespace.
fn kill_with_a_backlog(test: &str, migrate: &str, check: impl FnOnce(Vec<Peer>) -> &'static str) {
    if std::env::var("OWN_NETWORK").as_deref() != Ok(test) {
        let Some(mut again) = tools::own_network(test) else { return };
        again.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
        let output = again.env("OWN_NETWORK", test).output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        let result = text.lines().find(|line| line.starts_with("tcp_migrate_req"));
        eprintln!("{}", result.unwrap_or(&text));
        return;
    }
    fs::write("/proc/sys/net/ipv4/tcp_migrate_req", migrate).unwrap();
    let server = start(&[]);
    let base = Baseline::of(&server);
    let mut connected: Vec<Peer> = (0..20).map(|_| server.connect()).collect();
    connected.iter_mut().for_each(|peer| peer.ask(1));
    let (stopped, inode) = stop_one(&server);
    connected.retain(|peer| !procs::holders(&server, peer).contains(&stopped));
    let waiting = wait_in_backlog(&server, inode, 40);
    let count = waiting.len();
    assert!(count > 0 && queued(inode) == count, "{count} clients wait, {} queued", queued(inode));
    kill(Pid::from_raw(stopped), Signal::SIGKILL).unwrap();
    let result = check(waiting);
    eprintln!(
        "tcp_migrate_req={migrate}: {count} of 40 clients waited for the dead worker: {result}"
    );
    // The clients of the other workers are still served.
    connected.iter_mut().for_each(|peer| peer.ask(1));
    drop(connected);
    oracle::finish(server, &base);
}

/// Starts a second server on the port of the first one.
fn second_start_fails(server: &Server) {
    let port = server.addr.port().to_string();
    let second = Server::try_start(Command::new(BIN).args(["-p", &port]));
    let error = second.err().unwrap_or_else(|| panic!("it gets a share of the clients"));
    assert!(error.contains("Address already in use"), "{error}");
}

#[test]
fn second_start_fails_also_while_all_workers_are_dead() {
    let server = start(&[]);
    second_start_fails(&server);
    let base = Baseline::of(&server);
    server.signal(Signal::SIGSTOP);
    eventually("the parent has stopped", || {
        server.family().iter().any(|p| p.state == 'T').then_some(())
    });
    workers(&server).into_iter().for_each(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap());
    eventually("no process listens", || Peer::try_connect(server.addr).is_err().then_some(()));
    second_start_fails(&server);
    server.signal(Signal::SIGCONT);
    eventually("a client is served", || Peer::try_connect(server.addr).ok()?.try_ask(1).ok());
    oracle::finish(server, &base);
}

/// strace delays each server after bind, so all servers have bound the port before one listens.
#[test]
fn of_servers_that_start_at_the_same_moment_one_gets_the_port() {
    const TEST: &str = "of_servers_that_start_at_the_same_moment_one_gets_the_port";
    if !tools::have("strace", TEST) {
        return;
    }
    let inject = "inject=bind:delay_exit=100000:when=1..2";
    let strace = ["-f", "-o", "/dev/null", "-e", "trace=bind", "-e", inject];
    for _ in 0..4 {
        let port = Server::start(BIN, &["-n", "1"]).addr.port().to_string();
        let server = [BIN, "-n", "1", "-p", &port];
        let start = || Server::try_start(Command::new("strace").args(strace).args(server));
        let started: Vec<_> = thread::scope(|scope| {
            let starts: Vec<_> = (0..3).map(|_| scope.spawn(start)).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        let errors: Vec<_> = started.iter().filter_map(|start| start.as_ref().err()).collect();
        assert_eq!(errors.len(), 2, "{errors:?}");
        let is_in_use = |error: &&String| error.contains("Address already in use");
        assert!(errors.iter().all(is_in_use), "{errors:?}");
    }
}

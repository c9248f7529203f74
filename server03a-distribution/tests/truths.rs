//! Verified kernel behaviour (a), (b) and (p): how many workers a connection wakes, in which order,
//! and counters in shared memory that lose nothing.
// Test code: the lints know only #[test] functions as such.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr)]

use std::fs;
use std::process::{Command, Stdio};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::NamedTempFile;
use testkit::{Server, eventually, procs};

const CHILDREN: usize = 8;
const CONNECTIONS: usize = 200;

/// The server, and the file that is its stdout.
struct Lab {
    server: Server,
    children: usize,
    stdout: NamedTempFile,
}

impl Lab {
    fn start(children: usize, args: &[&str]) -> Lab {
        let stdout = NamedTempFile::new().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_server03a-distribution"));
        command.args(["-p", "0", "--json", "-n", &children.to_string()]).args(args);
        command.stdout(stdout.reopen().unwrap()).stderr(Stdio::null());
        let lab = Lab { server: Server::start_blind(&mut command), children, stdout };
        lab.rest();
        lab
    }

    fn workers(&self) -> Vec<i32> {
        self.server.family().iter().map(|p| p.pid).filter(|pid| *pid != self.server.pid()).collect()
    }

    /// Returns when every worker sleeps in its wait: not in a session and not in --busy.
    fn rest(&self) {
        let in_session = ["", "0", "wait_woken"];
        let in_sleep = ["hrtimer_nanosleep", "do_nanosleep", "common_nsleep"];
        let elsewhere = [in_session, in_sleep].concat();
        eventually("all children sleep", || {
            let family = self.server.family();
            let sleeps = |pid| !elsewhere.contains(&wchan(pid).as_str());
            let complete = family.len() == self.children + 1;
            let all = complete && family.iter().all(|p| p.state == 'S' && sleeps(p.pid));
            // Check the state again: the process could have run before wchan was read.
            (all && self.server.family() == family).then_some(())
        });
    }

    /// Connects again when the last connection has been closed and all workers sleep.
    fn one_by_one(&self, n: usize) {
        for _ in 0..n {
            self.server.connect().ask(1);
            self.rest();
        }
    }

    fn report(&self) -> Value {
        let lines = || fs::read_to_string(self.stdout.path()).unwrap().lines().count();
        let before = lines();
        self.server.signal(Signal::SIGUSR1);
        eventually("a line of JSON", || (lines() > before).then_some(()));
        let text = fs::read_to_string(self.stdout.path()).unwrap();
        serde_json::from_str(text.lines().last().unwrap()).unwrap()
    }

    fn order(&self) -> Vec<u8> {
        self.report()["order"].as_str().unwrap().bytes().collect()
    }
}

fn wchan(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default()
}

fn sum(report: &Value, key: &str) -> u64 {
    report["workers"].as_array().unwrap().iter().map(|worker| worker[key].as_u64().unwrap()).sum()
}

/// Wake-ups per connection at low load.
fn wakeups(args: &[&str]) -> f64 {
    let lab = Lab::start(CHILDREN, args);
    lab.one_by_one(CONNECTIONS);
    let report = lab.report();
    assert_eq!(sum(&report, "connections"), CONNECTIONS as u64);
    let per_connection = sum(&report, "wakeups") as f64 / CONNECTIONS as f64;
    let spurious = sum(&report, "spurious");
    eprintln!("{args:?}: {per_connection:.2} wake-ups per connection, {spurious} spurious");
    per_connection
}

#[test]
fn truth_a_accept_wakes_one() {
    let n = wakeups(&["--wait", "accept"]);
    assert!((1.0..=1.2).contains(&n), "{n}");
}

#[test]
fn truth_a_select_wakes_all() {
    let n = wakeups(&["--wait", "select"]);
    assert!(n >= 0.9 * CHILDREN as f64, "{n}");
}

#[test]
fn truth_a_poll_wakes_all() {
    let n = wakeups(&["--wait", "poll"]);
    assert!(n >= 0.9 * CHILDREN as f64, "{n}");
}

#[test]
fn truth_a_epoll_wakes_all() {
    let n = wakeups(&["--wait", "epoll"]);
    assert!(n >= 0.9 * CHILDREN as f64, "{n}");
}

#[test]
fn truth_a_exclusive_wakes_one() {
    let n = wakeups(&["--wait", "exclusive"]);
    assert!((1.0..=1.5).contains(&n), "{n}");
}

#[test]
fn truth_a_shared_epoll_passes_the_readiness_on() {
    let n = wakeups(&["--wait", "shared"]);
    assert!((1.0..=4.0).contains(&n), "{n}");
}

#[test]
fn truth_a_shared_edge_wakes_one() {
    let n = wakeups(&["--wait", "shared", "--edge"]);
    assert!((1.0..=1.5).contains(&n), "{n}");
}

#[test]
fn truth_b_accept_takes_turns() {
    let lab = Lab::start(4, &[]);
    lab.one_by_one(40);
    let order = lab.order();
    eprintln!("accept: {}", String::from_utf8_lossy(&order));
    let mut first = order[..4].to_vec();
    assert!(order.chunks(4).all(|round| round == first), "{}", String::from_utf8_lossy(&order));
    first.sort();
    assert_eq!(first, b"ABCD");
}

/// The entries in the listener's queue keep their order: the first idle worker gets the connection.
/// A burst with as many clients as workers shows the order.
#[test]
fn truth_b_exclusive_prefers_the_first_registered() {
    let lab = Lab::start(4, &["--wait", "exclusive", "--busy", "50"]);
    let mut wanted = Vec::new();
    for burst in [4, 4, 1, 1, 1, 2, 2, 3, 4] {
        let mut peers = Vec::new();
        for _ in 0..burst {
            peers.push(lab.server.connect());
            let peer = peers.last().unwrap();
            let is_accepted = || !procs::holders(&lab.server, peer).is_empty();
            eventually("accepted", || is_accepted().then_some(()));
        }
        wanted.push(burst);
        peers.iter_mut().for_each(|peer| peer.ask(1));
        drop(peers);
        lab.rest();
    }
    let order = lab.order();
    eprintln!("exclusive, bursts of {wanted:?}: {}", String::from_utf8_lossy(&order));
    let queue = &order[..4];
    let wanted: Vec<u8> = wanted.into_iter().flat_map(|burst| &queue[..burst]).copied().collect();
    assert_eq!(String::from_utf8_lossy(&order), String::from_utf8_lossy(&wanted));
}

#[test]
fn truth_b_shared_edge_is_last_in_first_out() {
    let lab = Lab::start(4, &["--wait", "shared", "--edge"]);
    lab.one_by_one(40);
    let order = lab.order();
    eprintln!("shared, edge: {}", String::from_utf8_lossy(&order));
    assert!(order.iter().all(|letter| *letter == order[0]), "{}", String::from_utf8_lossy(&order));
}

#[test]
fn truth_p_no_connection_is_lost_from_the_counters() {
    let lab = Lab::start(8, &[]);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1000).for_each(|_| lab.server.connect().ask(1)));
        }
    });
    lab.rest();
    let report = lab.report();
    assert_eq!(sum(&report, "connections"), 4000);
    assert_eq!(report["order"].as_str().unwrap().len(), 4000);
}

/// The lock belongs to the open file description of the worker: if the worker dies, the kernel
/// releases the lock.
#[test]
fn killed_lock_holder_releases_the_lock() {
    let lab = Lab::start(8, &["--wait", "flock"]);
    let accepts = |pid| wchan(pid) == "inet_csk_accept";
    for _ in 0..8 {
        let in_accept = || lab.workers().into_iter().find(|pid| accepts(*pid));
        let holder = eventually("one in accept", in_accept);
        kill(Pid::from_raw(holder), Signal::SIGKILL).unwrap();
        // A dying process can still accept a connection.
        eventually("the holder has ended", || (!procs::is_there(holder)).then_some(()));
        lab.server.connect().ask(1);
    }
}

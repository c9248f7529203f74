//! Kernel truths (a), (b) and (p): how many sleepers a connection wakes, in which order, and counters that lose nothing.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr)] // test code

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

    /// Until every worker sleeps in its wait: not in a conversation, not at work, not on its way back to sleep.
    fn rest(&self) {
        let elsewhere = ["", "0", "wait_woken", "hrtimer_nanosleep", "do_nanosleep", "common_nsleep"];
        eventually("all children sleep", || {
            let family = self.server.family();
            let sleeps = |pid| !elsewhere.contains(&wchan(pid).as_str());
            let all = family.len() == self.children + 1 && family.iter().all(|p| p.state == 'S' && sleeps(p.pid));
            // A second look at the state: between the first one and wchan it could have run.
            (all && self.server.family() == family).then_some(())
        });
    }

    /// Connections one after the other, each when the last one is gone and all children sleep again.
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
        serde_json::from_str(fs::read_to_string(self.stdout.path()).unwrap().lines().last().unwrap()).unwrap()
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
    eprintln!("{args:?}: {per_connection:.2} wake-ups per connection, {} spurious", sum(&report, "spurious"));
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

/// The entries on the listener's queue stay where they are: the head of the queue wins, the second one works while the
/// first one is busy, and so on. A burst as large as the pool shows the order of the entries.
#[test]
fn truth_b_exclusive_prefers_the_first_registered() {
    let lab = Lab::start(4, &["--wait", "exclusive", "--busy", "50"]);
    let mut wanted = Vec::new();
    for burst in [4, 4, 1, 1, 1, 2, 2, 3, 4] {
        let mut peers = Vec::new();
        for _ in 0..burst {
            peers.push(lab.server.connect());
            let peer = peers.last().unwrap();
            eventually("accepted", || (!procs::holders(&lab.server, peer).is_empty()).then_some(()));
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

/// The lock belongs to the holder's open file: when the holder dies, the kernel lets the next one have it.
#[test]
fn a_lock_holder_that_is_killed_blocks_nobody() {
    let lab = Lab::start(8, &["--wait", "flock"]);
    for _ in 0..8 {
        let holder =
            eventually("one in accept", || lab.workers().into_iter().find(|pid| wchan(*pid) == "inet_csk_accept"));
        kill(Pid::from_raw(holder), Signal::SIGKILL).unwrap();
        // A process that is dying can still take a connection with it.
        eventually("the holder is gone", || (!procs::is_there(holder)).then_some(()));
        lab.server.connect().ask(1);
    }
}

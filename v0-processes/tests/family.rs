//! What this version promises beyond the chats' suite: that each process may be killed, what a line costs in system calls
//! and a member in memory, and that neither a lack of descriptors nor a locked log stops the room.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use testkit::chat::{FAST, Member};
use testkit::oracle::Baseline;
use testkit::{End, Peer, Server, eventually, procs, tools};

/// A server in a folder of its own.
struct Room {
    server: Server,
    dir: TempDir,
}

fn start(args: &[&str]) -> Room {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_v0-processes"));
    let server = Server::start_with(command.current_dir(dir.path()).args(["-p", "0"]).args(args));
    Room { server, dir }
}

impl Room {
    fn gather(&self, nicks: &[&str]) -> Vec<Member> {
        let mut members: Vec<Member> = nicks.iter().map(|nick| Member::join(self.server.addr, nick)).collect();
        members.iter_mut().for_each(|member| drop(member.sync()));
        members
    }

    /// The one who holds both connections is the hub; the other holder of the first one is its worker.
    fn hub_and_worker(&self, one: &Member, other: &Member) -> (Pid, Pid) {
        eventually("two holders", || {
            let (first, second) = (procs::holders(&self.server, &one.peer), procs::holders(&self.server, &other.peer));
            let hub = first.iter().copied().find(|pid| second.contains(pid))?;
            let worker = first.into_iter().find(|pid| *pid != hub)?;
            Some((Pid::from_raw(hub), Pid::from_raw(worker)))
        })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("chat_log.txt")).unwrap()
    }
}

#[test]
fn a_killed_worker_is_a_leave_line_and_a_fin() {
    let room = start(&["-v"]);
    let base = Baseline::of_service(&room.server, testkit::chat::CHAT);
    let [mut alice, mut bob, mut carol] =
        <[Member; 3]>::try_from(room.gather(&["alice", "bob", "carol"])).ok().unwrap();
    bob.say("my last words");
    alice.expect("<bob> my last words");
    let (_, worker) = room.hub_and_worker(&bob, &alice);
    kill(worker, Signal::SIGKILL).unwrap();
    alice.expect("* bob left (crashed)");
    assert_eq!(carol.sync(), ["<bob> my last words", "* bob left (crashed)"]);
    assert_eq!(bob.rest(), (Vec::new(), End::Eof), "the hub still holds the socket, and shuts it down");
    room.server.wait_log("Signaled");
    let mut second = Member::join(room.server.addr, "bob");
    alice.expect("* bob joined");
    second.say("here again");
    alice.expect("<bob> here again");
    drop((alice, bob, carol, second));
    let Room { server, dir: _dir } = room;
    testkit::oracle::finish(server, &base);
}

#[test]
fn a_killed_hub_is_the_end_of_all() {
    let mut room = start(&[]);
    let mut members = room.gather(&["alice", "bob"]);
    let (hub, _) = room.hub_and_worker(&members[0], &members[1]);
    kill(hub, Signal::SIGKILL).unwrap();
    assert_eq!(room.server.wait().code(), Some(1));
    let log = room.server.log();
    assert!(log.lines().any(|line| line.starts_with("Error: hub: ") && line.contains("SIGKILL")), "{log}");
    for member in &mut members {
        assert_ne!(member.rest().1, End::Silence);
    }
    assert_eq!(room.server.family(), []);
}

#[test]
fn a_killed_parent_leaves_nobody_and_the_port_free() {
    let mut room = start(&[]);
    let mut members = room.gather(&["alice", "bob", "carol"]);
    room.server.signal(Signal::SIGKILL);
    room.server.wait();
    for member in &mut members {
        let (lines, end) = member.rest();
        assert_eq!((lines, end), (vec!["* server is going down".to_owned()], End::Eof), "the hub's last words");
    }
    eventually("the family is gone", || room.server.family().iter().all(|p| p.state == 'Z').then_some(()));
    let port = room.server.addr.port().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_v0-processes"));
    let mut next = Server::start_with(command.current_dir(room.dir.path()).args(["-p", &port]));
    drop(Member::join(next.addr, "alice"));
    next.stop().unwrap();
}

#[test]
fn a_stopped_hub_does_not_hold_up_the_stop() {
    let mut room = start(&["--grace", "300"]);
    let members = room.gather(&["alice", "bob"]);
    let (hub, _) = room.hub_and_worker(&members[0], &members[1]);
    kill(hub, Signal::SIGSTOP).unwrap();
    room.server.stop().unwrap();
}

#[test]
fn nothing_is_forked_for_one_who_is_refused() {
    let room = start(&["--max-conns", "2"]);
    let _members = room.gather(&["alice", "bob"]);
    assert_eq!(room.server.family().len(), 4, "parent, hub, two workers");
    let refused: Vec<Peer> = (0..10).map(|_| room.server.connect()).collect();
    for mut peer in refused {
        let (bytes, end) = peer.read_to_end();
        assert!(bytes.starts_with(b"! server-full") && end == End::Eof, "{}", bytes.escape_ascii());
        assert_eq!(room.server.family().len(), 4);
    }
}

/// The descriptor is lost on its way (MSG_CTRUNC): the client is told through its worker, and the room goes on.
#[test]
fn a_hub_without_descriptors_sends_away_who_comes_and_keeps_who_is_there() {
    let room = start(&FAST);
    let base = Baseline::of_service(&room.server, testkit::chat::CHAT);
    let [mut alice, mut bob] = <[Member; 2]>::try_from(room.gather(&["alice", "bob"])).ok().unwrap();
    let (hub, _) = room.hub_and_worker(&alice, &bob);
    let used = procs::descriptors(hub.as_raw());
    let ceiling = (0..).find(|fd| !used.contains_key(fd)).unwrap() as u64;
    let limit = procs::limit_descriptors(hub.as_raw(), ceiling);
    for _ in 0..3 {
        let (bytes, end) = room.server.connect().read_to_end();
        assert!(bytes.starts_with(b"! server-full") && end == End::Eof, "{}, {end:?}", bytes.escape_ascii());
    }
    room.server.wait_log("MSG_CTRUNC");
    bob.say("still here");
    alice.expect("<bob> still here");
    procs::limit_descriptors(hub.as_raw(), limit);
    drop(Member::join(room.server.addr, "carol"));
    alice.expect("* carol joined");
    drop((alice, bob));
    let Room { server, dir: _dir } = room;
    testkit::oracle::finish(server, &base);
}

#[test]
fn a_locked_log_does_not_stop_the_room() {
    let room = start(&FAST);
    let [mut alice, mut bob] = <[Member; 2]>::try_from(room.gather(&["alice", "bob"])).ok().unwrap();
    let lock = File::open(room.dir.path().join("chat_log.txt")).unwrap();
    // SAFETY: the descriptor is open.
    assert_eq!(unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) }, 0);
    for i in 0..100 {
        bob.say(&format!("line {i}"));
        alice.expect(&format!("<bob> line {i}"));
    }
    assert_eq!(room.log(), "", "somebody else has the lock");
    drop(lock);
    eventually("all is in the log", || (room.log().lines().count() == 100).then_some(()));
    let order = room.log().lines().enumerate().all(|(i, line)| line.ends_with(&format!("<bob> line {i}")));
    assert!(order, "{}", room.log());
}

/// strace on the whole family while a body runs: the calls it made.
fn system_calls(room: &Room, body: impl FnOnce()) -> Vec<String> {
    let out = room.dir.path().join("trace");
    let pids: Vec<i32> = room.server.family().iter().map(|process| process.pid).collect();
    let mut command = Command::new("strace");
    command.arg("-o").arg(&out).args(pids.iter().flat_map(|pid| ["-p".to_owned(), pid.to_string()]));
    let mut strace = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(strace.stderr.take().unwrap());
    for _ in &pids {
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        assert!(line.contains("attached"), "strace: {line}");
    }
    body();
    let _ = kill(Pid::from_raw(strace.id() as i32), Signal::SIGTERM);
    let _ = strace.wait();
    calls_in(&out)
}

/// One entry per call: a call that another process interrupted is in the trace twice.
fn calls_in(trace: &Path) -> Vec<String> {
    let text = fs::read_to_string(trace).unwrap();
    fs::remove_file(trace).unwrap();
    let call = |line: &str| Some(line.split_once(' ')?.1.trim_start().split_once('(')?.0.to_owned());
    text.lines().filter(|line| !line.contains("resumed>")).filter_map(call).collect()
}

#[test]
fn a_line_to_ten_members_costs_at_most_two_calls_a_delivery() {
    if !tools::have("strace", "a_line_to_ten_members_costs_at_most_two_calls_a_delivery") {
        return;
    }
    let room = start(&FAST);
    let nicks: Vec<String> = (0..10).map(|i| format!("member{i}")).collect();
    let mut members = room.gather(&nicks.iter().map(String::as_str).collect::<Vec<_>>());
    let lines = 50;
    let calls = system_calls(&room, || {
        for i in 0..lines {
            members[0].say(&format!("line {i}"));
            members[1..].iter_mut().for_each(|member| member.expect(&format!("<member0> line {i}")));
        }
    });
    let deliveries = lines * 9;
    let sent = calls.iter().filter(|call| matches!(call.as_str(), "sendmsg" | "sendto")).count();
    assert!(sent >= deliveries + lines, "strace has seen {sent} sends of {deliveries} deliveries: {calls:?}");
    let per_delivery = calls.len() as f64 / deliveries as f64;
    eprintln!("{per_delivery:.2} system calls per delivery");
    assert!(per_delivery <= 2.0, "{per_delivery:.2} system calls per delivery");
}

/// Proportional set size of the whole family, proc_pid_smaps(5).
fn pss(server: &Server) -> u64 {
    let of = |pid: i32| -> u64 {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default();
        line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
    };
    server.family().iter().map(|process| of(process.pid)).sum()
}

#[test]
fn an_idle_member_costs_at_most_80_kib() {
    // A copy of the program: its pages are shared among this family's processes, and with no other test's.
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("v0-processes");
    fs::copy(env!("CARGO_BIN_EXE_v0-processes"), &program).unwrap();
    let server = Server::start_with(Command::new(program).current_dir(dir.path()).args(["-p", "0"]).args(FAST));
    let room = Room { server, dir };
    let mut members = room.gather(&["first"]);
    let before = pss(&room.server);
    let nicks: Vec<String> = (0..50).map(|i| format!("member{i}")).collect();
    members.extend(room.gather(&nicks.iter().map(String::as_str).collect::<Vec<_>>()));
    let each = (pss(&room.server) - before) / 50;
    eprintln!("{each} KiB PSS per idle member");
    assert!(each <= 80, "{each} KiB PSS per idle member");
}

/// The naive twin shows what main.rs avoids: no FIN, since there are other copies; and a port that stays taken.
#[test]
fn the_naive_twin_keeps_its_clients_and_its_port() {
    let mut naive = Server::start(env!("CARGO_BIN_EXE_naive-inherit"), &[]);
    let (mut alice, mut bob) = (naive.connect(), naive.connect());
    bob.send("hi\n");
    assert_eq!(alice.read_exactly(3), b"hi\n");
    alice.send("/quit\n");
    eventually("the worker has gone", || (naive.family().len() == 2).then_some(()));
    assert!(alice.is_waiting(), "a FIN in spite of the copies");
    bob.send("still here\n");
    assert_eq!(alice.read_exactly(11), b"still here\n", "who has left still hears");
    naive.signal(Signal::SIGKILL);
    naive.wait();
    let orphan = naive.family();
    assert_eq!(orphan.len(), 1, "{orphan:?}");
    drop(Peer::try_connect(naive.addr).expect("the orphan listens"));
}

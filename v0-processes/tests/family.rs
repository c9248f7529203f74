//! What v0 promises beyond the conformance suite: each process may be killed, a missing descriptor
//! or a locked log file does not stop the room, and what a line and a member cost.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr
)]

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;
use tempfile::TempDir;
use testkit::chat::{FAST, Member};
use testkit::oracle::Baseline;
use testkit::{End, Peer, Server, eventually, procs, tools};

/// A server in its own folder.
struct Room {
    server: Server,
    dir: TempDir,
}

fn start(args: &[&str]) -> Room {
    start_command(Command::new(env!("CARGO_BIN_EXE_v0-processes")).args(args))
}

fn start_command(command: &mut Command) -> Room {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(command.current_dir(dir.path()).args(["-p", "0"]));
    Room { server, dir }
}

impl Room {
    fn join_all<const N: usize>(&self, nicks: [&str; N]) -> [Member; N] {
        let mut members = nicks.map(|nick| Member::join(self.server.addr, nick));
        members.iter_mut().for_each(|member| drop(member.sync()));
        members
    }

    /// The process that holds both connections is the hub. The other one that holds the first
    /// connection is the worker of the first client.
    fn hub_and_worker(&self, first: &Member, second: &Member) -> (Pid, Pid) {
        eventually("each connection is held by the hub and a worker", || {
            let holders = |member: &Member| procs::holders(&self.server, &member.peer);
            let (first, second) = (holders(first), holders(second));
            let hub = first.iter().copied().find(|pid| second.contains(pid))?;
            let worker = first.into_iter().find(|pid| *pid != hub)?;
            Some((Pid::from_raw(hub), Pid::from_raw(worker)))
        })
    }

    fn log_file(&self) -> String {
        fs::read_to_string(self.dir.path().join("chat_log.txt")).unwrap()
    }
}

#[test]
fn killed_worker_causes_one_leave_line_and_a_fin() {
    let room = start(&["-v"]);
    let base = Baseline::of_service(&room.server, testkit::chat::CHAT);
    let [mut alice, mut bob, mut carol] = room.join_all(["alice", "bob", "carol"]);
    bob.say("my last line");
    alice.expect("<bob> my last line");
    let (_, worker) = room.hub_and_worker(&bob, &alice);
    kill(worker, Signal::SIGKILL).unwrap();
    alice.expect("* bob left (crashed)");
    assert_eq!(carol.sync(), ["<bob> my last line", "* bob left (crashed)"]);
    assert_eq!(bob.rest(), (Vec::new(), End::Eof), "the hub shuts the connection down");
    room.server.wait_log(&format!("WARN worker {worker} of client"));
    assert!(room.server.log().contains(": killed by SIGKILL"), "{}", room.server.log());
    let mut second = Member::join(room.server.addr, "bob");
    alice.expect("* bob joined");
    second.say("here again");
    alice.expect("<bob> here again");
    drop((alice, bob, carol, second));
    let Room { server, dir: _dir } = room;
    testkit::oracle::finish(server, &base);
}

#[test]
fn killed_hub_ends_the_server_with_status_1() {
    let mut room = start(&[]);
    let mut members = room.join_all(["alice", "bob"]);
    let (hub, _) = room.hub_and_worker(&members[0], &members[1]);
    kill(hub, Signal::SIGKILL).unwrap();
    assert_eq!(room.server.wait().code(), Some(1));
    let log = room.server.log();
    assert!(log.lines().any(|line| line == "Error: hub: killed by SIGKILL"), "{log}");
    for member in &mut members {
        assert_ne!(member.rest().1, End::Silence);
    }
    assert_eq!(room.server.family(), []);
}

#[test]
fn killed_parent_leaves_no_process_and_a_free_port() {
    let mut room = start(&[]);
    let mut members = room.join_all(["alice", "bob", "carol"]);
    room.server.signal(Signal::SIGKILL);
    room.server.wait();
    for member in &mut members {
        let expected = (vec!["* server is going down".to_owned()], End::Eof);
        assert_eq!(member.rest(), expected, "the hub sends a final message");
    }
    eventually("all processes have ended", || {
        room.server.family().iter().all(|process| process.state == 'Z').then_some(())
    });
    let port = room.server.addr.port().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_v0-processes"));
    let mut next = Server::start_with(command.current_dir(room.dir.path()).args(["-p", &port]));
    drop(Member::join(next.addr, "alice"));
    next.stop().unwrap();
}

/// Ctrl-C in a terminal sends SIGINT to every process.
#[test]
fn sigint_to_all_processes_is_a_graceful_shutdown() {
    let mut room = start(&[]);
    let mut members = room.join_all(["alice", "bob"]);
    for child in room.server.family().into_iter().filter(|p| p.pid != room.server.pid()) {
        kill(Pid::from_raw(child.pid), Signal::SIGINT).unwrap();
    }
    members[0].say("the children ignore SIGINT");
    members[1].expect("<alice> the children ignore SIGINT");
    room.server.signal(Signal::SIGINT);
    for member in &mut members {
        assert_eq!(member.rest(), (vec!["* server is going down".to_owned()], End::Eof));
    }
    assert_eq!(room.server.wait().code(), Some(0));
    assert_eq!(room.server.family(), []);
}

#[test]
fn stopped_hub_does_not_block_the_shutdown() {
    let mut room = start(&["--grace", "300"]);
    let members = room.join_all(["alice", "bob"]);
    let (hub, _) = room.hub_and_worker(&members[0], &members[1]);
    kill(hub, Signal::SIGSTOP).unwrap();
    room.server.stop().unwrap();
}

/// An ignored SIGCHLD is inherited through exec. The kernel then reaps the children itself.
#[test]
fn sigchld_ignored_at_exec_changes_nothing() {
    fn ignore_sigchld() -> io::Result<()> {
        // SAFETY: this process is about to call exec, and no handler runs.
        unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
        Ok(())
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_v0-processes"));
    // SAFETY: the function makes one system call.
    unsafe { command.args(["--max-conns", "2"]).pre_exec(ignore_sigchld) };
    let mut room = start_command(&mut command);
    for _ in 0..5 {
        eventually("a slot is free again", || Member::try_join(room.server.addr, "alice").ok());
    }
    room.server.stop().unwrap();
}

#[test]
fn client_above_the_limit_is_rejected_without_a_fork() {
    let room = start(&["--max-conns", "2"]);
    let _members = room.join_all(["alice", "bob"]);
    assert_eq!(room.server.family().len(), 4, "the parent, the hub, two workers");
    let rejected: Vec<Peer> = (0..10).map(|_| room.server.connect()).collect();
    for mut peer in rejected {
        assert_rejected(&mut peer);
        assert_eq!(room.server.family().len(), 4);
    }
}

fn assert_rejected(peer: &mut Peer) {
    let (bytes, end) = peer.read_to_end();
    let lines = String::from_utf8_lossy(&bytes);
    let is_rejected = lines.matches("! server-full").count() == 1 && end == End::Eof;
    assert!(is_rejected, "{lines:?}, then {end:?}");
}

/// The first descriptor number above the ones that the process uses.
fn first_free_descriptor(pid: Pid) -> u64 {
    let used = procs::descriptors(pid.as_raw());
    (0..).find(|fd| !used.contains_key(fd)).unwrap() as u64
}

/// The kernel drops a descriptor that the hub cannot take (MSG_CTRUNC): the link, or with one free
/// descriptor the client's socket. In both cases the worker rejects the client.
#[test]
fn hub_without_descriptors_rejects_new_clients_and_keeps_its_members() {
    let room = start(&FAST);
    let base = Baseline::of_service(&room.server, testkit::chat::CHAT);
    let [mut alice, mut bob] = room.join_all(["alice", "bob"]);
    let (hub, _) = room.hub_and_worker(&alice, &bob);
    let first_free = first_free_descriptor(hub);
    let limit = procs::limit_descriptors(hub.as_raw(), first_free);
    for free in [0, 0, 1, 1] {
        procs::limit_descriptors(hub.as_raw(), first_free + free);
        assert_rejected(&mut room.server.connect());
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
fn client_that_a_worker_rejects_cannot_keep_the_worker() {
    let room = start(&FAST);
    let members = room.join_all(["alice", "bob"]);
    let (hub, _) = room.hub_and_worker(&members[0], &members[1]);
    procs::limit_descriptors(hub.as_raw(), first_free_descriptor(hub));
    let mut peer = room.server.connect();
    assert_eq!(peer.read_exactly(13), b"! server-full");
    eventually("the worker has ended", || {
        let _ = peer.try_send("x");
        (room.server.family().len() == 4).then_some(())
    });
}

#[test]
fn log_file_is_named_at_the_start() {
    let room = start(&[]);
    room.server.wait_log("chat_log.txt");
    assert_eq!(room.server.log().lines().count(), 1, "{}", room.server.log());
}

#[test]
fn locked_log_file_does_not_stop_the_room() {
    let room = start(&FAST);
    let [mut alice, mut bob] = room.join_all(["alice", "bob"]);
    let lock = File::open(room.dir.path().join("chat_log.txt")).unwrap();
    // SAFETY: the descriptor is open.
    assert_eq!(unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) }, 0);
    for i in 0..100 {
        bob.say(&format!("line {i}"));
        alice.expect(&format!("<bob> line {i}"));
    }
    assert_eq!(room.log_file(), "", "the test holds the lock");
    drop(lock);
    eventually("all lines are in the log file", || {
        (room.log_file().lines().count() == 100).then_some(())
    });
    let mut lines = (0..).zip(room.log_file().lines().map(str::to_owned).collect::<Vec<_>>());
    let in_order = lines.all(|(i, line)| line.ends_with(&format!("<bob> line {i}")));
    assert!(in_order, "{}", room.log_file());
}

/// The system calls of all processes while `body` runs, as strace sees them.
fn system_calls(room: &Room, body: impl FnOnce()) -> Vec<String> {
    let out = room.dir.path().join("trace");
    let pids: Vec<i32> = room.server.family().iter().map(|process| process.pid).collect();
    let mut command = Command::new("strace");
    command.arg("-o").arg(&out);
    command.args(pids.iter().flat_map(|pid| ["-p".to_owned(), pid.to_string()]));
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

/// One name per call. strace splits a call that another process interrupts into two lines.
fn calls_in(trace: &Path) -> Vec<String> {
    let text = fs::read_to_string(trace).unwrap();
    fs::remove_file(trace).unwrap();
    let call =
        |line: &str| Some(line.split_once(' ')?.1.trim_start().split_once('(')?.0.to_owned());
    text.lines().filter(|line| !line.contains("resumed>")).filter_map(call).collect()
}

#[test]
fn line_to_ten_members_costs_at_most_two_calls_per_delivery() {
    if !tools::have("strace", "line_to_ten_members_costs_at_most_two_calls_per_delivery") {
        return;
    }
    let room = start(&FAST);
    let nicks: [String; 10] = std::array::from_fn(|i| format!("member{i}"));
    let mut members = room.join_all(nicks.each_ref().map(String::as_str));
    let lines = 50;
    let calls = system_calls(&room, || {
        for i in 0..lines {
            members[0].say(&format!("line {i}"));
            let expected = format!("<member0> line {i}");
            members[1..].iter_mut().for_each(|member| member.expect(&expected));
        }
    });
    let deliveries = lines * 9;
    let sent = calls.iter().filter(|call| matches!(call.as_str(), "sendmsg" | "sendto")).count();
    assert!(sent >= deliveries + lines, "strace has seen {sent} sends: {calls:?}");
    let per_delivery = calls.len() as f64 / deliveries as f64;
    eprintln!("{per_delivery:.2} system calls per delivery");
    assert!(per_delivery <= 2.0, "{per_delivery:.2} system calls per delivery");
}

/// The proportional set size of all processes in KiB, proc_pid_smaps(5): a page that n processes
/// share counts 1/n for each of them.
fn pss(server: &Server) -> u64 {
    let of = |pid: i32| -> u64 {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default();
        line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
    };
    server.family().iter().map(|process| of(process.pid)).sum()
}

#[test]
fn idle_member_costs_at_most_80_kib() {
    // A copy of the program, so that its pages are not shared with the servers of other tests.
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("v0-processes");
    fs::copy(env!("CARGO_BIN_EXE_v0-processes"), &program).unwrap();
    let room = start_command(Command::new(program).args(FAST));
    let first = room.join_all(["first"]);
    let before = pss(&room.server);
    let nicks: [String; 50] = std::array::from_fn(|i| format!("member{i}"));
    let members = room.join_all(nicks.each_ref().map(String::as_str));
    let per_member = (pss(&room.server) - before) / 50;
    drop((first, members));
    eprintln!("{per_member} KiB PSS per idle member");
    assert!(per_member <= 80, "{per_member} KiB PSS per idle member");
}

/// naive-inherit shows what main.rs avoids: no FIN, because other processes hold copies of the
/// connection, and a port that stays in use.
#[test]
fn naive_inherit_sends_no_fin_and_keeps_the_port() {
    let mut naive = Server::start(env!("CARGO_BIN_EXE_naive-inherit"), &[]);
    let (mut alice, mut bob) = (naive.connect(), naive.connect());
    bob.send("hi\n");
    assert_eq!(alice.read_exactly(3), b"hi\n");
    alice.send("/quit\n");
    eventually("the worker has ended", || (naive.family().len() == 2).then_some(()));
    assert!(alice.is_waiting(), "the connection has ended although other copies are open");
    bob.send("still here\n");
    assert_eq!(alice.read_exactly(11), b"still here\n", "a client that has quit still gets lines");
    naive.signal(Signal::SIGKILL);
    naive.wait();
    let orphan = naive.family();
    assert_eq!(orphan.len(), 1, "{orphan:?}");
    drop(Peer::try_connect(naive.addr).expect("the orphan still listens"));
}

//! What this version promises beyond the chats' suite: its price in system calls and memory, a budget for each task,
//! a loop that can be watched, and a room that does not wait for one reader.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::{Peer, Server, eventually, procs, tools};

const BIN: &str = env!("CARGO_BIN_EXE_v4-async");
const NAIVE: &str = env!("CARGO_BIN_EXE_naive-await");
/// No rate limit, and a log nowhere.
const FREE: [&str; 7] = ["-p", "0", "--rate", "1000000", "--burst", "1000000", "--no-log"];

/// Somebody in the room.
struct Member {
    stream: BufReader<TcpStream>,
}

impl Member {
    fn join(server: &Server, nick: &str) -> Member {
        let stream = TcpStream::connect(server.addr).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut member = Member { stream: BufReader::new(stream) };
        member.send(format!("{nick}\n"));
        assert!(member.line().starts_with("* welcome"), "no welcome");
        member
    }

    fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.get_mut().write_all(text.as_ref()).unwrap();
    }

    /// The next line.
    fn line(&mut self) -> String {
        self.line_within(Duration::from_secs(20)).expect("no line")
    }

    /// The next line, or None after so long.
    fn line_within(&mut self, patience: Duration) -> Option<String> {
        self.stream.get_ref().set_read_timeout(Some(patience)).unwrap();
        let mut line = String::new();
        self.stream.read_line(&mut line).ok()?;
        Some(line)
    }
}

/// Members who have all seen one another come.
fn members(server: &Server, count: usize) -> Vec<Member> {
    let mut members: Vec<Member> = Vec::new();
    for nth in 0..count {
        let newcomer = Member::join(server, &format!("m{nth}"));
        for member in &mut members {
            assert_eq!(member.line(), format!("* m{nth} joined\n"));
        }
        members.push(newcomer);
    }
    members
}

/// The system calls that the server has completed, once it sleeps.
fn calls(server: i32, log: &Path) -> usize {
    eventually("the server sleeps", || {
        let before = fs::read(log).unwrap();
        (procs::thread_states(server) == ['S']
            && fs::read(log).unwrap() == before
            && before.ends_with(b", "))
        .then(|| before.iter().filter(|byte| **byte == b'\n').count())
    })
}

#[test]
fn system_calls_for_each_delivery() {
    if !tools::have("strace", "system_calls_for_each_delivery") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("calls");
    let mut command = Command::new("strace");
    command.arg("-qq").arg("-o").arg(&log).arg(BIN).args(FREE);
    let server = Server::start_with(&mut command);
    let pid = eventually("the server below strace", || {
        server.family().into_iter().find(|p| p.pid != server.pid())
    })
    .pid;
    let mut room = members(&server, 10);
    let (sender, others) = room.split_first_mut().unwrap();

    let start = calls(pid, &log);
    for nth in 0..50 {
        sender.send(format!("line {nth}\n"));
        for other in &mut *others {
            assert_eq!(other.line(), format!("<m0> line {nth}\n"));
        }
    }
    let single = (calls(pid, &log) - start) as f64 / (50.0 * others.len() as f64);

    let start = calls(pid, &log);
    sender.send((0..200).map(|nth| format!("line {nth}\n")).collect::<String>());
    for other in &mut *others {
        (0..200).for_each(|nth| assert_eq!(other.line(), format!("<m0> line {nth}\n")));
    }
    let burst = (calls(pid, &log) - start) as f64 / (200.0 * others.len() as f64);
    eprintln!(
        "system calls per delivery, 10 members: {single:.2} line by line, {burst:.3} in a burst of 200"
    );
    assert!(single <= 1.5, "{single}");
    assert!(burst <= 0.2, "{burst}");
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
}

#[test]
fn a_thousand_idle_members() {
    let server = Server::start_with(Command::new(BIN).args(FREE).args(["--max-conns", "1001"]));
    let mut first = Member::join(&server, "first");
    let before = procs::anonymous_bytes(server.pid());
    let mut room = Vec::new();
    for nth in 0..1000 {
        room.push(Member::join(&server, &format!("m{nth}")));
    }
    // Everybody has been told of everybody who came later.
    eventually("the last notice", || (first.line() == "* m999 joined\n").then_some(()));
    for (nth, member) in room.iter_mut().enumerate() {
        (nth + 1..1000).for_each(|other| assert_eq!(member.line(), format!("* m{other} joined\n")));
    }
    let each = (procs::anonymous_bytes(server.pid()) - before) / 1000;
    let (start, cpu) = (Instant::now(), procs::cpu_ns(server.pid()));
    std::thread::sleep(Duration::from_secs(1)); // the measure: CPU time over this long
    let share = (procs::cpu_ns(server.pid()) - cpu) as f64 / start.elapsed().as_nanos() as f64;
    eprintln!("1000 idle members: {each} bytes each, {:.3} % of a CPU", share * 100.0);
    assert!(each <= 10 * 1024, "{each} bytes for a member");
    assert!(share < 0.01, "{:.1} % of a CPU for idle members", share * 100.0);
}

/// The steps of the loop, and of whom.
fn steps(trace: &Path) -> Vec<(String, u64)> {
    let text = fs::read_to_string(trace).unwrap();
    let step = |line: &str| {
        let step: serde_json::Value = serde_json::from_str(line).unwrap();
        (step["step"].as_str().unwrap().to_owned(), step["task"].as_u64().unwrap_or(0))
    };
    text.lines().map(step).collect()
}

/// The server with its steps in a file.
fn traced(trace: &Path, more: &[&str]) -> Server {
    let mut command = Command::new("sh");
    let script = format!("exec \"$0\" \"$@\" --trace 3 3>'{}'", trace.display());
    Server::start_with(command.args(["-c", &script, BIN]).args(FREE).args(more))
}

#[test]
fn the_steps_of_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("steps");
    let mut server = traced(&trace, &["--slow-motion", "1"]);
    let mut room = members(&server, 2);
    let [sender, reader] = &mut room[..] else { unreachable!() };
    sender.send("hello\n");
    assert_eq!(reader.line(), "<m0> hello\n");
    server.stop().unwrap();
    let steps = steps(&trace);
    // The walk that src/rt.rs tells of: parked, asleep, woken, polled.
    let (_, task) = steps.iter().find(|(step, _)| step == "park").unwrap().clone();
    let walk = ["park", "pending", "wake", "poll"];
    let mut of_task =
        steps.iter().filter(|(step, of)| *of == task && walk.contains(&step.as_str()));
    assert_eq!(of_task.find(|(step, _)| step == "park").map(|(_, of)| *of), Some(task));
    let rest: Vec<&str> = of_task.take(3).map(|(step, _)| step.as_str()).collect();
    assert_eq!(rest, ["pending", "wake", "poll"]);
    assert!(steps.iter().any(|(step, _)| step == "sleep"), "the loop never slept");
    let count = |name: &str| steps.iter().filter(|(step, _)| step == name).count();
    assert_eq!(count("poll"), count("pending") + count("done"));
}

#[test]
fn one_who_never_stops_talking_does_not_stop_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("steps");
    let mut server = traced(&trace, &[]);
    let mut room = members(&server, 3);
    let line = "x".repeat(900) + "\n";
    // All of it is in the socket before the server looks: its reads do not find EAGAIN for a long time.
    server.signal(Signal::SIGSTOP);
    room[0].send(line.repeat(150));
    server.signal(Signal::SIGCONT);
    for reader in &mut room[1..] {
        (0..150).for_each(|_| assert_eq!(reader.line().len(), "<m0> ".len() + line.len()));
    }
    server.stop().unwrap();
    let steps = steps(&trace);
    let talker = steps.iter().find(|(step, _)| step == "yield").expect("its task never yields").1;
    // Between two turns of the talker, the writers of the two others have theirs.
    let turns: Vec<usize> =
        (0..steps.len()).filter(|at| steps[*at] == ("poll".to_owned(), talker)).collect();
    let others = |from: usize, to: usize| -> BTreeSet<u64> {
        steps[from..to]
            .iter()
            .filter(|(step, of)| step == "poll" && *of != talker)
            .map(|(_, of)| *of)
            .collect()
    };
    let shared = turns.windows(2).filter(|turn| others(turn[0], turn[1]).len() >= 2).count();
    assert!(shared >= 30, "in {shared} of {} turns", turns.len());
}

/// Lets a member that does not read fill its socket, and says whether two others can still talk.
fn room_with_a_dead_reader(server: &Server, patience: Duration) -> bool {
    let mut room = members(server, 2);
    // The room goes by the nicks: this one comes first.
    let mut dead = Peer::connect_small_window(server.addr);
    dead.send("a-dead-one\n");
    room.iter_mut().for_each(|member| assert_eq!(member.line(), "* a-dead-one joined\n"));
    let [talker, other] = &mut room[..] else { unreachable!() };
    // More than socket buffers hold.
    let flood = ("x".repeat(1000) + "\n").repeat(8000);
    let mut talks = talker.stream.get_ref().try_clone().unwrap();
    let flood = std::thread::spawn(move || drop(talks.write_all(flood.as_bytes())));
    // Until the flood is over, or the room stands still.
    while other.line_within(Duration::from_secs(1)).is_some() {}
    Member::join(server, "late").send("one more line\n");
    let end = Instant::now() + patience;
    let mut outcome = false;
    while !outcome && Instant::now() < end {
        outcome = other
            .line_within(Duration::from_secs(1))
            .is_some_and(|line| line == "<late> one more line\n");
    }
    talker.stream.get_ref().shutdown(std::net::Shutdown::Both).unwrap();
    flood.join().unwrap();
    outcome
}

#[test]
fn a_reader_that_stopped_freezes_the_naive_room_and_not_this_one() {
    let mut naive = Command::new(NAIVE);
    assert!(
        !room_with_a_dead_reader(&Server::start_with(naive.args(FREE)), Duration::from_secs(2)),
        "the naive room goes on"
    );
    let mut ours = Command::new(BIN);
    assert!(
        room_with_a_dead_reader(&Server::start_with(ours.args(FREE)), Duration::from_secs(20)),
        "the room stands still"
    );
}

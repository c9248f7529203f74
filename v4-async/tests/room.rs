//! What this version promises beyond the chats' suite: its cost in system calls and memory,
//! fairness between tasks, a loop that can be watched, and a room that never waits for a reader.

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
/// No rate limit.
const FREE: [&str; 6] = ["-p", "0", "--rate", "1000000", "--burst", "1000000"];

/// A member of the room.
struct Member {
    stream: BufReader<TcpStream>,
}

impl Member {
    /// A connection, without a nick.
    fn connect(server: &Server) -> Member {
        let stream = TcpStream::connect(server.addr).unwrap();
        stream.set_nodelay(true).unwrap();
        Member { stream: BufReader::new(stream) }
    }

    fn join(server: &Server, nick: &str) -> Member {
        let mut member = Member::connect(server);
        assert!(member.line().starts_with("* your nick?"), "no greeting");
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

    /// The next line, or None after this time.
    fn line_within(&mut self, timeout: Duration) -> Option<String> {
        self.stream.get_ref().set_read_timeout(Some(timeout)).unwrap();
        let mut line = String::new();
        self.stream.read_line(&mut line).ok()?;
        Some(line)
    }
}

/// Members who have all read that the others joined.
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

/// How many system calls the server has completed, when it sleeps.
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
    eprintln!("system calls per delivery: {single:.2} line by line, {burst:.3} in a burst of 200");
    assert!(single <= 1.3, "{single}");
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
    // Each member has read that the later ones joined.
    eventually("the last notice", || (first.line() == "* m999 joined\n").then_some(()));
    for (nth, member) in room.iter_mut().enumerate() {
        (nth + 1..1000).for_each(|other| assert_eq!(member.line(), format!("* m{other} joined\n")));
    }
    let each = (procs::anonymous_bytes(server.pid()) - before) / 1000;
    let (start, cpu) = (Instant::now(), procs::cpu_ns(server.pid()));
    std::thread::sleep(Duration::from_secs(1)); // CPU time is measured over this time
    let share = (procs::cpu_ns(server.pid()) - cpu) as f64 / start.elapsed().as_nanos() as f64;
    eprintln!("1000 idle members: {each} bytes each, {:.3} % of a CPU", share * 100.0);
    assert!(each <= 10 * 1024, "{each} bytes for a member");
    assert!(share < 0.01, "{:.1} % of a CPU for idle members", share * 100.0);
}

/// The steps of the loop, each with its task.
fn steps(trace: &Path) -> Vec<(String, u64)> {
    let text = fs::read_to_string(trace).unwrap();
    let step = |line: &str| {
        let step: serde_json::Value = serde_json::from_str(line).unwrap();
        (step["step"].as_str().unwrap().to_owned(), step["task"].as_u64().unwrap_or(0))
    };
    text.lines().map(step).collect()
}

/// The server, which writes its steps to a file.
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
    // The round trip that src/rt.rs describes.
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
fn sender_that_never_pauses_does_not_stop_the_other_tasks() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("steps");
    let mut server = traced(&trace, &[]);
    let mut room = members(&server, 3);
    let line = "x".repeat(900) + "\n";
    // All bytes are in the socket before the server reads: many reads do not fail with EAGAIN.
    server.signal(Signal::SIGSTOP);
    room[0].send(line.repeat(150));
    server.signal(Signal::SIGCONT);
    for reader in &mut room[1..] {
        (0..150).for_each(|_| assert_eq!(reader.line().len(), "<m0> ".len() + line.len()));
    }
    server.stop().unwrap();
    let steps = steps(&trace);
    let sender = steps.iter().find(|(step, _)| step == "yield").expect("its task never yields").1;
    // Between two polls of this task, the writer tasks of the two others are polled.
    let polls: Vec<usize> =
        (0..steps.len()).filter(|at| steps[*at] == ("poll".to_owned(), sender)).collect();
    let others = |from: usize, to: usize| -> BTreeSet<u64> {
        steps[from..to]
            .iter()
            .filter(|(step, of)| step == "poll" && *of != sender)
            .map(|(_, of)| *of)
            .collect()
    };
    let shared = polls.windows(2).filter(|pair| others(pair[0], pair[1]).len() >= 2).count();
    assert!(shared >= 30, "in {shared} of {} polls", polls.len());
}

/// One member does not read, and another one sends more than socket buffers hold. True if two other
/// members can still talk. `join`: how a member joins.
fn room_goes_on(server: &Server, join: fn(&Server, &str) -> Member) -> bool {
    let mut dead = Peer::connect_small_window(server.addr);
    dead.send("dead\n");
    let (mut flooder, mut listener) = (join(server, "flooder"), join(server, "listener"));
    // They are all in the room when the listener reads this.
    eventually("the first line", || {
        flooder.send("first\n");
        let line = listener.line_within(Duration::from_millis(200));
        line.is_some_and(|line| line.ends_with("first\n")).then_some(())
    });
    let flood = ("x".repeat(1000) + "\n").repeat(8000);
    let mut conn = flooder.stream.get_ref().try_clone().unwrap();
    let flood = std::thread::spawn(move || drop(conn.write_all(flood.as_bytes())));
    // Until the flood is over, or the room stands still.
    while listener.line_within(Duration::from_secs(1)).is_some() {}
    join(server, "late").send("one more line\n");
    let mut goes_on = false;
    while let Some(line) = listener.line_within(Duration::from_secs(2)) {
        goes_on |= line.ends_with("one more line\n");
    }
    flooder.stream.get_ref().shutdown(std::net::Shutdown::Both).unwrap();
    flood.join().unwrap();
    goes_on
}

#[test]
fn awaiting_each_receiver_freezes_the_room_when_one_does_not_read() {
    let naive = Server::start(NAIVE, &[]);
    assert!(!room_goes_on(&naive, |server, _| Member::connect(server)), "the naive room goes on");
}

#[test]
fn queue_and_writer_task_for_each_member_keep_the_room_going() {
    // With this queue no member is slow, except the one that does not read.
    let server = Server::start_with(Command::new(BIN).args(FREE).args(["--outbox", "67108864"]));
    assert!(room_goes_on(&server, Member::join), "the room stands still");
}

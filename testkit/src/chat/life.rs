//! The life of a chat server: start, restart with its history, lack of descriptors, dead output, stop.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::commands::history;
use super::{CHAT, FAST, LOG, LOGGED, Member, Room, Row, Subject};
use crate::oracle::{self, Baseline};
use crate::peer::{End, Peer};
use crate::procs;
use crate::server::{Server, eventually};

pub const ROWS: &[Row] = &[
    ("restart_keeps_history", restart),
    ("restart_after_a_torn_line", torn_line),
    ("log_is_off_without_its_option", log_is_off),
    ("stop_says_that_it_goes_down", |s| {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            stopped_by(s, signal);
        }
    }),
    ("stop_in_spite_of_a_member_that_does_not_read", |s| {
        let mut room = s.start(&FAST);
        let _slow = stalled_member(&room);
        let mut alice = room.join("alice");
        alice.sync();
        let start = Instant::now();
        room.server.stop().unwrap();
        assert!(start.elapsed() < Duration::from_secs(6), "it waited for one who does not read");
        let (lines, end) = alice.rest();
        assert_eq!((lines.last().map(String::as_str), end), (Some("* server is going down"), End::Eof), "{lines:?}");
    }),
    ("stop_by_a_second_signal_is_now", |s| {
        // One member does not read its last words, and has a minute to do so.
        let mut room = s.start(&[&FAST[..], &["--grace", "60000", "--write-timeout", "60000"]].concat());
        let _slow = stalled_member(&room);
        room.server.signal(Signal::SIGTERM);
        eventually("the first signal is taken", || {
            let waiting = |key| procs::signal_mask(room.server.pid(), key);
            (waiting("SigPnd") | waiting("ShdPnd") == 0).then_some(())
        });
        // It may be gone already, where the policy has put that member out.
        let _ = kill(Pid::from_raw(room.server.pid()), Signal::SIGTERM);
        assert_eq!(room.server.wait().code(), Some(0), "{}", room.server.log());
        assert_eq!(room.server.family(), []);
    }),
    ("stop_by_ctrl_c_reaches_the_whole_group", |s| {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Server::start_with(s.command(dir.path()).args(["-p", "0"]).process_group(0));
        let mut alice = Member::join(server.addr, "alice");
        alice.sync();
        kill(Pid::from_raw(-server.pid()), Signal::SIGINT).unwrap();
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
        assert_eq!(server.family(), []);
        assert_eq!(alice.rest(), (vec!["* server is going down".to_owned()], End::Eof));
    }),
    ("stop_at_any_moment", stop_at_any_moment),
    ("kill_9_leaves_nobody", |s| {
        let mut room = s.start(&[]);
        let members = room.gather(["alice", "bob", "carol"]);
        room.server.signal(Signal::SIGKILL);
        room.server.wait();
        eventually("the family is gone", || room.server.family().iter().all(|p| p.state == 'Z').then_some(()));
        eventually("the port is refused", || Peer::try_connect(room.server.addr).is_err().then_some(()));
        for mut member in members {
            assert_ne!(member.rest().1, End::Silence);
        }
    }),
    ("out_of_descriptors", out_of_descriptors),
    ("start_errors_are_one_line", start_errors),
    ("dead_output_costs_lines_only", dead_output),
    ("storm_of_signals", |s| {
        s.abused(&FAST, |room| {
            let [mut alice, mut bob] = room.gather(["alice", "bob"]);
            for i in 0..200 {
                for signal in [Signal::SIGWINCH, Signal::SIGCHLD, Signal::SIGCONT, Signal::SIGURG] {
                    room.server.signal(signal);
                }
                bob.say(&format!("line {i}"));
                alice.expect(&format!("<bob> line {i}"));
            }
        })
    }),
    ("keepalive_finds_a_cut_cable", |s| {
        s.abused(&[], |room| {
            let [alice] = room.gather(["alice"]);
            let theirs = procs::borrow_connection(&room.server, &alice.peer);
            assert!(theirs.keepalive().unwrap(), "SO_KEEPALIVE");
            let first = theirs.tcp_keepalive_time().unwrap();
            assert!(first <= Duration::from_secs(60), "TCP_KEEPIDLE {first:?}");
            let patience = theirs.tcp_user_timeout().unwrap();
            assert!(patience.is_some_and(|it| it <= Duration::from_secs(30)), "TCP_USER_TIMEOUT {patience:?}");
        })
    }),
];

/// A member with more on its way to it than the kernel takes.
fn stalled_member(room: &Room) -> Member {
    let mut slow = Member::connect_small_window(room.server.addr);
    slow.say("slow");
    assert!(slow.line().starts_with("* welcome"));
    let [mut speaker, mut reader] = room.gather(["speaker", "reader"]);
    // As much as the largest send buffer (tcp_wmem) and the smallest receive buffer hold, and a little more, but less than
    // an outbox on top of that.
    let mut heard = 0;
    while heard < 4 << 20 {
        speaker.send(format!("{}\n", "x".repeat(1000)).repeat(20));
        for _ in 0..20 {
            let line = reader.line();
            heard += line.len();
            if line.starts_with("* slow left") {
                return slow;
            }
        }
    }
    slow
}

fn restart(subject: &Subject) {
    let room = subject.start(&LOGGED);
    let [mut alice, mut bob] = room.gather(["alice", "bob"]);
    for line in ["one", "\x1b[2J", "trois é"] {
        alice.say(line);
        bob.line();
    }
    let dir = room.stop();
    let room = subject.start_in(dir, &LOGGED);
    let mut carol = room.join("carol");
    carol.sync();
    assert_eq!(history(&mut carol, "/history"), ["<alice> one", r"<alice> \x1b[2J", "<alice> trois é"]);
    carol.say("four");
    carol.sync();
    let room = subject.start_in(room.stop(), &LOGGED);
    let mut dave = room.join("dave");
    dave.sync();
    assert_eq!(history(&mut dave, "/history 2"), ["<alice> trois é", "<carol> four"]);
    room.stop();
}

/// A server writes into the current folder only if its user asks for that, and then it says so. The lesson of v0-processes
/// is its log, so v0 has one by default.
fn log_is_off(subject: &Subject) {
    let has_default = subject.example.name == "v0-processes";
    for (args, file) in [(&[][..], LOG), (&["--log", "other.txt"], "other.txt")] {
        let room = subject.start(args);
        let [mut alice, mut bob] = room.gather(["alice", "bob"]);
        bob.say("hi");
        alice.expect("<bob> hi");
        bob.sync();
        let mut server = room.server;
        server.stop().unwrap_or_else(|fault| panic!("{fault}"));
        let is_on = has_default || !args.is_empty();
        let text = std::fs::read_to_string(room.dir.path().join(file)).unwrap_or_default();
        assert_eq!(text.contains("<bob> hi"), is_on, "{args:?}: {text:?}");
        let told: Vec<String> =
            server.log().lines().filter(|line| line.contains("chat log")).map(str::to_owned).collect();
        let names_file = told.len() == 1 && told[0].contains(file);
        assert!(if is_on { names_file } else { told.is_empty() }, "{args:?}: {told:?}");
        let files = std::fs::read_dir(room.dir.path()).unwrap().count();
        assert_eq!(files, usize::from(is_on), "{args:?}: files in the folder");
    }
}

/// kill -9 in the middle of a write leaves half a line at the end of the log: it costs that line and no other.
fn torn_line(subject: &Subject) {
    let mut room = subject.start(&LOGGED);
    let [mut alice, mut bob] = room.gather(["alice", "bob"]);
    for line in ["one", "two"] {
        alice.say(line);
        bob.line();
    }
    eventually("it is in the log", || room.log_file().contains("<alice> two").then_some(()));
    room.server.signal(Signal::SIGKILL);
    room.server.wait();
    eventually("the family is gone", || room.server.family().iter().all(|p| p.state == 'Z').then_some(()));
    let torn = room.log_file().lines().last().unwrap_or_default().replace("two", "torn");
    let mut log = OpenOptions::new().append(true).open(room.path().join(LOG)).unwrap();
    log.write_all(&torn.as_bytes()[..torn.len() - 2]).unwrap();
    let Room { server, dir } = room;
    drop(server);
    let room = subject.start_in(dir, &LOGGED);
    let mut carol = room.join("carol");
    carol.sync();
    assert_eq!(history(&mut carol, "/history"), ["<alice> one", "<alice> two"]);
    carol.say("three");
    carol.sync();
    let room = subject.start_in(room.stop(), &LOGGED);
    let mut dave = room.join("dave");
    dave.sync();
    assert_eq!(history(&mut dave, "/history"), ["<alice> one", "<alice> two", "<carol> three"]);
    room.stop();
}

fn stopped_by(subject: &Subject, signal: Signal) {
    let mut room = subject.start(&LOGGED);
    let mut members = room.gather(["alice", "bob", "carol"]);
    let mut nobody = room.connect();
    members[0].say("last words");
    members[0].sync();
    let start = Instant::now();
    room.server.signal(signal);
    assert_eq!(room.server.wait().code(), Some(0), "{signal}: {}", room.server.log());
    // Two seconds are promised; the rest is for a machine that has other things to do.
    assert!(start.elapsed() < Duration::from_secs(6), "{signal}: {:?}", start.elapsed());
    assert_eq!(room.server.family(), [], "{signal}");
    assert!(room.server.log().contains("CPU user "), "the CPU time is part of an orderly end: {}", room.server.log());
    let down = "* server is going down".to_owned();
    assert_eq!(members[0].rest(), (vec![down.clone()], End::Eof));
    for member in &mut members[1..] {
        assert_eq!(member.rest(), (vec!["<alice> last words".to_owned(), down.clone()], End::Eof));
    }
    assert_ne!(nobody.rest().1, End::Silence);
    assert!(Peer::try_connect(room.server.addr).is_err());
    let Room { server, dir } = room;
    drop(server);
    super::only_the_log(dir.path());
    assert!(std::fs::read_to_string(dir.path().join(LOG)).unwrap().contains("<alice> last words"));
}

/// A stop that falls between any two system calls of accept, handshake and service: no hang, no survivor, exit 0.
fn stop_at_any_moment(subject: &Subject) {
    for round in 0..30 {
        let mut room = subject.start(&FAST);
        let addr = room.server.addr;
        let clients: Vec<_> = (0..3)
            .map(|i| {
                thread::spawn(move || {
                    while let Ok(mut member) = Member::try_join(addr, &format!("member{i}")) {
                        let _ = member.try_send("hi\n/quit\n");
                        member.rest();
                    }
                })
            })
            .collect();
        thread::sleep(Duration::from_micros(round * 400)); // the stimulus: another moment each time
        room.server.stop().unwrap_or_else(|fault| panic!("round {round}: {fault}"));
        clients.into_iter().for_each(|client| client.join().unwrap());
    }
}

/// The lowest number that is free: with this limit the next accept fails with EMFILE.
fn descriptor_ceiling(pid: i32) -> u64 {
    let used = procs::descriptors(pid);
    (0..).find(|fd| !used.contains_key(fd)).unwrap_or_default() as u64
}

fn out_of_descriptors(subject: &Subject) {
    subject.abused(&FAST, |room| {
        let [mut alice, mut bob] = room.gather(["alice", "bob"]);
        let server = &room.server;
        let family = server.family();
        let limits: Vec<u64> =
            family.iter().map(|p| procs::limit_descriptors(p.pid, descriptor_ceiling(p.pid))).collect();
        // accept4 takes its descriptor number before it sleeps: whoever slept through the change still succeeds once.
        drop(room.connect());
        let mut late = room.connect();
        late.say("late");
        let second = room.connect();
        server.wait_log("Too many open files");
        let cpu = || server.family().iter().map(|p| procs::cpu_ns(p.pid)).sum::<u64>();
        let (start, before) = (Instant::now(), cpu());
        thread::sleep(Duration::from_millis(400)); // the measure: CPU time over this long
        let share = cpu().saturating_sub(before) as f64 / start.elapsed().as_nanos() as f64;
        assert!(share < 0.05, "spins without descriptors: {:.0} % of a CPU", share * 100.0);
        bob.say("still here");
        alice.until("the room goes on", |line| line == "<bob> still here");
        for (proc, limit) in family.iter().zip(limits) {
            procs::limit_descriptors(proc.pid, limit);
        }
        assert!(late.line().starts_with("* welcome"), "deaf after the relief");
        drop(second);
        alice.until("the late one", |line| line == "* late joined");
    });
}

fn start_errors(subject: &Subject) {
    let room = subject.start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let taken = room.server.addr.port().to_string();
    std::fs::create_dir(dir.path().join("a-folder")).unwrap();
    let refusals: [(&[&str], &str, &str); 5] = [
        (&["-p", &taken], "bind ", "Address already in use"),
        (&["-p", "0", "-i", "192.0.2.1", "--allow-remote"], "bind ", "Cannot assign requested address"),
        (&["-p", "0", "-i", "0.0.0.0"], "bind ", "--allow-remote"),
        (&["-p", "0", "--log", "no/such/folder/log"], "no/such/folder/log", "No such file or directory"),
        (&["-p", "0", "--log", "a-folder"], "a-folder", "directory"),
    ];
    for (args, object, reason) in refusals {
        let output = subject.command(dir.path()).args(args).env("RUST_BACKTRACE", "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        assert!(text.lines().count() == 1 && text.contains(object) && text.contains(reason), "{args:?}: {text}");
        assert!(output.stdout.is_empty(), "{args:?}: a ready line in spite of it");
    }
    for args in [&["-p", "65536"][..], &["--no-such-flag"], &["--idle-timeout", "0"], &["--rate", "0"]] {
        let output = subject.command(dir.path()).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stderr.starts_with(b"error: "), "{args:?}");
    }
    let mut alice = room.join("alice");
    alice.sync();
    room.stop();
}

/// A full disk and closed pipes cost log lines and nothing else.
fn dead_output(subject: &Subject) {
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let closed_pipe = || Stdio::from(nix::unistd::pipe().unwrap().1);
    for round in 0..2 {
        let dir = tempfile::tempdir().unwrap();
        let mut command = subject.command(dir.path());
        match round {
            0 => command.args(["-p", "0", "-v"]).stdout(full()).stderr(full()),
            _ => command.args(["-p", "0", "-v"]).stdout(closed_pipe()).stderr(closed_pipe()),
        };
        let server = Server::start_blind(&mut command);
        let base = Baseline::of_service(&server, CHAT);
        for i in 0..10 {
            let mut bad = Member::connect(server.addr);
            bad.say("no nick");
            assert!(bad.line().starts_with("! nick-bad"), "{i}");
        }
        oracle::finish(server, &base);
    }
}

//! The server and the client as a user runs them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod harness;

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use harness::{CLIENT, Running, SERVER, check, client};
use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use testkit::eventually;

#[test]
fn two_hundred_clients_with_fifty_requests_each() {
    let server = Running::start(&[]);
    let clients: Vec<(usize, Child)> = (0..200)
        .map(|i| {
            let n = i % 100 + 1;
            let args = ["--count", "50", "--json", "--deadline", "60000", "-n", &n.to_string()];
            (n, client(&server.dir, &args).spawn().unwrap())
        })
        .collect();
    let outs: Vec<_> = clients
        .into_iter()
        .map(|(n, child)| (n, std::thread::spawn(move || child.wait_with_output().unwrap())))
        .collect();
    for (n, out) in outs {
        let out = out.join().unwrap();
        assert!(out.status.success(), "{out:?}");
        check(&out, 50, n);
    }
}

#[test]
fn ten_thousand_requests_with_signals() {
    let server = Running::start(&["--signals"]);
    let out =
        server.ask(&["--signals", "--count", "10000", "-n", "3", "--json", "--deadline", "60000"]);
    assert!(out.status.success(), "{:?}", String::from_utf8_lossy(&out.stderr));
    check(&out, 10_000, 3);
}

/// poll(2) holds no lock: an answer may arrive after poll has checked the bytes, and before it
/// checks the writers or the server. strace makes every poll of the client return what it returns
/// then.
#[test]
fn an_answer_is_read_although_poll_reports_the_end() {
    if !testkit::tools::have("strace", "an_answer_is_read_although_poll_reports_the_end") {
        return;
    }
    let server = Running::start(&[]);
    // struct pollfd: fd, events, revents; for the reply FIFO and the pidfd of the server.
    let pollfd = |found: PollFlags| [&[0; 4][..], &[1, 0], &found.bits().to_ne_bytes()].concat();
    let results = [
        pollfd(PollFlags::POLLHUP),
        [pollfd(PollFlags::empty()), pollfd(PollFlags::POLLIN)].concat(),
    ];
    for result in results {
        let bytes: String = result.iter().map(|byte| format!("{byte:02x}")).collect();
        let inject = format!("inject=poll:poke_exit=@arg1={bytes}");
        let mut command = Command::new("strace");
        command
            .args(["-o", "/dev/null", "-e", "trace=poll", "-e", &inject, CLIENT, "--dir"])
            .arg(&server.dir);
        command.args(["--count", "1", "-n", "3", "--json", "--deadline", "60000"]);
        // Stopped, so that the client has to wait for the server.
        server.signal(Signal::SIGSTOP);
        let strace = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", strace.id());
        let waits = || {
            let children = fs::read_to_string(&children).ok()?;
            let wchan = format!("/proc/{}/wchan", children.split_whitespace().next()?);
            fs::read_to_string(wchan).ok().filter(|at| at.contains("poll"))
        };
        eventually("the client waits", waits);
        server.signal(Signal::SIGCONT);
        let out = strace.wait_with_output().unwrap();
        assert!(out.status.success(), "{:?}", String::from_utf8_lossy(&out.stderr));
        check(&out, 1, 3);
    }
}

#[test]
fn the_unix_socket_gives_the_same_service() {
    let server = Running::start(&[]);
    let out = server.ask(&["--unix", "--count", "20", "-n", "100", "--json"]);
    assert!(out.status.success(), "{out:?}");
    check(&out, 20, 100);
}

#[test]
fn a_number_out_of_range_gets_an_error_record() {
    let server = Running::start(&[]);
    for n in ["0", "-1", "101", "2147483647", "-2147483648"] {
        let out = server.ask(&["--count", "1", "-n", n]);
        assert_eq!(out.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&out.stderr).contains("not in 1..=100"), "{out:?}");
    }
    server.serves();
}

#[test]
fn questions_after_junk_are_answered() {
    let server = Running::start(&[]);
    let mut req = OpenOptions::new().write(true).open(server.dir.join("req")).unwrap();
    for junk in
        [vec![0xff; 1], b"FQ0".to_vec(), b"FQ01\x01".to_vec(), vec![b'F'; 37], vec![0xff; 65_536]]
    {
        req.write_all(&junk).unwrap();
        server.serves();
    }
}

#[test]
fn a_second_server_exits_with_an_error() {
    let server = Running::start(&[]);
    let out = Command::new(SERVER).arg("--dir").arg(&server.dir).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("another server"), "{out:?}");
    server.serves();
}

#[test]
fn the_next_server_takes_over_the_files_of_a_killed_one() {
    let mut server = Running::start(&[]);
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    assert!(server.dir.join("req").exists());
    let out = server.ask(&["--count", "1"]);
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    let mut again =
        Command::new(SERVER).arg("--dir").arg(&server.dir).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(again.stdout.take().unwrap()).read_line(&mut line).unwrap();
    std::mem::swap(&mut server.child, &mut again);
    server.serves();
}

#[test]
fn a_server_that_is_stopped_by_a_signal_leaves_no_file() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut server = Running::start(&[]);
        server.serves();
        server.signal(signal);
        assert!(server.child.wait().unwrap().success());
        assert!(!server.dir.exists());
    }
}

#[test]
fn the_client_ends_when_the_server_dies_and_not_at_its_deadline() {
    let mut server = Running::start(&[]);
    server.signal(Signal::SIGSTOP);
    let child = client(&server.dir, &["--count", "1", "--deadline", "600000"]).spawn().unwrap();
    eventually("the reply FIFO of the client that asks", || {
        (!server.names("reply.").is_empty()).then_some(())
    });
    server.child.kill().unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(server.child.wait().is_ok());
}

/// In a pid namespace of its own: a wrong signal cannot reach a process outside.
#[test]
fn a_pid_that_a_client_claims_is_not_signalled() {
    if !testkit::tools::have("unshare", "a_pid_that_a_client_claims_is_not_signalled") {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let pids = [0, 1, -1, -5, i32::MIN, i32::MAX, 400, 2, 3, 4, 5, 6, 7, 8];
    let mut records = Vec::new();
    let mut script =
        "sleep 60 & A=$!; sleep 60 & B=$!; $SERVER --dir run --signals --events > log & S=$!
        until [ -p run/req ]; do kill -0 $S || exit 2; done
"
        .to_owned();
    for pid in pids {
        let nonce = [pid as u8; 16];
        records.extend(fifo::record::Question { nonce, n: 3, pid }.to_bytes());
        let path = fifo::rundir::reply_path(Path::new("run"), pid, &nonce);
        script += &format!("mkfifo -m 600 {0}; sleep 60 <> {0} & \n", path.display());
    }
    std::fs::write(temp.path().join("records"), records).unwrap();
    script += "cat records > run/req; $CLIENT --dir run --signals --count 1 || exit 3
        kill -0 $A && kill -0 $B && kill -0 $S && echo alive";
    let out = Command::new("unshare")
        .args(["-Urpf", "--mount-proc", "--kill-child", "sh", "-c", &script])
        .env("SERVER", SERVER)
        .env("CLIENT", CLIENT)
        .current_dir(temp.path())
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).ends_with("alive\n"), "{out:?}");
    let log = std::fs::read_to_string(temp.path().join("log")).unwrap();
    assert_eq!(log.matches("\"event\":\"signal\"").count(), 1, "only the real client: {log}");
    assert!(log.matches("\"event\":\"no-signal\"").count() >= 8, "{log}");
}

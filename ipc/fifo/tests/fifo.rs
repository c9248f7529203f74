//! The real server and client, over real FIFOs.
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

/// poll(2) holds no lock: an answer may come after it has looked for bytes, and before it looks whether there is a
/// writer, or whether the server lives. strace makes every poll of the client say what it says then.
#[test]
fn an_answer_is_read_whatever_poll_says_of_the_end() {
    if !testkit::tools::have("strace", "an_answer_is_read_whatever_poll_says_of_the_end") {
        return;
    }
    let server = Running::start(&[]);
    // struct pollfd: descriptor, asked for, found. The reply FIFO, and the server's pidfd.
    let pollfd = |found: PollFlags| [&[0; 4][..], &[1, 0], &found.bits().to_ne_bytes()].concat();
    let lies = [
        pollfd(PollFlags::POLLHUP),
        [pollfd(PollFlags::empty()), pollfd(PollFlags::POLLIN)].concat(),
    ];
    for lie in lies {
        let bytes: String = lie.iter().map(|byte| format!("{byte:02x}")).collect();
        let inject = format!("inject=poll:poke_exit=@arg1={bytes}");
        let mut command = Command::new("strace");
        command
            .args(["-o", "/dev/null", "-e", "trace=poll", "-e", &inject, CLIENT, "--dir"])
            .arg(&server.dir);
        command.args(["--count", "1", "-n", "3", "--json", "--deadline", "60000"]);
        // Stopped, so that the client has to wait for it.
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
fn the_socket_twin_answers_too() {
    let server = Running::start(&[]);
    let out = server.ask(&["--unix", "--count", "20", "-n", "100", "--json"]);
    assert!(out.status.success(), "{out:?}");
    check(&out, 20, 100);
}

#[test]
fn a_number_out_of_range_is_refused_and_not_met_with_silence() {
    let server = Running::start(&[]);
    for n in ["0", "-1", "101", "2147483647", "-2147483648"] {
        let out = server.ask(&["--count", "1", "-n", n]);
        assert_eq!(out.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&out.stderr).contains("not in 1..=100"), "{out:?}");
    }
    server.serves();
}

#[test]
fn junk_never_desynchronizes() {
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
fn a_second_server_refuses() {
    let server = Running::start(&[]);
    let out = Command::new(SERVER).arg("--dir").arg(&server.dir).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("another server"), "{out:?}");
    server.serves();
}

#[test]
fn a_dead_server_leaves_names_that_the_next_takes_over() {
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
fn interrupted_it_leaves_no_file() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut server = Running::start(&[]);
        server.serves();
        server.signal(signal);
        assert!(server.child.wait().unwrap().success());
        assert!(!server.dir.exists());
    }
}

#[test]
fn the_servers_end_is_seen_and_not_waited_out() {
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

/// In a pid namespace of its own, so that a server that did signal them could reach nobody else.
#[test]
fn no_pid_a_client_names_is_signalled() {
    if !testkit::tools::have("unshare", "no_pid_a_client_names_is_signalled") {
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

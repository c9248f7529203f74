//! Faults of the environment: a removed directory, a stdout that no process reads, a hostile
//! server, clients that keep all connections.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod harness;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use fifo::record::QUESTION;
use harness::{CLIENT, Running, SERVER, check, client};
use nix::sys::signal::Signal;
use testkit::{eventually, procs};

#[test]
fn a_server_whose_directory_was_removed_leaves_its_successors_files() {
    let mut first = Running::start(&[]);
    fs::remove_dir_all(&first.dir).unwrap();
    let mut second = Command::new(SERVER);
    second.arg("--dir").arg(&first.dir).stdout(Stdio::piped());
    let mut second = second.spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(second.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    first.serves();

    first.signal(Signal::SIGTERM);
    assert!(first.child.wait().unwrap().success());
    first.child = second;
    first.finish();
}

#[test]
fn an_empty_or_relative_xdg_runtime_dir_counts_as_unset() {
    for value in ["", "relative"] {
        let temp = tempfile::tempdir().unwrap();
        let mut command = Command::new(SERVER);
        command.env("XDG_RUNTIME_DIR", value).env("TMPDIR", temp.path()).current_dir(temp.path());
        let mut server = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let _ = server.kill();
        let _ = server.wait();
        let expected = temp.path().join("fifo-demo-").display().to_string();
        assert!(ready.contains(&expected), "{value:?}: {ready}");
    }
}

/// A pipe of two pages is full after a few events. The clients are still answered, SIGTERM still
/// ends the server, and a late reader finds the number of lost events.
#[test]
fn events_that_nobody_reads_are_lost_and_counted() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("run");
    let mut command = Command::new(SERVER);
    command.arg("--dir").arg(&dir).arg("--events").stdout(Stdio::piped());
    let mut server = command.spawn().unwrap();
    let mut stdout = server.stdout.take().unwrap();
    // SAFETY: the descriptor is open, and the kernel changes the size of its pipe.
    let size = unsafe { libc::fcntl(stdout.as_raw_fd(), libc::F_SETPIPE_SZ, 8192) };
    assert_eq!(size, 8192);
    eventually("the server is ready", || dir.join("sock").exists().then_some(()));
    let ask = |count: &str| {
        let args = ["--count", count, "-n", "3", "--json", "--deadline", "60000"];
        let out = client(&dir, &args).output().unwrap();
        check(&out, count.parse().unwrap(), 3);
    };
    ask("200");

    let mut text = vec![0; 64 * 1024];
    let n = stdout.read(&mut text).unwrap();
    text.truncate(n);
    ask("1");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(server.id() as i32), Signal::SIGTERM)
        .unwrap();
    assert!(server.wait().unwrap().success());
    assert!(!dir.exists());

    stdout.read_to_end(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let events: Vec<serde_json::Value> =
        text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
    let lost: u64 = events.iter().filter_map(|event| event["events"].as_u64()).sum();
    assert!(lost > 0, "{text}");
    let printed = events.iter().filter(|event| event["event"] != "lost").count() as u64;
    assert_eq!(printed + lost, 2 * 201, "{text}");
}

#[test]
fn tcp_clients_that_keep_all_connections_do_not_block_unix_clients() {
    let server = Running::start(&["--tcp", "0", "--line-timeout", "3600000"]);
    let addr = server.ready.trim().split_once("and on ").unwrap().1.to_owned();
    let before = procs::descriptors(server.pid()).len();
    let silent: Vec<_> = (0..64).map(|_| TcpStream::connect(&addr).unwrap()).collect();
    let all = || procs::descriptors(server.pid()).len() == before + silent.len();
    eventually("all are accepted", || all().then_some(()));
    let args = ["--unix", "--count", "1", "--json", "-n", "4", "--deadline", "60000"];
    check(&server.ask(&args), 1, 4);
    drop(silent);
    server.finish();
}

/// A server that answers one question with these values, and returns how many bytes it has sent.
/// With an interval it sends one byte at a time.
fn hostile(
    values: &[i32],
    interval: Duration,
) -> (SocketAddr, thread::JoinHandle<usize>, Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let body: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let count = values.len() as u16;
    let (done, is_done) = channel();
    let serve = move || {
        let mut conn = listener.accept().unwrap().0;
        let mut question = [0; QUESTION];
        conn.read_exact(&mut question).unwrap();
        let head = [&b"FR01\0\0"[..], &count.to_le_bytes(), &question[8..24]].concat();
        let bytes = [head, body].concat();
        if interval.is_zero() {
            return conn.write(&bytes).unwrap();
        }
        let still_running = || is_done.recv_timeout(interval) == Err(RecvTimeoutError::Timeout);
        let sent = bytes.iter().take_while(|byte| still_running() && conn.write(&[**byte]).is_ok());
        sent.count()
    };
    (addr, thread::spawn(serve), done)
}

fn ask_hostile(values: &[i32], interval: Duration) -> (Output, usize) {
    let (addr, server, done) = hostile(values, interval);
    let args = ["--tcp", &addr.to_string(), "--count", "1", "-n", "5", "--deadline", "500"];
    let out = Command::new(CLIENT).args(args).output().unwrap();
    let _ = done.send(());
    (out, server.join().unwrap())
}

#[test]
fn an_answer_with_wrong_numbers_is_an_error() {
    for values in [&[i32::MAX; 2][..], &[], &[7; 3], &[7; 6], &[7, 7, 7, 7, 101], &[7, 7, 0, 7, 7]]
    {
        let (out, _) = ask_hostile(values, Duration::ZERO);
        let error = String::from_utf8_lossy(&out.stderr);
        assert_eq!((out.status.code(), out.stdout.len()), (Some(1), 0), "{values:?}: {out:?}");
        assert!(error.contains("the answer has"), "{values:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    let (out, _) = ask_hostile(&[7; 5], Duration::ZERO);
    assert!(out.status.success(), "{out:?}");
}

/// 44 bytes, one each 200 ms: the answer is complete long after the deadline of 500 ms.
#[test]
fn the_deadline_is_for_the_whole_answer() {
    let (out, sent) = ask_hostile(&[7; 5], Duration::from_millis(200));
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && error.contains("no answer within 500 ms"), "{out:?}");
    assert!(sent < 24, "the client waited for {sent} bytes");
}

#[test]
fn a_server_that_closes_at_once_is_one_line_of_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let close = thread::spawn(move || {
        let (mut conn, _) = listener.accept().unwrap();
        conn.read_exact(&mut [0; QUESTION]).unwrap();
    });
    let out = Command::new(CLIENT).args(["--tcp", &addr, "--count", "1"]).output().unwrap();
    close.join().unwrap();
    let error = String::from_utf8_lossy(&out.stderr);
    assert_eq!((out.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains("closed the connection"), "{error}");
}

//! The three mistakes: each check runs with the naive program, which fails it, and with the right
//! one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr
)]

mod harness;

use std::process::{Command, Output, Stdio};

use harness::{CLIENT, Running, SERVER};
use nix::sys::signal::Signal;
use testkit::{eventually, procs};

const NAIVE_PAUSE: &str = env!("CARGO_BIN_EXE_naive-pause");
const NAIVE_EOF: &str = env!("CARGO_BIN_EXE_naive-eof");
const NAIVE_SHARED: &str = env!("CARGO_BIN_EXE_naive-shared");

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until the client has made its check and sleeps in the window.
fn in_the_window(pid: i32) {
    let wchan = || std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    eventually("the client is in its window", || wchan().ends_with("sleep").then_some(()));
}

/// The server is stopped until the client is in the window, so the signal arrives in the window.
fn woken_in_the_window(client: &[&str]) -> Output {
    let server = Running::start(&["--signals"]);
    let mut command = Command::new(client[0]);
    command.args(&client[1..]).arg("--dir").arg(&server.dir).args([
        "-n",
        "3",
        "--window",
        "2000",
        "--deadline",
        "4000",
    ]);
    server.signal(Signal::SIGSTOP);
    let waits = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    in_the_window(waits.id() as i32);
    server.signal(Signal::SIGCONT);
    let out = waits.wait_with_output().unwrap();
    server.finish();
    out
}

#[test]
fn a_signal_between_the_check_and_pause_is_lost() {
    let out = woken_in_the_window(&[NAIVE_PAUSE]);
    assert!(
        out.status.code() == Some(1) && text(&out.stderr).contains("a lost wake-up"),
        "{out:?}"
    );
}

#[test]
fn a_blocked_signal_in_the_same_window_is_not_lost() {
    let out = woken_in_the_window(&[CLIENT, "--signals", "--count", "1"]);
    assert!(out.status.success() && !out.stdout.is_empty(), "{out:?}");
}

/// A blocked signal stays pending until the client reads it.
#[test]
fn the_client_blocks_and_catches_sigusr1_in_the_window() {
    let server = Running::start(&["--signals"]);
    server.signal(Signal::SIGSTOP);
    let mut waits =
        harness::client(&server.dir, &["--signals", "--count", "1", "--window", "60000"])
            .spawn()
            .unwrap();
    in_the_window(waits.id() as i32);
    let usr1 = 1 << (libc::SIGUSR1 - 1);
    let (blocked, caught) =
        ["SigBlk", "SigCgt"].map(|key| procs::signal_mask(waits.id() as i32, key) & usr1).into();
    waits.kill().unwrap();
    waits.wait().unwrap();
    assert_eq!((blocked, caught), (usr1, usr1));
}

/// Both have answered one client, which has left. While the naive one uses 300 ms of CPU, the right
/// one uses less than a twentieth of it.
#[test]
fn a_server_without_a_writer_of_its_own_uses_a_whole_cpu() {
    let (naive, right) = (Running::start_bin(NAIVE_EOF, &[]), Running::start(&[]));
    naive.serves();
    right.serves();
    let (naive_before, right_before) = (procs::cpu_ns(naive.pid()), procs::cpu_ns(right.pid()));
    let used_by_naive = eventually("300 ms of CPU, used_by_naive while idle", || {
        Some(procs::cpu_ns(naive.pid()) - naive_before).filter(|ns| *ns > 300_000_000)
    });
    let used = procs::cpu_ns(right.pid()) - right_before;
    eprintln!("idle: the naive server used {used_by_naive} ns of CPU, the right one {used}");
    assert!(used * 20 < used_by_naive, "{used} and {used_by_naive} ns");
    naive.finish();
    right.finish();
}

/// A client asks for 3 numbers while the server is stopped, and gives up. The next client asks for
/// 7. Returns what the second client gets.
fn answer_after_a_client_gave_up(server: &[&str], client: &[&str]) -> (Output, usize) {
    let server = Running::start_bin(server[0], &server[1..]);
    let ask = |n: &str, deadline: &str| {
        let mut command = Command::new(client[0]);
        command.args(&client[1..]).arg("--dir").arg(&server.dir).args([
            "-n",
            n,
            "--deadline",
            deadline,
        ]);
        command.output().unwrap()
    };
    server.signal(Signal::SIGSTOP);
    let first = ask("3", "100");
    assert!(
        first.status.code() == Some(1) && text(&first.stderr).contains("no answer within"),
        "{first:?}"
    );
    server.signal(Signal::SIGCONT);
    let second = ask("7", "20000");
    let numbers = text(&second.stdout).split(']').next().unwrap().split(',').count();
    (second, numbers)
}

#[test]
fn with_one_reply_fifo_a_client_gets_the_answer_to_another_question() {
    let (out, numbers) = answer_after_a_client_gave_up(&[NAIVE_SHARED, "--serve"], &[NAIVE_SHARED]);
    assert_eq!(numbers, 3, "{out:?}");
    assert!(text(&out.stderr).contains("another client's question"), "{out:?}");
}

#[test]
fn with_one_reply_fifo_per_client_it_gets_its_own_answer() {
    let (out, numbers) = answer_after_a_client_gave_up(&[SERVER], &[CLIENT, "--count", "1"]);
    assert!(out.status.success() && numbers == 7, "{out:?}");
}

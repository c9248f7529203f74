//! What the library does inside must not stop the service. Each case here has stopped it once.

use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use testkit::tools::{self, Injection};
use testkit::{Peer, Server, eventually, oracle};

const BIN: &str = env!("CARGO_BIN_EXE_server08-tokio");

/// The accept of the library also adds the connection to its epoll instance. This call may fail.
#[test]
fn failed_epoll_ctl_costs_one_client() {
    if !tools::have("strace", "failed_epoll_ctl_costs_one_client") {
        return;
    }
    let server = Server::start(BIN, &[]);
    let base = oracle::Baseline::of(&server);
    let injection = Injection::attach(&[server.pid()], true, "epoll_ctl:error=ENOSPC:when=1");
    assert!(server.connect().read_to_end().0.is_empty());
    server.connect().ask(10);
    drop(injection);
    server.wait_log("No space left on device");
    oracle::finish(server, &base);
}

/// The clients reset their connections in the backlog while the server is stopped.
#[test]
fn connections_that_were_reset_in_the_backlog_do_not_stop_accept() {
    for _ in 0..4 {
        let server = Server::start(BIN, &[]);
        let base = oracle::Baseline::of(&server);
        server.signal(Signal::SIGSTOP);
        eventually("the server has stopped", || {
            server.family().iter().all(|p| p.state == 'T').then_some(())
        });
        (0..20).for_each(|_| server.connect().reset());
        // The stimulus: timers and the listener are both due when the server continues.
        thread::sleep(Duration::from_millis(1200));
        server.signal(Signal::SIGCONT);
        server.connect().ask(10);
        oracle::finish(server, &base);
    }
}

/// Both signals are pending when the server continues, so the runtime may see them as one change.
#[test]
fn two_signals_that_arrive_together_are_counted_as_two() {
    let mut server = Server::start(BIN, &["--grace", "60000"]);
    let mut slow = Peer::connect_small_window(server.addr);
    slow.send("1048576\n".repeat(10));
    slow.read_exactly(1);
    server.signal(Signal::SIGSTOP);
    eventually("the server has stopped", || {
        server.family().iter().all(|p| p.state == 'T').then_some(())
    });
    server.signal(Signal::SIGTERM);
    server.signal(Signal::SIGINT); // a second SIGTERM would be merged with the first
    server.signal(Signal::SIGCONT);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}

/// tokio panics if this variable is not a number, unless the program sets the number of threads.
#[test]
fn invalid_tokio_worker_threads_in_the_environment_is_ignored() {
    let mut command = Command::new(BIN);
    let server = Server::start_with(command.args(["-p", "0"]).env("TOKIO_WORKER_THREADS", "many"));
    let base = oracle::Baseline::of(&server);
    oracle::finish(server, &base);
}

/// tokio panics if it cannot create a thread, and then waits forever for the other threads.
#[test]
fn thread_that_cannot_be_created_at_the_start_ends_it_with_one_line() {
    if !tools::have("strace", "thread_that_cannot_be_created_at_the_start_ends_it_with_one_line") {
        return;
    }
    // The first thread counts the signals. The others belong to the runtime, one per core.
    for when in 1..=1 + thread::available_parallelism().unwrap().get() {
        let inject = format!("inject=clone3:error=EAGAIN:when={when}");
        let mut command = Command::new("timeout");
        command.args([
            "20",
            "strace",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            &inject,
            BIN,
            "-p",
            "0",
        ]);
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{when}: {stderr}");
        assert!(stderr.lines().count() == 1 && stderr.starts_with("Error: "), "{when}: {stderr}");
        assert!(output.stdout.is_empty(), "{when}: a ready line");
    }
}

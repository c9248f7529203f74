//! What the library does out of sight must not stop the service: each of these has ended it once.

use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use testkit::tools::{self, Injection};
use testkit::{Peer, Server, eventually, oracle, procs};

const BIN: &str = env!("CARGO_BIN_EXE_server08-tokio");

/// The library's accept also makes an entry in its epoll, which may be full.
#[test]
fn a_full_epoll_costs_one_client() {
    if !tools::have("strace", "a_full_epoll_costs_one_client") {
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

/// Clients that are reset in the queue while nobody accepts, for longer than the listener is left without a look.
#[test]
fn resets_that_waited_long() {
    for _ in 0..4 {
        let server = Server::start(BIN, &[]);
        let base = oracle::Baseline::of(&server);
        server.signal(Signal::SIGSTOP);
        eventually("it has stopped", || server.family().iter().all(|p| p.state == 'T').then_some(()));
        (0..20).for_each(|_| server.connect().reset());
        thread::sleep(Duration::from_millis(1200)); // the stimulus: both timer and listener are due when it goes on
        server.signal(Signal::SIGCONT);
        server.connect().ask(10);
        oracle::finish(server, &base);
    }
}

/// Two signals that come as one wake-up are two signals: the second one ends the grace.
#[test]
fn no_second_signal_is_lost() {
    if !tools::have("strace", "no_second_signal_is_lost") {
        return;
    }
    let mut server = Server::start(BIN, &["--grace", "60000"]);
    let mut rude = Peer::connect_small_window(server.addr);
    rude.send("1048576\n".repeat(10));
    rude.read_exactly(1);
    // The runtime reads its self-pipe this late, so that the second signal is there before it has seen the first one.
    let injection = Injection::attach(&[server.pid()], true, "recvfrom:delay_enter=500000");
    let pending = || ["SigPnd", "ShdPnd"].iter().any(|set| procs::signal_mask(server.pid(), set) != 0);
    server.signal(Signal::SIGTERM);
    // The kernel itself makes two that are pending one.
    eventually("the first signal is delivered", || (!pending()).then_some(()));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    drop(injection);
}

/// A variable that tokio reads and panics about.
#[test]
fn the_environment_is_no_business_of_the_runtime() {
    let server = Server::start_with(Command::new(BIN).args(["-p", "0"]).env("TOKIO_WORKER_THREADS", "many"));
    let base = oracle::Baseline::of(&server);
    oracle::finish(server, &base);
}

//! A shutdown in one process with one main thread, which takes the signals: the first signal ends the call that
//! blocks, and the timer interrupts every other call until the shutdown timeout has passed. The test harness would
//! be one more thread, and could take the signals itself, so this test has its own `main`.

#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read};
use std::thread;
use std::time::Duration;

use common::cli::Limits;
use lifecycle::shutdown;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};

fn main() {
    signal_ends_the_blocked_call_now_and_the_timeout_passes_later();
}

fn signal_ends_the_blocked_call_now_and_the_timeout_passes_later() {
    inherit_wrong_signal_state();
    shutdown::on_signals(&Limits { grace: 100, ..Limits::default() }).unwrap();
    assert!(!SigSet::thread_get_mask().unwrap().contains(Signal::SIGTERM));
    let mut child = std::process::Command::new("true").spawn().unwrap();
    assert!(waitpid(Pid::from_raw(child.id() as i32), None).is_ok(), "SIGCHLD is not ignored");
    drop(child.try_wait());

    let (source, _peer) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
    let (mut unregistered, _peer) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
    shutdown::register(&source);
    assert!(!shutdown::requested() && !shutdown::timeout_has_passed());
    let mut reader = source.try_clone().unwrap();
    let reader = thread::spawn(move || reader.read(&mut [0]));
    kill(Pid::this(), Signal::SIGTERM).unwrap();
    assert_eq!(reader.join().unwrap().unwrap(), 0, "read returns end of file");
    assert!(shutdown::requested());
    // A descriptor that must not be shut down: the timer interrupts the call.
    unregistered.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    while !shutdown::timeout_has_passed() {
        let error = unregistered.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted);
    }
}

/// What a parent process may hand down through exec: SIGTERM blocked, SIGCHLD ignored.
fn inherit_wrong_signal_state() {
    SigSet::from(Signal::SIGTERM).thread_block().unwrap();
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: "ignore" runs no code.
    unsafe { sigaction(Signal::SIGCHLD, &ignore) }.unwrap();
}

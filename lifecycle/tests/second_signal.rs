//! A second signal ends the shutdown timeout. The state is global, so this file has one test.

#![allow(clippy::unwrap_used)]

use common::cli::Limits;
use lifecycle::shutdown;
use nix::sys::signal::{Signal, raise};

#[test]
fn second_signal_ends_the_shutdown_timeout() {
    shutdown::on_signals(&Limits { grace: 86_400_000, ..Limits::default() }).unwrap();
    raise(Signal::SIGINT).unwrap();
    assert!(shutdown::requested() && !shutdown::timeout_has_passed());
    raise(Signal::SIGTERM).unwrap();
    assert!(shutdown::timeout_has_passed());
}

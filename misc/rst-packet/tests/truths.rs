//! Kernel truths (c) and (n): which close sends a RST, what its receiver sees, and which end keeps
//! TIME_WAIT. Each program runs in its own network namespace, because the counters are global.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // test code

use std::process::Output;

use testkit::tools;

/// One row of rst-table.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    poll: String,
    /// OutRsts, TCPAbortOnData, TCPAbortOnClose.
    moved: [u64; 3],
    calls: Vec<String>,
}

fn run(test: &str, bin: &str, args: &[&str]) -> Option<String> {
    let Output { status, stdout, stderr } =
        tools::own_network(test)?.arg(bin).args(args).output().unwrap();
    assert_eq!(status.code(), Some(0), "{}", String::from_utf8_lossy(&stderr));
    Some(String::from_utf8(stdout).unwrap())
}

fn row(test: &str, case: &str) -> Option<Row> {
    let table = run(test, env!("CARGO_BIN_EXE_rst-table"), &[case])?;
    let mut lines = table.lines().skip_while(|line| !line.starts_with(case));
    let (row, calls) = (lines.next().unwrap(), lines.next().unwrap());
    let (poll, counters) = row[14..].split_at(23);
    let counters: Vec<u64> = counters.split_whitespace().map(|n| n.parse().unwrap()).collect();
    Some(Row {
        poll: poll.trim().to_owned(),
        moved: counters.try_into().unwrap(),
        calls: calls.trim().split(" · ").map(str::to_owned).collect(),
    })
}

fn shows(test: &str, case: &str, poll: &str, moved: [u64; 3], calls: &[&str]) {
    let Some(row) = row(test, case) else { return };
    assert_eq!(row.poll, poll, "poll");
    assert_eq!(row.calls, calls);
    assert_eq!(row.moved, moved, "OutRsts, TCPAbortOnData, TCPAbortOnClose");
}

const RESET: &str = "IN OUT ERR HUP RDHUP";

#[test]
fn truth_c_a_reset_is_reported_once_then_reads_return_0_and_writes_fail_with_epipe() {
    let calls = ["recv ECONNRESET", "recv 0", "send EPIPE", "send EPIPE"];
    shows(
        "truth_c_a_reset_is_reported_once_then_reads_return_0_and_writes_fail_with_epipe",
        "abort-read",
        RESET,
        [1, 1, 0],
        &calls,
    );
}

#[test]
fn truth_c_a_reset_is_reported_to_the_first_call() {
    let calls = ["send ECONNRESET", "send EPIPE", "recv 0"];
    shows("truth_c_a_reset_is_reported_to_the_first_call", "abort-write", RESET, [1, 1, 0], &calls);
}

#[test]
fn truth_c_after_a_fin_the_first_send_works_and_the_error_is_epipe() {
    let calls = ["recv 0", "send ok", "SO_ERROR EPIPE", "send EPIPE", "recv 0"];
    shows(
        "truth_c_after_a_fin_the_first_send_works_and_the_error_is_epipe",
        "fin",
        "IN OUT RDHUP",
        [1, 1, 0],
        &calls,
    );
}

#[test]
fn truth_c_a_close_with_unread_data_sends_a_reset_after_the_reply() {
    let calls = ["recv '413 too large'", "recv ECONNRESET", "send EPIPE"];
    shows(
        "truth_c_a_close_with_unread_data_sends_a_reset_after_the_reply",
        "unread",
        RESET,
        [1, 0, 1],
        &calls,
    );
}

#[test]
fn truth_c_a_close_after_draining_sends_no_reset() {
    let calls = ["recv '413 too large'", "recv 0"];
    shows(
        "truth_c_a_close_after_draining_sends_no_reset",
        "drained",
        "IN OUT HUP RDHUP",
        [0, 0, 0],
        &calls,
    );
}

#[test]
fn truth_c_accept_returns_a_connection_that_was_reset_in_the_queue() {
    let calls = ["accept ok", "getpeername ENOTCONN", "recv ECONNRESET", "recv 0", "send EPIPE"];
    shows(
        "truth_c_accept_returns_a_connection_that_was_reset_in_the_queue",
        "queued",
        "(the listener) IN",
        [1, 1, 0],
        &calls,
    );
}

#[test]
fn truth_c_a_413_with_unread_data_fails_the_upload_and_is_readable_on_loopback() {
    let calls = ["upload ECONNRESET", "recv '413 too large'", "recv 0"];
    let test = "truth_c_a_413_with_unread_data_fails_the_upload_and_is_readable_on_loopback";
    let Some(row) = row(test, "upload-unread") else { return };
    assert_eq!(row.calls, calls);
    // Data that arrives after the RST is answered with more RSTs, which are not counted as aborts.
    assert_eq!(row.moved[1..], [0, 1], "TCPAbortOnData, TCPAbortOnClose");
    assert!(row.moved[0] >= 1, "no reset was sent");
}

#[test]
fn truth_c_a_413_with_draining_lets_the_upload_complete() {
    let calls = ["upload ok", "recv '413 too large'", "recv 0"];
    shows(
        "truth_c_a_413_with_draining_lets_the_upload_complete",
        "upload-drain",
        "IN OUT HUP RDHUP",
        [0, 0, 0],
        &calls,
    );
}

#[test]
fn truth_n_the_end_that_closes_first_keeps_time_wait_and_both_listeners_need_reuseaddr() {
    let test =
        "truth_n_the_end_that_closes_first_keeps_time_wait_and_both_listeners_need_reuseaddr";
    let Some(text) = run(test, env!("CARGO_BIN_EXE_time-wait"), &[]) else { return };
    let words =
        |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    let lines: Vec<String> = text.lines().map(words).collect();
    assert_eq!(lines[1..4], ["the client the client", "the server the server", "RST no end"]);
    assert_eq!(lines[6..], ["0 0 EADDRINUSE", "0 1 EADDRINUSE", "1 0 EADDRINUSE", "1 1 ok"]);
}

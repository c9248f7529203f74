//! Kernel truths (c) and (n): what a reset is to the one who gets it, which closes send one, and who keeps TIME_WAIT.
//! Each program runs in a network of its own, whose counters nobody else moves.
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
    let Output { status, stdout, stderr } = tools::own_network(test)?.arg(bin).args(args).output().unwrap();
    assert_eq!(status.code(), Some(0), "{}", String::from_utf8_lossy(&stderr));
    Some(String::from_utf8(stdout).unwrap())
}

fn row(test: &str, case: &str) -> Option<Row> {
    let table = run(test, env!("CARGO_BIN_EXE_rst-table"), &[case])?;
    let line = table.lines().find(|line| line.starts_with(case)).unwrap();
    let field = |from: usize, to: usize| line.chars().skip(from).take(to - from).collect::<String>().trim().to_owned();
    let number = |from: usize, to: usize| field(from, to).parse().unwrap();
    Some(Row {
        poll: field(14, 37),
        moved: [number(37, 46), number(46, 54), number(54, 63)],
        calls: field(63, 1000).split(" · ").map(str::to_owned).collect(),
    })
}

/// One cell after the other.
fn shows(test: &str, case: &str, poll: &str, moved: [u64; 3], calls: &[&str]) {
    let Some(row) = row(test, case) else { return };
    assert_eq!(row.poll, poll, "poll");
    assert_eq!(row.calls, calls);
    assert_eq!(row.moved, moved, "OutRsts, TCPAbortOnData, TCPAbortOnClose");
}

const RESET: &str = "IN OUT ERR HUP RDHUP";

#[test]
fn truth_c_a_reset_is_reported_once_then_reads_end_and_writes_say_epipe() {
    let calls = ["recv ECONNRESET", "recv 0", "send EPIPE", "send EPIPE"];
    shows(
        "truth_c_a_reset_is_reported_once_then_reads_end_and_writes_say_epipe",
        "abort-read",
        RESET,
        [1, 1, 0],
        &calls,
    );
}

#[test]
fn truth_c_a_reset_is_reported_to_whichever_call_comes_first() {
    let calls = ["send ECONNRESET", "send EPIPE", "recv 0"];
    shows("truth_c_a_reset_is_reported_to_whichever_call_comes_first", "abort-write", RESET, [1, 1, 0], &calls);
}

#[test]
fn truth_c_after_a_fin_the_first_send_works_and_the_error_is_epipe() {
    let calls = ["recv 0", "send ok", "SO_ERROR EPIPE", "send EPIPE", "recv 0"];
    shows("truth_c_after_a_fin_the_first_send_works_and_the_error_is_epipe", "fin", "IN OUT RDHUP", [1, 1, 0], &calls);
}

#[test]
fn truth_c_a_close_with_unread_data_is_a_reset_behind_the_reply() {
    let calls = ["recv '413 too large'", "recv ECONNRESET", "send EPIPE"];
    shows("truth_c_a_close_with_unread_data_is_a_reset_behind_the_reply", "unread", RESET, [1, 0, 1], &calls);
}

#[test]
fn truth_c_a_close_after_draining_is_no_reset() {
    let calls = ["recv '413 too large'", "recv 0"];
    shows("truth_c_a_close_after_draining_is_no_reset", "drained", "IN OUT HUP RDHUP", [0, 0, 0], &calls);
}

#[test]
fn truth_c_accept_hands_out_a_connection_that_was_reset_in_the_queue() {
    let calls = ["accept ok", "getpeername ENOTCONN", "recv ECONNRESET", "recv 0", "send EPIPE"];
    shows(
        "truth_c_accept_hands_out_a_connection_that_was_reset_in_the_queue",
        "queued",
        "(the listener) IN",
        [1, 1, 0],
        &calls,
    );
}

#[test]
fn truth_c_a_rude_413_fails_the_upload_and_stays_readable_on_loopback() {
    let calls = ["upload ECONNRESET", "recv '413 too large'", "recv 0"];
    let test = "truth_c_a_rude_413_fails_the_upload_and_stays_readable_on_loopback";
    let Some(row) = row(test, "upload-rude") else { return };
    assert_eq!(row.calls, calls);
    // What was on its way behind the reset is answered with resets that nobody counts as aborts.
    assert_eq!(row.moved[1..], [0, 1], "TCPAbortOnData, TCPAbortOnClose");
    assert!(row.moved[0] >= 1, "no reset was sent");
}

#[test]
fn truth_c_a_polite_413_lets_the_upload_end() {
    let calls = ["upload ok", "recv '413 too large'", "recv 0"];
    shows("truth_c_a_polite_413_lets_the_upload_end", "upload-polite", "IN OUT HUP RDHUP", [0, 0, 0], &calls);
}

#[test]
fn truth_n_time_wait_is_kept_by_who_closes_first_and_the_two_by_two_table_of_reuseaddr() {
    let test = "truth_n_time_wait_is_kept_by_who_closes_first_and_the_two_by_two_table_of_reuseaddr";
    let Some(text) = run(test, env!("CARGO_BIN_EXE_time-wait"), &[]) else { return };
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    let lines: Vec<String> = text.lines().map(words).collect();
    assert_eq!(lines[1..4], ["the client the client", "the server the server", "a reset nobody"]);
    assert_eq!(lines[6..], ["0 0 EADDRINUSE", "0 1 EADDRINUSE", "1 0 EADDRINUSE", "1 1 ok"]);
}

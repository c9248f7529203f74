//! Kernel truth (f): Nagle and the delayed ACK, and how to avoid the wait. The delays are constants
//! of the kernel: at least 40 ms, and 200 ms. The tests compare medians, which a busy machine
//! changes little.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // test code

use std::process::{Command, Output, Stdio};

use testkit::tools;

const BIN: &str = env!("CARGO_BIN_EXE_tcp-cork");

/// One row: first and median in milliseconds, segments per reply.
#[derive(Debug)]
struct Row {
    first: f64,
    median: f64,
    segments: f64,
}

fn rows(text: &str) -> Vec<Row> {
    let row = |line: &str| {
        let numbers = line.split_whitespace().skip(1).map(|n| n.parse().unwrap());
        let n: Vec<f64> = numbers.collect();
        Row { first: n[0], median: n[1], segments: n[2] }
    };
    text.lines().skip(1).map(row).collect()
}

fn measure(ways: &[&str]) -> Vec<Row> {
    let output = Command::new(BIN).args(["-n", "20"]).args(ways).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let rows = rows(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(rows.len(), ways.len(), "{rows:?}");
    rows
}

/// The reference for the slow ways: one segment, sent at once.
fn writev_median() -> f64 {
    measure(&["writev"])[0].median
}

/// 40 ms, or a little more if the tick of the kernel is long.
fn is_a_delayed_ack(median: f64) -> bool {
    (30.0..150.0).contains(&median) && median > 5.0 * writev_median()
}

fn is_200_ms(ms: f64) -> bool {
    (180.0..1000.0).contains(&ms)
}

#[test]
fn truth_f_the_second_small_write_waits_for_the_delayed_ack() {
    let row = &measure(&["two-writes"])[0];
    assert!(is_a_delayed_ack(row.median), "{row:?}");
    assert_eq!(row.segments, 2.0);
}

/// The receiver starts in quick-ACK mode, so a test with one request does not find the delay.
#[test]
fn truth_f_the_first_request_does_not_wait() {
    let fastest = (0..5).map(|_| measure(&["two-writes"])[0].first).fold(f64::INFINITY, f64::min);
    assert!(fastest < 20.0, "{fastest} ms");
}

#[test]
fn truth_f_nodelay_does_not_wait_and_sends_two_segments() {
    let row = &measure(&["nodelay"])[0];
    assert!(row.median < 20.0, "{row:?}");
    assert_eq!(row.segments, 2.0);
}

#[test]
fn truth_f_writev_msg_more_and_cork_do_not_wait_and_send_one_segment() {
    for row in measure(&["writev", "msg-more", "cork"]) {
        assert!(row.median < 20.0, "{row:?}");
        assert_eq!(row.segments, 1.0, "{row:?}");
    }
}

#[test]
fn truth_f_a_forgotten_uncork_costs_200_ms() {
    let row = &measure(&["cork-forgotten"])[0];
    assert!(is_200_ms(row.first) && is_200_ms(row.median), "{row:?}");
    assert_eq!(row.segments, 1.0);
}

/// The first body waits for 200 ms; later bodies are sent with the ACK of the header.
#[test]
fn truth_f_a_forgotten_msg_more_costs_200_ms_and_then_the_delayed_ack() {
    let row = &measure(&["more-forgotten"])[0];
    assert!(is_200_ms(row.first), "{row:?}");
    assert!(is_a_delayed_ack(row.median), "{row:?}");
    assert!(row.segments > 1.5, "{row:?}");
}

#[test]
fn truth_f_the_kernel_counts_the_delayed_acks() {
    let test = "truth_f_the_kernel_counts_the_delayed_acks";
    for (way, wanted) in [("two-writes", 15..25), ("writev", 0..5)] {
        let Some(mut own) = tools::own_network(test) else { return };
        own.args(["sh", "-c", "\"$0\" -n 20 \"$1\" && cat /proc/net/netstat", BIN, way]);
        let Output { status, stdout, stderr } = own.output().unwrap();
        assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
        let text = String::from_utf8(stdout).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("TcpExt:")).collect();
        let position = lines[0].split_whitespace().position(|name| name == "DelayedACKs").unwrap();
        let delayed: u32 = lines[1].split_whitespace().nth(position).unwrap().parse().unwrap();
        assert!(wanted.contains(&delayed), "{way}: {delayed} delayed ACKs for 20 replies");
    }
}

#[test]
fn invalid_arguments_are_usage_errors_and_a_closed_stdout_is_no_panic() {
    for args in [&["-n", "2"][..], &["-n", "201"], &["nagle"], &["-n", "x"]] {
        let output = Command::new(BIN).args(args).stdin(Stdio::null()).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{args:?}");
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(BIN).args(["writev", "--each"]).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}

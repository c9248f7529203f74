//! The demos as a user meets them: nonsense, files that are none, a kernel that says no, a stdout that is full.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)] // test code

use std::fs::{self, File};
use std::process::{Command, Output, Stdio};

use testkit::tools::have;

const BIN: &str = env!("CARGO_BIN_EXE_sendfile");

fn run(args: &[&str]) -> Output {
    Command::new(BIN).args(args).stdin(Stdio::null()).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn nonsense_is_refused_with_status_2() {
    for args in
        [&["fly"][..], &["compare", "--size", "0"], &["compare", "--rounds", "0"], &["compare", "--only", "tee"]]
    {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn what_cannot_be_sent_is_one_line_and_status_1() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    fs::write(&empty, "").unwrap();
    for file in ["/no/such", "/etc", "/dev/zero", "/proc/self/status", empty.to_str().unwrap()] {
        let output = run(&["compare", "--file", file]);
        assert_eq!((output.status.code(), stderr(&output).lines().count()), (Some(1), 1), "{}", stderr(&output));
        assert!(stderr(&output).contains(file), "{}", stderr(&output));
    }
}

#[test]
fn a_file_of_ones_own_is_sent_all_ways() {
    let output = run(&["compare", "--rounds", "1", "--file", BIN]);
    assert!(output.status.success(), "{}", stderr(&output));
    let size = fs::metadata(BIN).unwrap().len();
    assert!(String::from_utf8_lossy(&output.stdout).starts_with(&format!("{size} bytes; rounds: 1;")));
}

/// The figures of the table are those of strace.
#[test]
fn the_counted_calls_are_made() {
    let who = "the_counted_calls_are_made";
    if !have("strace", who) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, vec![b'a'; 1 << 20]).unwrap();
    for (way, calls, counted) in
        [("sendfile", "sendfile", 1), ("splice", "splice", 32), ("read-write", "pread64,write", 32)]
    {
        let trace = folder.path().join("trace");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-P", file.to_str().unwrap(), "-P", "pipe", "-o", trace.to_str().unwrap()]);
        strace.args(["-e", &format!("trace={calls}"), BIN, "compare", "--rounds", "1", "--only", way, "--file"]);
        let output = strace.arg(&file).stdin(Stdio::null()).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let row = printed.lines().last().unwrap();
        assert_eq!(row.split_whitespace().nth(1), Some(counted.to_string().as_str()), "{printed}{}", stderr(&output));
        // Of the calls, those on the file itself: all of sendfile, and one of each pair.
        let made = fs::read_to_string(&trace).unwrap().lines().count();
        assert_eq!(made, if way == "sendfile" { 1 } else { counted / 2 }, "{way}");
    }
}

#[test]
fn where_nothing_may_be_pinned_the_rest_is_shown() {
    let who = "where_nothing_may_be_pinned_the_rest_is_shown";
    if !have("strace", who) {
        return;
    }
    let refused = |args: &[&str]| {
        let mut strace = Command::new("strace");
        strace.args(["-qq", "-o", "/dev/null", "-e", "trace=sendto", "-e", "inject=sendto:error=ENOBUFS", BIN]);
        strace.args(args).stdin(Stdio::null()).output().unwrap()
    };
    for args in [&["zerocopy"][..], &["compare", "--size", "1", "--only", "zerocopy"]] {
        let output = refused(args);
        assert_eq!((output.status.code(), stderr(&output).lines().count()), (Some(69), 1), "{}", stderr(&output));
    }
    for args in [&["overwrite"][..], &["compare", "--size", "1", "--rounds", "1"]] {
        let output = refused(args);
        assert!(output.status.success(), "{}", stderr(&output));
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(printed.contains("splice") && printed.contains("not permitted here"), "{printed}");
    }
}

#[test]
fn a_full_disk_ends_no_experiment() {
    let status = Command::new(BIN).arg("overwrite").stdout(File::create("/dev/full").unwrap()).status().unwrap();
    assert_eq!(status.code(), Some(0));
}

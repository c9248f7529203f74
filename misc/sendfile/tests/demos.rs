//! The programs as a user runs them: invalid arguments, unusable files, a missing feature, a full
//! stdout.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)] // test code

use std::fs::{self, File};
use std::process::{Command, Output, Stdio};

use testkit::tools::have;

const OVERWRITE: &str = env!("CARGO_BIN_EXE_sendfile");
const COST: &str = env!("CARGO_BIN_EXE_sendfile-cost");
const ZEROCOPY: &str = env!("CARGO_BIN_EXE_zerocopy");

fn run(args: &[&str]) -> Output {
    Command::new(COST).args(args).stdin(Stdio::null()).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn is_one_line_with_status(output: &Output, status: i32) {
    let text = stderr(output);
    assert_eq!((output.status.code(), text.lines().count()), (Some(status), 1), "{text}");
}

#[test]
fn invalid_arguments_are_rejected_with_status_2() {
    for args in [&["fly"][..], &["--size", "0"], &["--rounds", "0"], &["--only", "tee"]] {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn a_file_that_cannot_be_sent_is_one_line_and_status_1() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    fs::write(&empty, "").unwrap();
    for file in ["/no/such", "/etc", "/dev/zero", "/proc/self/status", empty.to_str().unwrap()] {
        let output = run(&["--file", file]);
        is_one_line_with_status(&output, 1);
        assert!(stderr(&output).contains(file), "{}", stderr(&output));
    }
}

#[test]
fn a_given_file_is_sent_all_ways() {
    let output = run(&["--rounds", "1", "--file", COST]);
    assert!(output.status.success(), "{}", stderr(&output));
    let start = format!("{} bytes; rounds: 1;", fs::metadata(COST).unwrap().len());
    assert!(String::from_utf8_lossy(&output.stdout).starts_with(&start));
}

/// The table shows the same numbers as strace.
#[test]
fn the_counted_calls_are_made() {
    let who = "the_counted_calls_are_made";
    if !have("strace", who) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, trace) = (folder.path().join("file"), folder.path().join("trace"));
    fs::write(&file, vec![b'a'; 1 << 20]).unwrap();
    for (way, calls, counted) in
        [("sendfile", "sendfile", 1), ("splice", "splice", 32), ("read-write", "pread64,write", 32)]
    {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-P", "pipe", "-e", &format!("trace={calls}"), "-P"]);
        strace.arg(&file).arg("-o").arg(&trace);
        strace.args([COST, "--rounds", "1", "--only", way, "--file"]).arg(&file);
        let output = strace.stdin(Stdio::null()).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let printed_count = printed.lines().last().unwrap().split_whitespace().nth(1).unwrap();
        assert_eq!(printed_count, counted.to_string(), "{printed}{}", stderr(&output));
        // strace -P shows the calls on the file: each sendfile, and one call of each pair.
        let made = fs::read_to_string(&trace).unwrap().lines().count();
        assert_eq!(made, if way == "sendfile" { 1 } else { counted / 2 }, "{way}");
    }
}

#[test]
fn without_pinned_memory_the_other_ways_are_shown() {
    let who = "without_pinned_memory_the_other_ways_are_shown";
    if !have("strace", who) {
        return;
    }
    let without = |bin: &str, args: &[&str]| {
        let mut strace = Command::new("strace");
        strace.args(["-qq", "-o", "/dev/null", "-e", "trace=sendto"]);
        strace.args(["-e", "inject=sendto:error=ENOBUFS", bin]);
        strace.args(args).stdin(Stdio::null()).output().unwrap()
    };
    for (bin, args) in [(ZEROCOPY, &[][..]), (COST, &["--size", "1", "--only", "zerocopy"])] {
        is_one_line_with_status(&without(bin, args), 69);
    }
    for (bin, args) in [(OVERWRITE, &[][..]), (COST, &["--size", "1", "--rounds", "1"])] {
        let output = without(bin, args);
        assert!(output.status.success(), "{}", stderr(&output));
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(printed.contains("splice") && printed.contains("not permitted here"), "{printed}");
    }
}

#[test]
fn a_full_disk_does_not_end_the_experiment() {
    let full = File::create("/dev/full").unwrap();
    assert_eq!(Command::new(OVERWRITE).stdout(full).status().unwrap().code(), Some(0));
}

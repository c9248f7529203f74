//! N writers of one log: lines that are lost, torn or complete, and the owner of a lock.
// Test code.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr)]

use std::fs;
use std::process::{Command, Output};

const WRITERS: u64 = 4;
const LINES: u64 = 100;
const SIZE: u64 = 120;

fn run(args: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_log-race")).args(args).output().unwrap();
    let text = String::from_utf8_lossy;
    eprintln!("{args:?}\n{}{}", text(&output.stdout), text(&output.stderr));
    output
}

/// Complete lines, broken lines, missing bytes.
fn race(mode: &str) -> (u64, u64, u64) {
    let numbers = [WRITERS, LINES, SIZE].map(|n| n.to_string());
    let [writers, lines, size] = &numbers;
    let output = run(&["-n", writers, "--lines", lines, "--size", size, "--mode", mode]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let row = text.lines().last().unwrap();
    let columns: Vec<u64> = row.rsplit(' ').filter_map(|word| word.parse().ok()).collect();
    // From the right: lines/s, missing, broken, whole.
    let (missing, broken, whole) = (columns[1], columns[2], columns[3]);
    assert_eq!(whole + broken, WRITERS * LINES);
    (whole, broken, missing)
}

fn is_whole(mode: &str) {
    assert_eq!(race(mode), (WRITERS * LINES, 0, 0), "{mode}");
}

/// No byte is missing, but lines are broken.
fn is_torn(mode: &str) {
    let (_, broken, missing) = race(mode);
    assert!(broken > 0 && missing == 0, "{mode}: {broken} broken, {missing} bytes missing");
}

#[test]
fn truth_log_seek_and_write_loses_lines() {
    let (_, broken, missing) = race("seek");
    assert!(broken > 0 && missing > 0, "{broken} broken, {missing} bytes missing");
    assert_eq!(missing % SIZE, 0, "complete lines are lost: another writer has overwritten them");
}

#[test]
fn truth_log_append_keeps_each_write_whole() {
    is_whole("append");
}

#[test]
fn truth_log_append_tears_a_line_of_two_writes() {
    is_torn("append-twice");
}

#[test]
fn truth_log_flock_keeps_two_writes_together() {
    is_whole("flock");
}

#[test]
fn truth_log_flock_on_an_inherited_descriptor_excludes_no_process() {
    is_torn("flock-inherited");
}

#[test]
fn truth_log_ofd_lock_keeps_two_writes_together() {
    is_whole("ofd");
}

#[test]
fn truth_log_ofd_lock_survives_the_close_of_another_descriptor() {
    is_whole("ofd-other-closed");
}

#[test]
fn truth_log_posix_lock_keeps_two_writes_together() {
    is_whole("posix");
}

#[test]
fn truth_log_posix_lock_is_lost_when_another_descriptor_is_closed() {
    is_torn("posix-other-closed");
}

#[test]
fn truth_log_posix_locks_belong_to_the_process_and_the_others_to_the_open_file_description() {
    let output = run(&["--lines", "1"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let row = |start: &str| {
        let line = text.lines().find(|line| line.starts_with(start)).unwrap();
        line[start.len()..].split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(row("the lock ..."), "POSIX OFD flock");
    assert_eq!(row("excludes another process"), "yes yes yes");
    assert_eq!(row("excludes a second open() of the same process"), "no yes yes");
    assert_eq!(row("is shared with a forked child"), "no yes yes");
    assert_eq!(row("is lost when another descriptor is closed"), "yes no no");
    assert_eq!(row("is kept by a child of its killed owner"), "no yes yes");
}

#[test]
fn a_kept_log_is_a_new_file_and_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let args = ["-n", "2", "--lines", "3", "--mode", "append", "--keep", path.to_str().unwrap()];
    assert!(run(&args).status.success());
    let first = fs::read_to_string(&path).unwrap();
    assert_eq!(first.lines().count(), 6);
    let again = run(&args);
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&again.stderr).lines().count(), 1);
    assert_eq!(fs::read_to_string(&path).unwrap(), first);
}

#[test]
fn invalid_arguments_are_a_usage_error() {
    for args in [
        &["--lines", "100000", "--size", "65536"][..],
        &["-n", "0"],
        &["--mode", "x"],
        &["--keep", "x"],
    ] {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
    }
}

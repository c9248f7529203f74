//! The programs as a user runs them: invalid arguments, missing permissions, a closed pipe.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)] // test code

use std::fs::File;
use std::process::{Command, Output, Stdio};

use testkit::tools::{have, own_network};

const BACKLOG: &str = env!("CARGO_BIN_EXE_backlog");
const SYN_RETRY: &str = env!("CARGO_BIN_EXE_syn-retry");
const BURST: &str = env!("CARGO_BIN_EXE_burst");
const ABORT: &str = env!("CARGO_BIN_EXE_abort-on-overflow");
const EMFILE: &str = env!("CARGO_BIN_EXE_emfile");

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn invalid_arguments_are_rejected_with_status_2() {
    for (bin, args) in [
        (BACKLOG, &["--backlog", "-1"][..]),
        (BACKLOG, &["--backlog", "x"]),
        (SYN_RETRY, &["--watch", "0"]),
        (BURST, &["--clients", "0"]),
        (BACKLOG, &["fly"]),
        (EMFILE, &["--mode", "nosuch"]),
        (EMFILE, &["--watch", "10001"]),
    ] {
        let output = Command::new(bin).args(args).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
    }
}

/// unshare fails in both forms; or the namespace exists but gives no capability for its loopback.
#[test]
fn a_missing_permission_is_one_line_and_status_69() {
    let who = "a_missing_permission_is_one_line_and_status_69";
    if !have("strace", who) {
        return;
    }
    for inject in ["unshare:error=EPERM", "ioctl:error=EPERM"] {
        for bin in [BACKLOG, SYN_RETRY, ABORT, BURST, EMFILE] {
            let mut strace = Command::new("strace");
            strace.args([
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                "trace=unshare,ioctl",
                "-e",
                &format!("inject={inject}"),
                bin,
            ]);
            let output = strace.stdin(Stdio::null()).output().unwrap();
            assert_eq!(output.status.code(), Some(69), "{inject}: {}", stderr(&output));
            assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
        }
    }
}

#[test]
fn too_few_descriptors_are_one_line_and_status_1() {
    let who = "too_few_descriptors_are_one_line_and_status_1";
    let (Some(mut own), true) = (own_network(who), have("prlimit", who)) else { return };
    let output =
        own.args(["prlimit", "--nofile=50", BACKLOG, "--backlog", "300"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("Too many open files"), "{}", stderr(&output));
    assert_eq!(stderr(&output).lines().count(), 1);
}

#[test]
fn a_full_disk_or_a_closed_pipe_does_not_end_the_experiment() {
    let who = "a_full_disk_or_a_closed_pipe_does_not_end_the_experiment";
    let (Some(mut full), Some(mut closed)) = (own_network(who), own_network(who)) else { return };
    let full = full.arg(BACKLOG).stdout(File::create("/dev/full").unwrap()).status().unwrap();
    assert_eq!(full.code(), Some(0));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let closed = closed.arg(EMFILE).args(["--mode", "limit"]).stdout(writer).status().unwrap();
    assert_eq!(closed.code(), Some(0));
}

//! Kernel truth (c): which call kills the process, and how it survives.
#![allow(clippy::unwrap_used, clippy::panic)] // test code

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

use testkit::procs;

const BUG: &str = env!("CARGO_BIN_EXE_sigpipe");
const FIXED: &str = env!("CARGO_BIN_EXE_sigpipe-fixed");
const SIGPIPE_BIT: u64 = 1 << (libc::SIGPIPE - 1);

fn run(bin: &str, args: &[&str]) -> Output {
    Command::new(bin).args(args).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The program prints these calls, and then SIGPIPE kills it.
fn is_killed_after(case: &str, calls: &[&str]) {
    let output = run(BUG, &[case]);
    assert_eq!(output.status.signal(), Some(libc::SIGPIPE), "{case}: {}", text(&output.stderr));
    assert_eq!(text(&output.stdout).lines().collect::<Vec<_>>(), calls, "{case}");
    assert!(output.stderr.is_empty(), "no message");
}

#[test]
fn truth_c_after_a_reset_was_read_the_first_send_raises_sigpipe() {
    is_killed_after("abort-read", &["recv ECONNRESET", "recv 0"]);
}

#[test]
fn truth_c_the_first_send_after_a_reset_gets_econnreset_and_the_next_raises_sigpipe() {
    is_killed_after("abort-write", &["send ECONNRESET"]);
}

#[test]
fn truth_c_after_a_fin_the_first_send_succeeds_and_the_second_raises_sigpipe() {
    is_killed_after("fin", &["recv 0", "send ok"]);
}

#[test]
fn truth_c_after_a_reply_and_a_reset_the_send_raises_sigpipe() {
    is_killed_after("unread", &["recv 'reply'", "recv ECONNRESET"]);
}

#[test]
fn truth_c_the_exit_status_in_the_shell_is_141() {
    let output = run("sh", &["-c", "\"$0\" > /dev/null; echo $?", BUG]);
    assert_eq!(text(&output.stdout), "141\n");
}

#[test]
fn truth_c_with_each_fix_send_returns_epipe() {
    let output = run(FIXED, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let calls = BTreeMap::from([
        ("abort-read", "recv ECONNRESET · recv 0 · send EPIPE · send EPIPE"),
        ("abort-write", "send ECONNRESET · send EPIPE · recv 0"),
        ("fin", "recv 0 · send ok · send EPIPE · recv 0"),
        ("unread", "recv 'reply' · recv ECONNRESET · send EPIPE"),
    ]);
    let table = text(&output.stdout);
    assert_eq!(table.lines().count(), 1 + 3 * calls.len(), "{table}");
    for fix in ["nosignal", "ignore", "handler"] {
        for (case, calls) in &calls {
            // With a handler: one signal per EPIPE.
            let signals = if fix == "handler" { calls.matches("EPIPE").count() } else { 0 };
            let line = format!("{fix:10}{case:12}{signals:<8}{calls}");
            assert!(table.lines().any(|shown| shown == line), "no '{line}' in\n{table}");
        }
    }
}

/// The program must undo this. Command undoes it for its children.
#[test]
fn truth_r_rust_ignores_sigpipe_and_command_resets_it_for_its_children() {
    let me = std::process::id() as i32;
    assert_eq!(procs::signal_mask(me, "SigIgn") & SIGPIPE_BIT, SIGPIPE_BIT, "this Rust program");
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    // spawn returns after the exec of the child.
    let ignored = procs::signal_mask(child.id() as i32, "SigIgn");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(ignored & SIGPIPE_BIT, 0, "its child");
}

#[test]
fn an_inherited_disposition_or_mask_changes_nothing() {
    let output = run("sh", &["-c", "trap '' PIPE; \"$0\" fin > /dev/null; echo $?", BUG]);
    assert_eq!(text(&output.stdout), "141\n");
    let output = run("env", &["--block-signal=PIPE", BUG, "fin"]);
    assert_eq!(output.status.signal(), Some(libc::SIGPIPE), "{}", text(&output.stderr));
}

#[test]
fn invalid_arguments_are_usage_errors_and_a_closed_stdout_is_no_panic() {
    for (bin, args) in [(BUG, &["softly"][..]), (FIXED, &["--fix", "none"]), (BUG, &["fin", "fin"])]
    {
        let output = run(bin, args);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{args:?}");
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(FIXED).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}

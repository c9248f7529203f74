//! Kernel truth (c): who is killed, in which call, and what keeps him alive.
#![allow(clippy::unwrap_used, clippy::panic)] // test code

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

use testkit::procs;

const BUG: &str = env!("CARGO_BIN_EXE_sigpipe");
const CURED: &str = env!("CARGO_BIN_EXE_sigpipe-cured");
const SIGPIPE_BIT: u64 = 1 << (libc::SIGPIPE - 1);

fn run(bin: &str, args: &[&str]) -> Output {
    Command::new(bin).args(args).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The calls that returned, and then death by the signal.
fn dies_after(case: &str, calls: &[&str]) {
    let output = run(BUG, &[case]);
    assert_eq!(output.status.signal(), Some(libc::SIGPIPE), "{case}: {}", text(&output.stderr));
    assert_eq!(text(&output.stdout).lines().collect::<Vec<_>>(), calls, "{case}");
    assert!(output.stderr.is_empty(), "without a word");
}

#[test]
fn truth_c_after_a_reset_was_read_the_first_send_kills() {
    dies_after("abort-read", &["recv ECONNRESET", "recv 0"]);
}

#[test]
fn truth_c_a_send_that_meets_the_reset_first_gets_econnreset_and_only_the_next_one_kills() {
    dies_after("abort-write", &["send ECONNRESET"]);
}

#[test]
fn truth_c_after_a_fin_the_first_send_works_and_the_second_kills() {
    dies_after("fin", &["recv 0", "send ok"]);
}

#[test]
fn truth_c_after_a_reply_and_a_reset_the_send_kills() {
    dies_after("unread", &["recv 'reply'", "recv ECONNRESET"]);
}

#[test]
fn truth_c_the_shell_says_141() {
    let output = run("sh", &["-c", "\"$0\" > /dev/null; echo $?", BUG]);
    assert_eq!(text(&output.stdout), "141\n");
}

#[test]
fn truth_c_every_cure_turns_death_into_epipe() {
    let output = run(CURED, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let calls = BTreeMap::from([
        ("abort-read", "recv ECONNRESET · recv 0 · send EPIPE · send EPIPE"),
        ("abort-write", "send ECONNRESET · send EPIPE · recv 0"),
        ("fin", "recv 0 · send ok · send EPIPE · recv 0"),
        ("unread", "recv 'reply' · recv ECONNRESET · send EPIPE"),
    ]);
    let table = text(&output.stdout);
    assert_eq!(table.lines().count(), 1 + 3 * calls.len(), "{table}");
    for cure in ["nosignal", "ignore", "handler"] {
        for (case, calls) in &calls {
            // As many signals as there are EPIPEs, where somebody takes them.
            let signals = if cure == "handler" { calls.matches("EPIPE").count() } else { 0 };
            let line = format!("{cure:10}{case:12}{signals:<9}{calls}");
            assert!(table.lines().any(|shown| shown == line), "no '{line}' in\n{table}");
        }
    }
}

/// What a demonstration has to undo, and what a child gets.
#[test]
fn truth_r_rust_ignores_sigpipe_and_gives_it_back_to_the_children_of_command() {
    let me = std::process::id() as i32;
    assert_eq!(procs::signal_mask(me, "SigIgn") & SIGPIPE_BIT, SIGPIPE_BIT, "this Rust program");
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    // Command returns when the child's exec is done.
    let ignored = procs::signal_mask(child.id() as i32, "SigIgn");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(ignored & SIGPIPE_BIT, 0, "its child");
}

#[test]
fn a_disposition_or_mask_that_a_parent_left_changes_nothing() {
    let output = run("sh", &["-c", "trap '' PIPE; \"$0\" fin > /dev/null; echo $?", BUG]);
    assert_eq!(text(&output.stdout), "141\n");
    let output = run("env", &["--block-signal=PIPE", BUG, "fin"]);
    assert_eq!(output.status.signal(), Some(libc::SIGPIPE), "{}", text(&output.stderr));
}

#[test]
fn wrong_words_are_usage_errors_and_a_closed_stdout_is_no_panic() {
    for (bin, args) in [(BUG, &["softly"][..]), (CURED, &["--cure", "none"]), (BUG, &["fin", "fin"])] {
        let output = run(bin, args);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{args:?}");
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(CURED).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}

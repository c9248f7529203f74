//! Kernel truth (g): what a forked child inherits.
// Test code.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr)]

use std::process::Command;

/// Runs the program. It must exit with status 0 and print nothing on stderr.
fn run(bin: &str, args: &[&str]) -> String {
    let output = Command::new(bin).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    eprintln!("{args:?}\n{stdout}{stderr}");
    assert!(output.status.success() && stderr.is_empty(), "{:?}: {stderr}", output.status);
    stdout
}

#[test]
fn truth_g_a_lock_held_by_another_thread_at_the_fork_is_held_forever_in_the_child() {
    let text = run(env!("CARGO_BIN_EXE_lock"), &["--timeout", "1000"]);
    assert!(
        text.contains("has not ended after 1000 ms") && !text.contains("has printed"),
        "{text}"
    );
    // If the kernel reports a function, it is a futex function.
    assert!(text.contains("futex") || text.contains("it sleeps in ?"), "{text}");
}

#[test]
fn truth_g_the_blocked_child_is_killed_and_reaped() {
    let text = run(env!("CARGO_BIN_EXE_lock"), &["--timeout", "50"]);
    let pid = text.split_whitespace().nth(1).unwrap();
    // The program was its parent and has reaped it.
    assert!(!std::path::Path::new("/proc").join(pid).join("exe").exists(), "{pid} still exists");
}

#[test]
fn truth_g_a_child_forked_before_the_first_thread_has_free_locks() {
    let text = run(env!("CARGO_BIN_EXE_lock-fixed"), &["--fix", "early"]);
    assert!(
        text.contains(
            "the child has printed: forked before the first thread\nthe parent has reaped it"
        ),
        "{text}"
    );
}

#[test]
fn truth_g_write_needs_no_lock() {
    let text = run(env!("CARGO_BIN_EXE_lock-fixed"), &["--fix", "write"]);
    assert!(
        text.contains("the child has printed: with write(2)\nthe parent has reaped it"),
        "{text}"
    );
}

#[test]
fn truth_g_a_new_program_has_its_own_locks() {
    let text = run(env!("CARGO_BIN_EXE_lock-fixed"), &["--fix", "command"]);
    assert!(
        text.contains("the child has printed: a new program\nthe parent has reaped it"),
        "{text}"
    );
}

#[test]
fn truth_g_an_unflushed_buffer_is_printed_twice() {
    assert_eq!(run(env!("CARGO_BIN_EXE_buffer"), &[]), "buffered-line buffered-line \n");
}

#[test]
fn truth_g_a_buffer_flushed_before_the_fork_or_discarded_by_exit_is_printed_once() {
    for fix in ["flush", "exit"] {
        assert_eq!(
            run(env!("CARGO_BIN_EXE_buffer-fixed"), &["--fix", fix]),
            "buffered-line \n",
            "{fix}"
        );
    }
}

/// How many processes have served this request.
fn servers_of(text: &str, request: u32) -> usize {
    let end = format!(": request {request}");
    text.lines().filter(|line| line.starts_with("server ") && line.ends_with(&end)).count()
}

#[test]
fn truth_g_a_panic_in_the_child_unwinds_into_the_parents_loop() {
    let text = run(env!("CARGO_BIN_EXE_panic"), &[]);
    assert_eq!(
        (servers_of(&text, 1), servers_of(&text, 2), servers_of(&text, 3)),
        (1, 2, 2),
        "{text}"
    );
    assert!(text.contains("this process was the child of a bad request"), "{text}");
    assert!(
        text.ends_with("the state file is GONE\n"),
        "the child has dropped the parent's guard: {text}"
    );
}

#[test]
fn truth_g_a_child_that_catches_the_panic_and_calls_exit_ends_alone() {
    let text = run(env!("CARGO_BIN_EXE_panic-fixed"), &[]);
    assert_eq!(
        (servers_of(&text, 1), servers_of(&text, 2), servers_of(&text, 3)),
        (1, 1, 1),
        "{text}"
    );
    assert!(text.contains(": exit 101"), "the child of the bad request exits with 101: {text}");
    assert!(text.ends_with("the state file is there\n"), "{text}");
}

#[test]
fn truth_g_an_inherited_listener_keeps_the_port_after_the_servers_end() {
    let text = run(env!("CARGO_BIN_EXE_listener"), &[]);
    assert!(text.contains("runs, with 1 sockets"), "{text}");
    assert!(text.contains("worker runs: a new server gets Address already in use"), "{text}");
    assert!(text.contains("worker runs: a client is connected"), "{text}");
    assert!(text.contains("worker ended: a new server gets the port"), "{text}");
}

#[test]
fn truth_g_a_listener_closed_in_the_worker_frees_the_port_when_the_server_ends() {
    let text = run(env!("CARGO_BIN_EXE_listener-fixed"), &[]);
    assert!(text.contains("runs, with 0 sockets"), "{text}");
    assert!(text.contains("worker runs: a new server gets the port"), "{text}");
    assert!(text.contains("worker runs: a client gets Connection refused"), "{text}");
}

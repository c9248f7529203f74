//! Kernel truth (g), and who keeps a port: what a forked child takes along.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr)] // test code

use std::process::Command;

/// Runs to the end, which must be exit status 0 with nothing on stderr.
fn run(bin: &str, args: &[&str]) -> String {
    let output = Command::new(bin).args(args).output().unwrap();
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    eprintln!("{args:?}\n{stdout}{stderr}");
    assert!(output.status.success() && stderr.is_empty(), "{:?}: {stderr}", output.status);
    stdout
}

#[test]
fn truth_g_a_lock_held_by_another_thread_at_the_fork_is_held_for_ever_in_the_child() {
    let text = run(env!("CARGO_BIN_EXE_lock"), &["--patience", "1000"]);
    assert!(text.contains("is stuck after 1000 ms") && !text.contains("the child speaks"), "{text}");
    // Where it says anything, it says futex.
    assert!(text.contains("futex") || text.contains("it sleeps in ?"), "{text}");
}

#[test]
fn truth_g_the_stuck_child_leaves_no_process_behind() {
    let text = run(env!("CARGO_BIN_EXE_lock"), &["--patience", "50"]);
    let pid = text.split_whitespace().nth(1).unwrap();
    // Our own child was its parent, and has reaped it.
    assert!(!std::path::Path::new("/proc").join(pid).join("exe").exists(), "{pid} is still there");
}

#[test]
fn truth_g_a_child_forked_before_the_first_thread_has_free_locks() {
    let text = run(env!("CARGO_BIN_EXE_lock-fixed"), &["--cure", "early"]);
    assert!(text.contains("the child speaks: forked before the first thread\nthe parent has reaped it"), "{text}");
}

#[test]
fn truth_g_write_needs_no_lock() {
    let text = run(env!("CARGO_BIN_EXE_lock-fixed"), &["--cure", "write"]);
    assert!(text.contains("the child speaks: with write(2)\nthe parent has reaped it"), "{text}");
}

#[test]
fn truth_g_a_new_program_has_locks_of_its_own() {
    let text = run(env!("CARGO_BIN_EXE_lock-fixed"), &["--cure", "command"]);
    assert!(text.contains("the child speaks: a program of its own\nthe parent has reaped it"), "{text}");
}

#[test]
fn truth_g_an_unflushed_buffer_is_printed_twice() {
    assert_eq!(run(env!("CARGO_BIN_EXE_buffer"), &[]), "buffered-line buffered-line \n");
}

#[test]
fn truth_g_flushed_before_the_fork_or_left_by_exit_it_is_printed_once() {
    for cure in ["flush", "exit"] {
        assert_eq!(run(env!("CARGO_BIN_EXE_buffer-fixed"), &["--cure", cure]), "buffered-line \n", "{cure}");
    }
}

/// How many processes said that they serve this request.
fn servers_of(text: &str, request: u32) -> usize {
    text.lines().filter(|line| line.starts_with("server ") && line.ends_with(&format!(": request {request}"))).count()
}

#[test]
fn truth_g_a_panic_in_the_child_unwinds_into_the_parents_loop() {
    let text = run(env!("CARGO_BIN_EXE_panic"), &[]);
    assert_eq!((servers_of(&text, 1), servers_of(&text, 2), servers_of(&text, 3)), (1, 2, 2), "{text}");
    assert!(text.contains("I was the child of a bad request"), "{text}");
    assert!(text.ends_with("the state file is GONE\n"), "the child ran the parent's guard: {text}");
}

#[test]
fn truth_g_a_child_that_catches_and_leaves_by_exit_ends_alone() {
    let text = run(env!("CARGO_BIN_EXE_panic-fixed"), &[]);
    assert_eq!((servers_of(&text, 1), servers_of(&text, 2), servers_of(&text, 3)), (1, 1, 1), "{text}");
    assert!(text.contains(", 101)"), "the bad request's child exits 101: {text}");
    assert!(text.ends_with("the state file is there\n"), "{text}");
}

#[test]
fn truth_g_an_inherited_listener_keeps_the_port_of_a_dead_server() {
    let text = run(env!("CARGO_BIN_EXE_listener"), &[]);
    assert!(text.contains("lives, with 1 sockets"), "{text}");
    assert!(text.contains("worker alive: a new server gets Address already in use"), "{text}");
    assert!(text.contains("worker alive: a client is connected"), "{text}");
    assert!(text.contains("worker ended: a new server gets the port"), "{text}");
}

#[test]
fn truth_g_a_listener_closed_in_the_worker_frees_the_port_with_the_server() {
    let text = run(env!("CARGO_BIN_EXE_listener-fixed"), &[]);
    assert!(text.contains("lives, with 0 sockets"), "{text}");
    assert!(text.contains("worker alive: a new server gets the port"), "{text}");
    assert!(text.contains("worker alive: a client gets Connection refused"), "{text}");
}

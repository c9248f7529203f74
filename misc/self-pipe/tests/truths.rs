//! Kernel truth (d): a flag and a sleep have a window between them, and what closes it.
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

/// What part of its timeout a waiting program slept.
fn slept(bin: &str, args: &[&str]) -> f64 {
    let text = run(bin, args);
    let line = text.lines().rfind(|line| line.contains(", slept ")).unwrap();
    let numbers = line.split(", slept ").nth(1).unwrap().split(';').next().unwrap().replace(" ms", "");
    let (slept, of) = numbers.split_once(" of ").unwrap();
    slept.parse::<f64>().unwrap() / of.parse::<f64>().unwrap()
}

/// In a run that could sleep for 20 s: even a loaded machine wakes a process sooner.
fn is_cured(bin: &str, args: &[&str]) {
    let part = slept(bin, &[args, &["--timeout", "20000"]].concat());
    assert!(part <= 0.2, "slept {part} of the timeout");
}

#[test]
fn truth_d_a_signal_between_the_look_and_select_is_slept_through() {
    let race = env!("CARGO_BIN_EXE_race");
    assert!(slept(race, &[]) >= 0.9);
    let text = run(race, &[]);
    assert!(text.contains("select: 0,") && text.contains("the flag: true"), "the signal did come: {text}");
}

#[test]
fn truth_d_select_is_interrupted_by_a_signal_outside_the_window() {
    let text = run(env!("CARGO_BIN_EXE_race"), &["--window", "0", "--signal-after", "1000", "--timeout", "20000"]);
    assert!(text.contains("select: EINTR"), "{text}");
}

#[test]
fn truth_d_the_self_pipe_closes_the_window() {
    is_cured(env!("CARGO_BIN_EXE_fixed"), &[]);
}

#[test]
fn truth_d_a_full_self_pipe_blocks_no_handler() {
    let text = run(env!("CARGO_BIN_EXE_fixed"), &["--flood", "70000"]);
    assert!(text.contains("70001 signals") && text.contains("65536 bytes in the self-pipe"), "{text}");
}

#[test]
fn truth_d_pselect_closes_the_window() {
    is_cured(env!("CARGO_BIN_EXE_atomic"), &["--call", "pselect"]);
}

#[test]
fn truth_d_ppoll_closes_the_window() {
    is_cured(env!("CARGO_BIN_EXE_atomic"), &["--call", "ppoll"]);
}

#[test]
fn truth_d_epoll_pwait_closes_the_window() {
    is_cured(env!("CARGO_BIN_EXE_atomic"), &["--call", "epoll-pwait"]);
}

#[test]
fn truth_d_a_signalfd_closes_the_window() {
    is_cured(env!("CARGO_BIN_EXE_signalfd"), &[]);
}

#[test]
fn truth_d_five_signals_are_one_record() {
    let text = run(env!("CARGO_BIN_EXE_signalfd"), &["--kills", "5"]);
    assert!(text.contains("5 kill(SIGUSR1), 1 records; 1 of SIGALRM"), "{text}");
}

#[test]
fn truth_d_real_time_signals_queue() {
    let text = run(env!("CARGO_BIN_EXE_signalfd"), &["--kills", "5", "--realtime"]);
    assert!(text.contains("5 kill(SIGRTMIN), 5 records"), "{text}");
}

#[test]
fn truth_d_a_pidfd_per_child_loses_none() {
    is_cured(env!("CARGO_BIN_EXE_pidfd"), &[]);
    let text = run(env!("CARGO_BIN_EXE_pidfd"), &["-n", "3"]);
    assert!(text.contains("3 children reaped, statuses [0, 1, 2]"), "{text}");
}

#[test]
fn truth_d_one_waitpid_per_sigchld_leaves_zombies() {
    let text = run(env!("CARGO_BIN_EXE_reap"), &["-n", "5", "--once"]);
    assert!(text.contains("1 SIGCHLD, 1 reaped, 4 zombies"), "{text}");
}

#[test]
fn truth_d_waitpid_in_a_loop_leaves_none() {
    let text = run(env!("CARGO_BIN_EXE_reap"), &["-n", "5"]);
    assert!(text.contains("1 SIGCHLD, 5 reaped, 0 zombies"), "{text}");
}

#[test]
fn truth_d_sa_restart_restarts_read_and_accept_and_no_wait_with_a_timeout() {
    let text = run(env!("CARGO_BIN_EXE_restart"), &[]);
    let row = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    for name in ["read", "accept"] {
        assert_eq!(row(name), "EINTR        begins again", "{name}");
    }
    for name in ["recv, SO_RCVTIMEO set", "select", "poll", "epoll_wait", "nanosleep"] {
        assert_eq!(row(name), "EINTR        EINTR", "{name}");
    }
}

#[test]
fn truth_d_command_keeps_the_blocked_mask() {
    let text = run(env!("CARGO_BIN_EXE_mask"), &[]);
    assert_eq!(text, "parent SigBlk 0000000000004200\nchild  SigBlk 0000000000004200\n");
    let text = run(env!("CARGO_BIN_EXE_mask"), &["--clear"]);
    assert_eq!(text, "parent SigBlk 0000000000004200\nchild  SigBlk 0000000000000000\n");
}

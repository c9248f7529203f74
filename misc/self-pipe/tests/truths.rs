//! Kernel truth (d): a signal can arrive between a check and a sleep, and what prevents that.
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

/// Which part of its timeout the program has slept.
fn slept(bin: &str, args: &[&str]) -> f64 {
    let text = run(bin, args);
    let line = text.lines().rfind(|line| line.contains(", slept ")).unwrap();
    let numbers = line.split(", slept ").nth(1).unwrap().split(';').next().unwrap();
    let numbers = numbers.replace(" ms", "");
    let (slept, of) = numbers.split_once(" of ").unwrap();
    slept.parse::<f64>().unwrap() / of.parse::<f64>().unwrap()
}

/// The timeout is 20 s: even a loaded machine wakes a process earlier.
fn closes_the_window(bin: &str, args: &[&str]) {
    let part = slept(bin, &[args, &["--timeout", "20000"]].concat());
    assert!(part <= 0.2, "slept {part} of the timeout");
}

#[test]
fn truth_d_a_signal_between_the_check_and_select_does_not_wake_select() {
    let race = env!("CARGO_BIN_EXE_race");
    assert!(slept(race, &[]) >= 0.9);
    let text = run(race, &[]);
    assert!(
        text.contains("select: 0,") && text.contains("the flag: true"),
        "the signal has arrived: {text}"
    );
}

#[test]
fn truth_d_select_is_interrupted_by_a_signal_outside_the_window() {
    let args = ["--window", "0", "--signal-after", "1000", "--timeout", "20000"];
    let text = run(env!("CARGO_BIN_EXE_race"), &args);
    assert!(text.contains("select: EINTR"), "{text}");
}

#[test]
fn truth_d_the_self_pipe_closes_the_window() {
    closes_the_window(env!("CARGO_BIN_EXE_fixed"), &[]);
}

#[test]
fn truth_d_a_full_self_pipe_does_not_block_the_handler() {
    let text = run(env!("CARGO_BIN_EXE_fixed"), &["--flood", "70000"]);
    assert!(
        text.contains("70001 signals") && text.contains("65536 bytes in the self-pipe"),
        "{text}"
    );
}

#[test]
fn truth_d_pselect_closes_the_window() {
    closes_the_window(env!("CARGO_BIN_EXE_atomic"), &["--call", "pselect"]);
}

#[test]
fn truth_d_ppoll_closes_the_window() {
    closes_the_window(env!("CARGO_BIN_EXE_atomic"), &["--call", "ppoll"]);
}

#[test]
fn truth_d_epoll_pwait_closes_the_window() {
    closes_the_window(env!("CARGO_BIN_EXE_atomic"), &["--call", "epoll-pwait"]);
}

#[test]
fn truth_d_a_signalfd_closes_the_window() {
    closes_the_window(env!("CARGO_BIN_EXE_signalfd"), &[]);
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
fn truth_d_a_pidfd_per_child_loses_no_child() {
    closes_the_window(env!("CARGO_BIN_EXE_pidfd"), &[]);
    let text = run(env!("CARGO_BIN_EXE_pidfd"), &["-n", "3"]);
    assert!(text.contains("3 children reaped, statuses [0, 1, 2]"), "{text}");
}

#[test]
fn truth_d_one_waitpid_per_sigchld_leaves_zombies() {
    let text = run(env!("CARGO_BIN_EXE_reap"), &["-n", "5", "--once"]);
    assert!(text.contains("1 SIGCHLD, 1 reaped, 4 zombies"), "{text}");
}

#[test]
fn truth_d_waitpid_in_a_loop_leaves_no_zombie() {
    let text = run(env!("CARGO_BIN_EXE_reap"), &["-n", "5"]);
    assert!(text.contains("1 SIGCHLD, 5 reaped, 0 zombies"), "{text}");
}

#[test]
fn truth_d_sa_restart_restarts_read_and_accept_but_no_wait_with_a_timeout() {
    let text = run(env!("CARGO_BIN_EXE_restart"), &[]);
    let row = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
    };
    for name in ["read", "accept"] {
        assert_eq!(row(name), "EINTR        restarted", "{name}");
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

//! Kernel truth (h): what a full accept queue does, and what happens when accept fails with EMFILE.
// Test code.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr)]

use testkit::tools::own_network;

const BACKLOG: &str = env!("CARGO_BIN_EXE_backlog");
const SYN_RETRY: &str = env!("CARGO_BIN_EXE_syn-retry");
const ABORT: &str = env!("CARGO_BIN_EXE_abort-on-overflow");
const BURST: &str = env!("CARGO_BIN_EXE_burst");
const EMFILE: &str = env!("CARGO_BIN_EXE_emfile");

/// What a demo prints, or `None` if the machine permits no network namespace.
fn run(who: &str, bin: &str, args: &[&str]) -> Option<String> {
    let output = own_network(who)?.arg(bin).args(args).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    eprintln!("{stdout}");
    Some(stdout)
}

/// The numbers in the line that begins with `start`.
fn row(printed: &str, start: &str) -> Vec<f64> {
    let line = printed.lines().find(|line| line.trim_start().starts_with(start));
    let line = line.unwrap_or_else(|| panic!("no line '{start}': {printed}"));
    line.trim_start()[start.len()..]
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// The columns that `backlog` prints for one listen(N), as integers, without N.
fn queue(printed: &str, backlog: i32) -> Vec<u64> {
    row(printed, &format!("{backlog}  ")).into_iter().map(|n| n as u64).collect()
}

#[test]
fn truth_h_the_queue_holds_backlog_plus_one() {
    let who = "truth_h_the_queue_holds_backlog_plus_one";
    let Some(printed) = run(who, BACKLOG, &["--backlog", "0", "--backlog", "1", "--backlog", "3"])
    else {
        return;
    };
    for backlog in [0, 1, 3] {
        let [_, established, _, _, queued, limit, ..] = queue(&printed, backlog)[..] else {
            panic!("{printed}")
        };
        assert_eq!(
            (established, queued, limit),
            (backlog as u64 + 1, backlog as u64 + 1, backlog as u64)
        );
    }
}

#[test]
fn truth_h_a_full_queue_drops_the_syn_and_the_client_sees_nothing() {
    let who = "truth_h_a_full_queue_drops_the_syn_and_the_client_sees_nothing";
    let Some(printed) = run(who, BACKLOG, &["--backlog", "1", "--extra", "7"]) else {
        return;
    };
    let [clients, established, syn_sent, failed, _, _, overflows, drops] = queue(&printed, 1)[..]
    else {
        panic!("{printed}")
    };
    assert_eq!((clients, established, syn_sent, failed), (8, 2, 6, 0));
    assert!(overflows >= 6 && drops >= 6, "{printed}");
}

#[test]
fn truth_h_only_a_port_without_a_listener_refuses_a_client() {
    let who = "truth_h_only_a_port_without_a_listener_refuses_a_client";
    let Some(printed) = run(who, BACKLOG, &[]) else { return };
    assert!(printed.lines().last().unwrap().contains("refused"), "{printed}");
}

#[test]
fn truth_h_somaxconn_caps_the_backlog() {
    let who = "truth_h_somaxconn_caps_the_backlog";
    let Some(printed) = run(who, BACKLOG, &["--backlog", "50", "--somaxconn", "5"]) else {
        return;
    };
    let [_, established, _, _, queued, limit, ..] = queue(&printed, 50)[..] else {
        panic!("{printed}")
    };
    assert_eq!((established, queued, limit), (6, 6, 5));
}

/// The times of the retries, in seconds.
fn retries(printed: &str) -> Vec<f64> {
    let retries = printed.lines().filter(|line| line.contains("retry"));
    retries.map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect()
}

/// The first retry is sent after one second (RFC 6298). The client connects at a retry, because the
/// kernel does not notify it when the queue has room.
#[test]
fn truth_h_the_first_retries_are_sent_at_equal_intervals() {
    let who = "truth_h_the_first_retries_are_sent_at_equal_intervals";
    let Some(printed) = run(who, SYN_RETRY, &["--watch", "3", "--linear", "4"]) else {
        return;
    };
    let times = retries(&printed);
    assert!(times.len() >= 2 && times[1] < 2.7 * times[0], "{printed}");
    assert!(times[0] > 0.9, "{printed}");
    assert!(printed.lines().last().unwrap().contains("connected"), "{printed}");
}

#[test]
fn truth_h_without_linear_timeouts_each_interval_is_twice_as_long() {
    let who = "truth_h_without_linear_timeouts_each_interval_is_twice_as_long";
    let Some(printed) = run(who, SYN_RETRY, &["--watch", "4", "--linear", "0"]) else {
        return;
    };
    let times = retries(&printed);
    assert!(times.len() >= 2 && times[1] > 2.7 * times[0], "{printed}");
}

#[test]
fn truth_h_a_client_that_gives_up_gets_etimedout() {
    let who = "truth_h_a_client_that_gives_up_gets_etimedout";
    let args = ["--watch", "60", "--linear", "0", "--give-up", "1"];
    let Some(printed) = run(who, SYN_RETRY, &args) else { return };
    assert!(printed.lines().last().unwrap().contains("ETIMEDOUT"), "{printed}");
}

/// When the clients of a burst were connected and when the server greeted them, in seconds. `-` is
/// left out.
fn burst(who: &str, syncookies: &str, server: &str) -> Option<(Vec<f64>, Vec<f64>)> {
    let printed = run(who, BURST, &["--clients", "12", "--syncookies", syncookies])?;
    let times = |seen: &str| row(&printed, &format!("{server} {seen}:"));
    Some((times("connected"), times("greeted")))
}

#[test]
fn truth_h_a_short_queue_causes_latencies_of_whole_seconds() {
    let who = "truth_h_a_short_queue_causes_latencies_of_whole_seconds";
    let Some((_, bug)) = burst(who, "0", "bug listen(1)") else { return };
    assert!(bug.iter().filter(|time| **time > 0.9).count() >= 6, "{bug:?}");
}

#[test]
fn truth_h_a_long_queue_holds_a_burst() {
    let who = "truth_h_a_long_queue_holds_a_burst";
    let Some((connected, greeted)) = burst(who, "1", "fix listen(128)") else { return };
    assert_eq!((connected.len(), greeted.len()), (12, 12));
    assert!(connected.iter().chain(&greeted).all(|time| *time < 0.9), "{connected:?} {greeted:?}");
}

/// SYNs that arrive together all pass a queue that has room for one. If the kernel cannot store the
/// request, it answers with a SYN cookie. Then the last ACK meets a full queue, and the server's
/// kernel keeps no state of this client.
#[test]
fn truth_h_after_a_syn_cookie_a_client_can_be_connected_without_a_server_side() {
    let who = "truth_h_after_a_syn_cookie_a_client_can_be_connected_without_a_server_side";
    let Some((connected, greeted)) = burst(who, "1", "bug listen(1)") else { return };
    assert_eq!(connected.len(), 12, "{connected:?}");
    assert!(greeted.len() < 12, "{greeted:?}");
}

/// The text after the value of the setting: the result seen by the client.
fn seen(printed: &str, path: &str, value: &str) -> String {
    let lines = printed.lines().filter_map(|line| line.strip_prefix(path));
    let mut seen = lines.filter_map(|rest| rest.trim_start().strip_prefix(value));
    seen.next().unwrap_or_else(|| panic!("{path}: {printed}")).trim().to_owned()
}

#[test]
fn truth_h_abort_on_overflow_changes_nothing_for_a_dropped_syn() {
    let who = "truth_h_abort_on_overflow_changes_nothing_for_a_dropped_syn";
    let Some(printed) = run(who, ABORT, &[]) else { return };
    for value in ["0", "1"] {
        assert!(seen(&printed, "SYN, full queue", value).contains("SYN-SENT"), "{printed}");
    }
}

#[test]
fn truth_h_a_late_handshake_at_a_full_queue_obeys_abort_on_overflow() {
    let who = "truth_h_a_late_handshake_at_a_full_queue_obeys_abort_on_overflow";
    let Some(printed) = run(who, ABORT, &[]) else { return };
    let path = "last ACK, full queue";
    assert!(
        seen(&printed, path, "0").starts_with("connected"),
        "the client does not notice: {printed}"
    );
    assert!(seen(&printed, path, "1").starts_with("ECONNRESET"), "{printed}");
}

/// EMFILE errors, wake-ups, CPU ms; greeted, busy, reset, waiting; greeted after two have left;
/// greeted after one more has connected.
fn emfile(who: &str, mode: &str) -> Option<[f64; 9]> {
    let printed = run(who, EMFILE, &["--mode", mode])?;
    let line = printed.lines().last().unwrap().to_owned();
    let numbers: Vec<f64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    Some(numbers.try_into().unwrap_or_else(|_| panic!("{printed}")))
}

#[test]
fn truth_h_emfile_leaves_the_connection_in_the_queue_and_a_level_triggered_loop_spins() {
    let who = "truth_h_emfile_leaves_the_connection_in_the_queue_and_a_level_triggered_loop_spins";
    let Some([failed, _, _, greeted, busy, reset, waiting, left, _]) = emfile(who, "naive") else {
        return;
    };
    assert!(failed > 1000.0, "{failed}");
    assert_eq!([greeted, busy, reset, waiting, left], [4.0, 0.0, 0.0, 4.0, 2.0]);
}

#[test]
fn truth_h_after_emfile_an_edge_triggered_loop_ignores_free_descriptors() {
    let who = "truth_h_after_emfile_an_edge_triggered_loop_ignores_free_descriptors";
    let Some([failed, wakes, _, greeted, _, _, waiting, left, came]) = emfile(who, "edge") else {
        return;
    };
    assert_eq!([failed, wakes, greeted, waiting], [1.0, 1.0, 4.0, 4.0]);
    assert_eq!(
        [left, came],
        [0.0, 2.0],
        "free descriptors are not used until a new client connects"
    );
}

#[test]
fn truth_h_each_fix_of_emfile_fails_a_few_times_and_continues() {
    let who = "truth_h_each_fix_of_emfile_fails_a_few_times_and_continues";
    for mode in ["backoff", "unwatch", "reserve", "limit"] {
        let Some([failed, .., left, came]) = emfile(who, mode) else { return };
        assert!(failed < 50.0, "{mode}: {failed}");
        assert!(left + came >= 1.0, "{mode}: a free descriptor is used");
    }
    let Some([failed, _, _, greeted, busy, .., came]) = emfile(who, "limit") else { return };
    assert_eq!(
        [failed, greeted, busy, came],
        [0.0, 3.0, 5.0, 1.0],
        "a limit below RLIMIT_NOFILE prevents EMFILE"
    );
    let Some([_, _, _, greeted, busy, .., came]) = emfile(who, "reserve") else { return };
    assert_eq!([greeted, busy, came], [4.0, 4.0, 1.0], "each client is rejected at once");
}

//! How many system calls a request costs. The number is exact, and explains the client's CPU time.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::collections::BTreeMap;
use std::sync::Mutex;

use support::{Server, have, serve_well, syscalls};

/// How much one wait reports depends on what else the machine does: the best of so many runs counts.
const ATTEMPTS: usize = 5;
const REQUESTS: u64 = 3000;

/// One strace at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Calls by name for [`REQUESTS`] requests: start and end of the program cancel out between a short and a long run.
fn calls(server: &Server, args: &[&str]) -> BTreeMap<String, i64> {
    let with = |tries| syscalls(&[&["-q", "-p", &server.port(), "-c", "10", "-t", tries], args].concat());
    let (long, short) = (with("400"), with("100"));
    let less = |name: &str| short.get(name).copied().unwrap_or_default() as i64;
    long.into_iter().map(|(name, n)| (name.clone(), n as i64 - less(&name))).collect()
}

/// Besides `wait`, `each` request makes these calls once and no others; all together they keep to the bar.
fn check(test: &str, args: &[&str], wait: &str, each: &[&str], bar: f64) {
    if !have("strace", test) {
        return;
    }
    let _alone = ALONE.lock();
    let server = Server::with(serve_well);
    let mut best = f64::MAX;
    for _ in 0..ATTEMPTS {
        let mut calls = calls(&server, args);
        best = best.min(calls.remove("total").unwrap() as f64 / REQUESTS as f64);
        calls.remove(wait);
        // To the nearest: the program's own start may differ by a brk or so.
        let rounded = calls.into_iter().map(|(name, n)| (name, (n as f64 / REQUESTS as f64).round() as i64));
        let calls: BTreeMap<String, i64> = rounded.filter(|(_, n)| *n != 0).collect();
        let expected = each.iter().map(|name| (name.to_string(), 1)).collect();
        assert_eq!(calls, expected);
        if best <= bar {
            return;
        }
    }
    panic!("{best} system calls, the bar is {bar}");
}

#[test]
fn a_request_on_a_kept_connection() {
    check("a_request_on_a_kept_connection", &["-k", "0"], "epoll_pwait2", &["sendto", "recvfrom"], 2.2);
}

#[test]
fn a_connection_per_request() {
    let each = ["socket", "connect", "sendto", "epoll_ctl", "recvfrom", "close"];
    check("a_connection_per_request", &[], "epoll_pwait2", &each, 6.3);
}

#[test]
fn a_request_through_a_ring() {
    check("a_request_through_a_ring", &["-k", "0", "--engine", "uring"], "io_uring_enter", &[], 0.3);
}

//! What this example promises beyond the suite: one thread is woken for a client, and the threads take turns.

use std::fs;

use testkit::{Server, eventually, oracle};

const WORKERS: usize = 8;

/// Voluntary context switches of each thread but the main one.
fn sleeps(server: &Server) -> Vec<u64> {
    let threads = fs::read_dir(format!("/proc/{}/task", server.pid())).into_iter().flatten().flatten();
    let workers = threads.filter(|task| task.file_name().to_string_lossy() != server.pid().to_string());
    let status = workers.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let count =
        |text: String| text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse().ok());
    status.filter_map(count).collect()
}

fn in_accept(server: &Server) -> usize {
    let threads = fs::read_dir(format!("/proc/{}/task", server.pid())).into_iter().flatten().flatten();
    threads.filter(|task| fs::read_to_string(task.path().join("wchan")).is_ok_and(|at| at == "inet_csk_accept")).count()
}

/// Kernel truth (a): a herd would wake all eight for each client.
#[test]
fn a_client_wakes_one_thread_and_they_take_turns() {
    const CLIENTS: u64 = 80;
    let server = Server::start(env!("CARGO_BIN_EXE_server06-prethread"), &[]);
    let base = oracle::Baseline::of(&server);
    let at_rest = || eventually("all sleep in accept", || (in_accept(&server) == WORKERS).then_some(()));
    at_rest();
    let before = sleeps(&server);
    for _ in 0..CLIENTS {
        server.connect().ask(1);
        at_rest();
    }
    let slept: Vec<u64> = sleeps(&server).iter().zip(&before).map(|(after, before)| after - before).collect();
    eprintln!("sleeps of each thread: {slept:?}");
    assert_eq!(slept.len(), WORKERS);
    let each = CLIENTS / WORKERS as u64;
    assert!(slept.iter().all(|n| *n >= each), "not in turns: {slept:?}");
    // In accept, and in recv for the request, for the end, and perhaps once more for a lock.
    assert!(slept.iter().sum::<u64>() <= CLIENTS * 5, "woken for nothing: {slept:?}");
    oracle::finish(server, &base);
}

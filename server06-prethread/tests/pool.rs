//! What this example promises beyond the suite: a connection wakes one thread of the pool, and the
//! threads take turns.

use std::fs;

use testkit::{Server, eventually, oracle};

const WORKERS: usize = 8;

/// Voluntary context switches of each thread except the main thread.
fn voluntary_switches(server: &Server) -> Vec<u64> {
    let tasks =
        fs::read_dir(format!("/proc/{}/task", server.pid())).into_iter().flatten().flatten();
    let main = server.pid().to_string();
    let workers = tasks.filter(|task| task.file_name().to_string_lossy() != main);
    let status = workers.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let count = |text: String| {
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse().ok())
    };
    status.filter_map(count).collect()
}

fn threads_in_accept(server: &Server) -> usize {
    let tasks =
        fs::read_dir(format!("/proc/{}/task", server.pid())).into_iter().flatten().flatten();
    let wchan = tasks.filter_map(|task| fs::read_to_string(task.path().join("wchan")).ok());
    wchan.filter(|function| function == "inet_csk_accept").count()
}

/// Kernel truth (a): with a thundering herd each connection would wake all eight threads.
#[test]
fn a_connection_wakes_one_thread_and_the_threads_take_turns() {
    const CLIENTS: u64 = 80;
    let server = Server::start(env!("CARGO_BIN_EXE_server06-prethread"), &[]);
    let base = oracle::Baseline::of(&server);
    let all_in_accept = || {
        eventually("all threads sleep in accept", || {
            (threads_in_accept(&server) == WORKERS).then_some(())
        });
    };
    all_in_accept();
    let before = voluntary_switches(&server);
    for _ in 0..CLIENTS {
        server.connect().ask(1);
        all_in_accept();
    }
    let after = voluntary_switches(&server);
    let sleeps: Vec<u64> =
        after.iter().zip(&before).map(|(after, before)| after - before).collect();
    eprintln!("voluntary context switches of each thread: {sleeps:?}");
    assert_eq!(sleeps.len(), WORKERS);
    let each = CLIENTS / WORKERS as u64;
    assert!(sleeps.iter().all(|n| *n >= each), "the threads do not take turns: {sleeps:?}");
    // A client costs a sleep in accept, one in recv for the request, one in recv for end of file,
    // and at most two for locks.
    assert!(sleeps.iter().sum::<u64>() <= CLIENTS * 5, "spurious wake-ups: {sleeps:?}");
    oracle::finish(server, &base);
}

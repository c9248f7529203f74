//! Ten thousand idle clients: little memory, no thread, no CPU time.

use std::time::{Duration, Instant};

use testkit::{Peer, Server, procs};

/// The limit of user memory per client.
const BYTES: u64 = 2048;
const CLIENTS: usize = 10_000;

#[test]
fn idle_client_costs_no_thread_no_cpu_time_and_at_most_2_kib() {
    let me = std::process::id() as i32;
    // A low hard limit allows fewer clients. The second call returns what the first one has set.
    let limit = [20_000, 12_000, 4096].into_iter().find(|n| {
        procs::limit_descriptors(me, *n);
        procs::limit_descriptors(me, *n) == *n
    });
    let n = CLIENTS.min(limit.unwrap_or(1024) as usize - 200);
    let mut server = Server::start(env!("CARGO_BIN_EXE_server08-tokio"), &[]);
    server.connect().ask(1);
    let threads = || server.family().iter().map(|proc| proc.threads).sum::<i64>();
    let (before, base) = (procs::anonymous_bytes(server.pid()), threads());
    let mut peers: Vec<Peer> = (0..n).map(|_| server.connect()).collect();
    for peer in peers.iter_mut().rev().take(100) {
        peer.ask(100);
    }
    let each = procs::anonymous_bytes(server.pid()).saturating_sub(before) / n as u64;
    assert_eq!(threads(), base, "the server has created a thread for clients");

    let (start, cpu) = (Instant::now(), procs::cpu_ns(server.pid()));
    std::thread::sleep(Duration::from_secs(1)); // the measurement: CPU time over this second
    let used = (procs::cpu_ns(server.pid()) - cpu) as f64;
    let share = used / start.elapsed().as_nanos() as f64;
    let percent = share * 100.0;
    eprintln!("{n} clients: {each} bytes each, {base} threads, {percent:.3} % of a CPU");
    assert!(each <= BYTES, "{each} bytes for an idle client");
    assert!(share < 0.01, "{percent:.1} % of a CPU for {n} idle clients");

    peers.iter_mut().step_by(97).for_each(|peer| peer.ask(100));
    drop(peers);
    server.stop().unwrap();
    assert!(server.log().lines().all(|line| line.starts_with("CPU ")), "{}", server.log());
}

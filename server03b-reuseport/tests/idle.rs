//! Ten thousand idle clients cost the pool little memory and no CPU time.

use std::time::{Duration, Instant};

use testkit::{Peer, Server, procs};

/// The most user memory per client.
const BYTES: u64 = 2048;
const WANTED: usize = 10_000;

/// The sum over all processes of the server.
fn sum(server: &Server, of: fn(i32) -> u64) -> u64 {
    server.family().iter().map(|process| of(process.pid)).sum()
}

#[test]
fn ten_thousand_idle_clients_cost_little_memory_and_no_cpu_time() {
    let me = std::process::id() as i32;
    // A low hard limit reduces the number of clients. The second call returns what the first one
    // set.
    let limit = [20_000, 12_000, 4096].into_iter().find(|n| {
        procs::limit_descriptors(me, *n);
        procs::limit_descriptors(me, *n) == *n
    });
    let n = WANTED.min(limit.unwrap_or(1024) as usize - 200);
    for args in [&["-n", "1"], &["-n", "4"]] {
        let mut server = Server::start(env!("CARGO_BIN_EXE_server03b-reuseport"), args);
        server.connect().ask(1);
        let before = sum(&server, procs::anonymous_bytes);
        let mut peers: Vec<Peer> = (0..n).map(|_| server.connect()).collect();
        for peer in peers.iter_mut().rev().take(100) {
            peer.ask(100);
        }
        let each = (sum(&server, procs::anonymous_bytes) - before) / n as u64;

        let (start, cpu) = (Instant::now(), sum(&server, procs::cpu_ns));
        std::thread::sleep(Duration::from_secs(1)); // the interval of the measurement
        let cpu = sum(&server, procs::cpu_ns) - cpu;
        let share = cpu as f64 / start.elapsed().as_nanos() as f64;
        eprintln!("{args:?}: {n} clients, {each} bytes each, {:.3} % of a CPU", share * 100.0);
        assert!(each <= BYTES, "{each} bytes for an idle client");
        assert!(share < 0.01, "{:.1} % of a CPU for {n} idle clients", share * 100.0);

        peers.iter_mut().step_by(97).for_each(|peer| peer.ask(100));
        drop(peers);
        server.stop().unwrap();
        assert!(!server.log().contains("WARN"), "{}", server.log());
    }
}

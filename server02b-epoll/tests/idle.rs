//! Ten thousand idle clients cost little memory and no CPU time.

use std::time::{Duration, Instant};

use testkit::{Peer, Server, procs};

/// The most user memory per client.
const BYTES: u64 = 2048;
const WANTED: usize = 10_000;

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
    for bin in [env!("CARGO_BIN_EXE_server02b-epoll"), env!("CARGO_BIN_EXE_server02b-edge")] {
        let server = Server::start(bin, &[]);
        server.connect().ask(1);
        let before = procs::anonymous_bytes(server.pid());
        let mut peers: Vec<Peer> = (0..n).map(|_| server.connect()).collect();
        for peer in peers.iter_mut().rev().take(100) {
            peer.ask(100);
        }
        let each = (procs::anonymous_bytes(server.pid()) - before) / n as u64;

        let (start, cpu) = (Instant::now(), procs::cpu_ns(server.pid()));
        std::thread::sleep(Duration::from_secs(1)); // the interval of the measurement
        let share = (procs::cpu_ns(server.pid()) - cpu) as f64 / start.elapsed().as_nanos() as f64;
        eprintln!("{bin}: {n} clients, {each} bytes each, {:.3} % of a CPU", share * 100.0);
        assert!(each <= BYTES, "{each} bytes for an idle client");
        assert!(share < 0.01, "{:.1} % of a CPU for {n} idle clients", share * 100.0);

        peers.iter_mut().step_by(97).for_each(|peer| peer.ask(100));
        drop(peers);
        let mut server = server;
        server.stop().unwrap();
        assert!(server.log().lines().all(|line| line.starts_with("CPU ")), "{}", server.log());
    }
}

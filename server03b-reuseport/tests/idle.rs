//! Ten thousand clients that say nothing cost the pool a little memory and no CPU time.

use std::time::{Duration, Instant};

use testkit::{Peer, Server, procs};

/// Most user memory for a client.
const BYTES: u64 = 2048;
const WANTED: usize = 10_000;

fn all(server: &Server, of: fn(i32) -> u64) -> u64 {
    server.family().iter().map(|process| of(process.pid)).sum()
}

#[test]
fn ten_thousand_idle_clients() {
    let me = std::process::id() as i32;
    // A hard limit that is low makes the crowd smaller. The second call says what the first one achieved.
    let limit = [20_000, 12_000, 4096].into_iter().find(|n| {
        procs::limit_descriptors(me, *n);
        procs::limit_descriptors(me, *n) == *n
    });
    let n = WANTED.min(limit.unwrap_or(1024) as usize - 200);
    for args in [&["-n", "1"], &["-n", "4"]] {
        let mut server = Server::start(env!("CARGO_BIN_EXE_server03b-reuseport"), args);
        server.connect().ask(1);
        let before = all(&server, procs::anonymous_bytes);
        let mut peers: Vec<Peer> = (0..n).map(|_| server.connect()).collect();
        for peer in peers.iter_mut().rev().take(100) {
            peer.ask(100);
        }
        let each = (all(&server, procs::anonymous_bytes) - before) / n as u64;

        let (start, cpu) = (Instant::now(), all(&server, procs::cpu_ns));
        std::thread::sleep(Duration::from_secs(1)); // the measure: CPU time over this long
        let share = (all(&server, procs::cpu_ns) - cpu) as f64 / start.elapsed().as_nanos() as f64;
        eprintln!("{args:?}: {n} clients, {each} bytes each, {:.3} % of a CPU", share * 100.0);
        assert!(each <= BYTES, "{each} bytes for an idle client");
        assert!(share < 0.01, "{:.1} % of a CPU for {n} idle clients", share * 100.0);

        peers.iter_mut().step_by(97).for_each(|peer| peer.ask(100));
        drop(peers);
        server.stop().unwrap();
        assert!(!server.log().contains("WARN"), "{}", server.log());
    }
}

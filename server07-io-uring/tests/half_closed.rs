//! Clients that have sent a FIN and do not read their answers. poll(2) reports POLLRDHUP for such a
//! socket forever, and io_uring always polls for POLLRDHUP too. The server must not spin, and the
//! kernel must not create threads for it.

use std::thread;
use std::time::{Duration, Instant};

use testkit::{Peer, Server, eventually, procs};

#[test]
fn half_closed_clients_that_do_not_read_cost_no_thread_and_no_cpu_time() {
    let server = Server::start(env!("CARGO_BIN_EXE_server07-io-uring"), &[]);
    let mut peers: Vec<Peer> = (0..8)
        .map(|_| {
            let mut peer = Peer::connect_small_window(server.addr);
            peer.send("1048576\n".repeat(20));
            peer.half_close();
            peer
        })
        .collect();
    let mut last = 0;
    eventually("the answers stop", || {
        thread::sleep(Duration::from_millis(100));
        let now = peers.iter().map(Peer::unread).sum();
        (std::mem::replace(&mut last, now) == now && now > 0).then_some(())
    });

    let threads = server.family().iter().map(|p| p.threads).sum::<i64>();
    let (start, cpu) = (Instant::now(), procs::cpu_ns(server.pid()));
    thread::sleep(Duration::from_millis(500)); // the measurement: CPU time over this interval
    let used = (procs::cpu_ns(server.pid()) - cpu) as f64;
    let share = used / start.elapsed().as_nanos() as f64;
    let (clients, percent) = (peers.len(), share * 100.0);
    eprintln!("{clients} half-closed clients: {threads} threads, {percent:.2} % of a CPU");
    assert_eq!(threads, 1, "a thread blocks in send");
    assert!(share < 0.02, "{percent:.0} % of a CPU for clients that do not read");

    for peer in &mut peers {
        assert!(peer.read_exactly(20 << 20) == testkit::pattern(1 << 20).repeat(20));
    }
}

//! A client that has sent its FIN and does not read its answer: poll(2) says POLLRDHUP of it for ever, and in io_uring
//! nobody can ask not to be told. The server must neither spin on it nor have the kernel make a thread for it.

use std::thread;
use std::time::{Duration, Instant};

use testkit::{Peer, Server, eventually, procs};

#[test]
fn half_closed_clients_cost_no_thread_and_no_time() {
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
    eventually("the answers stall", || {
        thread::sleep(Duration::from_millis(100));
        let now = peers.iter().map(Peer::unread).sum();
        (std::mem::replace(&mut last, now) == now && now > 0).then_some(())
    });

    let threads = server.family().iter().map(|p| p.threads).sum::<i64>();
    let (start, cpu) = (Instant::now(), procs::cpu_ns(server.pid()));
    thread::sleep(Duration::from_millis(500)); // the measure: CPU time over this long
    let share = (procs::cpu_ns(server.pid()) - cpu) as f64 / start.elapsed().as_nanos() as f64;
    eprintln!("{} half-closed clients: {threads} threads, {:.2} % of a CPU", peers.len(), share * 100.0);
    assert_eq!(threads, 1, "a thread that sleeps in send");
    assert!(share < 0.02, "{:.0} % of a CPU for clients that do not read", share * 100.0);

    for peer in &mut peers {
        assert!(peer.read_exactly(20 << 20) == testkit::pattern(1 << 20).repeat(20));
    }
}

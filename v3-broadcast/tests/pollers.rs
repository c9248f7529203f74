//! How the pollers differ: the cost of clients that send nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

use std::net::TcpStream;

use testkit::{Server, chat::Member, procs};

const LINES: u32 = 2000;
const IDLE: usize = 600;

/// Nanoseconds of CPU for one line from alice to bob, while this number of connections is silent.
fn cost(poller: &str, idle: usize) -> u64 {
    let args = ["--rate", "1000000", "--burst", "1000000", "--poller", poller];
    let server = Server::start(env!("CARGO_BIN_EXE_v3-broadcast"), &args);
    let _idle: Vec<TcpStream> =
        (0..idle).map(|_| TcpStream::connect(server.addr).unwrap()).collect();
    let mut alice = Member::join(server.addr, "alice");
    let mut bob = Member::join(server.addr, "bob");
    let before = procs::cpu_ns(server.pid());
    for number in 0..LINES {
        alice.say(&format!("{number}"));
        bob.expect(&format!("<alice> {number}"));
    }
    (procs::cpu_ns(server.pid()) - before) / u64::from(LINES)
}

/// `cargo test -p v3-broadcast --test pollers -- --nocapture` prints the table.
#[test]
fn cost_of_a_line_grows_with_silent_clients_except_with_epoll() {
    procs::limit_descriptors(std::process::id() as i32, 4096);
    let costs = ["select", "poll", "epoll"].map(|poller| {
        let [alone, crowd] = [cost(poller, 0), cost(poller, IDLE)].map(|ns| ns / 1000);
        println!("{poller:6}: {alone} us of CPU for a line, {crowd} us with {IDLE} silent clients");
        crowd
    });
    assert!(costs[0] > 2 * costs[2] && costs[1] > 2 * costs[2], "{costs:?}");
}

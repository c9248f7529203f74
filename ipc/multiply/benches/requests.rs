//! Requests per second on one connection: one at a time, and many in flight.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs
)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use testkit::Server;

const REQUEST: &[u8] = b"5 10\n";
const ANSWER: &[u8] = b"Data received\n50.0\n";
const DEEP: usize = 64;

fn main() {
    let server = Server::start(env!("CARGO_BIN_EXE_multiply-server"), &[]);
    let mut stream = TcpStream::connect(server.addr).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut criterion =
        Criterion::default().configure_from_args().measurement_time(Duration::from_secs(3));
    let mut group = criterion.benchmark_group("multiply");
    for depth in [1, DEEP] {
        group.throughput(Throughput::Elements(depth as u64));
        group.bench_function(format!("{depth} in flight"), |bencher| {
            bencher.iter(|| ask(&mut stream, depth))
        });
    }
    group.finish();
    let (one, many) = (rate(&mut stream, 1), rate(&mut stream, DEEP));
    println!(
        "requests/s: {one:.0} one at a time, {many:.0} with {DEEP} in flight: {:.1} times",
        many / one
    );
}

fn ask(stream: &mut TcpStream, depth: usize) {
    stream.write_all(&REQUEST.repeat(depth)).unwrap();
    let mut answers = vec![0; ANSWER.len() * depth];
    stream.read_exact(&mut answers).unwrap();
    assert_eq!(answers, ANSWER.repeat(depth));
}

/// Both rates come from the same run and the same connection, so that their ratio is fair.
fn rate(stream: &mut TcpStream, depth: usize) -> f64 {
    let (start, mut requests) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(1) {
        ask(stream, depth);
        requests += depth;
    }
    requests as f64 / start.elapsed().as_secs_f64()
}

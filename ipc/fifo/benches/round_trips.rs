//! Round trips per second with one server: over FIFOs, over its Unix socket, over TCP.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use criterion::Criterion;
use fifo::client::{Client, Way};
use fifo::record::{HEAD, Question};

/// Numbers per question.
const N: i32 = 5;
/// Each TCP connection leaves a port in TIME_WAIT for a minute, and there are about 28 000 ports.
/// So few of them are made.
const ROUNDS: usize = 10;
const PER_ROUND: usize = 100;

struct Server {
    child: Child,
    temp: tempfile::TempDir,
    tcp: SocketAddr,
}

impl Server {
    fn start() -> Server {
        let temp = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_fifo-server"));
        command.arg("--dir").arg(temp.path().join("run")).args(["--tcp", "0", "--signals"]);
        // The connections that are kept are idle while the others are measured.
        command.args(["--line-timeout", "3600000", "--idle-timeout", "3600000"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let tcp = ready.trim().split_once("and on ").unwrap().1.parse().unwrap();
        Server { child, temp, tcp }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

type Ask = Box<dyn FnMut()>;

/// The ways to ask, each with its name. The others are compared with the first.
fn ways(dir: &Path, tcp: SocketAddr) -> Vec<(&'static str, Ask)> {
    let one_shot = |way| -> Ask {
        let client = Client::new(dir, way, Duration::from_secs(60)).unwrap();
        Box::new(move || assert_eq!(client.request(N).unwrap().values.len(), N as usize))
    };
    let unix = UnixStream::connect(dir.join("sock")).unwrap();
    let stream = TcpStream::connect(tcp).unwrap();
    stream.set_nodelay(true).unwrap();
    vec![
        ("FIFO, one reply FIFO per question", one_shot(Way::Fifo)),
        ("FIFO, with SIGUSR1 in both directions", one_shot(Way::Signals)),
        ("Unix socket, one connection per question", one_shot(Way::Unix)),
        ("TCP, one connection per question", one_shot(Way::Tcp(tcp))),
        ("Unix socket, connection kept", kept(unix)),
        ("TCP, connection kept", kept(stream)),
    ]
}

/// Asks again and again on one connection.
fn kept(mut stream: impl Read + Write + 'static) -> Ask {
    let question = Question { nonce: [7; 16], n: N, pid: std::process::id() as i32 }.to_bytes();
    Box::new(move || {
        stream.write_all(&question).unwrap();
        let mut answer = [0; HEAD + 4 * N as usize];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[8..24], [7; 16]);
    })
}

fn main() {
    let server = Server::start();
    let mut ways = ways(&server.temp.path().join("run"), server.tcp);
    let mut criterion = Criterion::default()
        .configure_from_args()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    let mut group = criterion.benchmark_group("round trip");
    for (name, ask) in ways.iter_mut().filter(|(name, _)| !name.starts_with("TCP, one")) {
        group.bench_function(*name, |bencher| bencher.iter(&mut *ask));
    }
    group.finish();
    println!("{}", compared(&mut ways));
}

/// A hundred questions of each way in turn, so that other load on the machine affects all ways.
fn compared(ways: &mut [(&'static str, Ask)]) -> String {
    let mut spent = vec![Duration::ZERO; ways.len()];
    for _ in 0..ROUNDS {
        for ((_, ask), spent) in ways.iter_mut().zip(&mut spent) {
            let start = Instant::now();
            (0..PER_ROUND).for_each(|_| ask());
            *spent += start.elapsed();
        }
    }
    let rate = |spent: &Duration| (ROUNDS * PER_ROUND) as f64 / spent.as_secs_f64();
    let first = rate(&spent[0]);
    let lines = ways.iter().zip(&spent).map(|((name, _), spent)| {
        format!("{name:40} {:>6.0} round trips/s {:>5.2} times", rate(spent), rate(spent) / first)
    });
    lines.collect::<Vec<_>>().join("\n")
}

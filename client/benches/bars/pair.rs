//! Pairs: the CPU time that this client and another one use for the same work, round by round in shuffled order.
//!
//! The CPU time is that of the whole process from exec to exit, as the kernel tells it when the process is waited for;
//! the number of requests is the server's own.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use client::compare::{median_interval, shuffle};
use client::random::Random;
use client::report::Interval;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::face::{self, Face};

/// Connections at once, in every pair.
pub const CLIENTS: u32 = 10;
/// A peer has started to send by then.
const STARTED: Duration = Duration::from_secs(10);

/// Words of a command; `{port}` in them is the server's.
pub type Words = Vec<String>;

/// This client against another program.
pub struct Pair {
    pub what: String,
    pub bound: Option<f64>,
    /// What the server speaks.
    pub face: String,
    pub own: Words,
    pub other: Words,
    /// A server for each run: no port is in TIME_WAIT towards it yet.
    pub fresh: bool,
}

/// What the rounds say of a pair.
pub struct Ratio {
    /// CPU time of one request, in microseconds.
    pub own_us: f64,
    pub other_us: f64,
    pub ratio: Interval,
}

pub fn words(text: &str) -> Words {
    text.split_whitespace().map(str::to_owned).collect()
}

/// This client, as a command.
pub fn client(args: &[&str]) -> Words {
    let always = ["-q", "-p", "{port}", "-c"];
    let mut words = vec![env!("CARGO_BIN_EXE_client").to_owned()];
    words.extend(always.iter().chain([&CLIENTS.to_string().as_str()]).chain(args).map(|word| (*word).to_owned()));
    words
}

/// Plays all pairs in so many rounds.
pub fn play(pairs: &[Pair], rounds: usize, note: &mut dyn FnMut(usize)) -> Vec<Ratio> {
    let mut servers: Vec<Option<Face>> =
        pairs.iter().map(|pair| (!pair.fresh).then(|| Face::start(&pair.face))).collect();
    let mut random = Random::new(1);
    let mut costs = vec![Vec::new(); pairs.len()];
    for round in 0..rounds {
        // The two runs of a pair follow one another, so that they meet the same machine.
        let mut order: Vec<usize> = (0..pairs.len()).collect();
        shuffle(&mut order, &mut random);
        let first: Vec<bool> = order.iter().map(|_| random.unit() < 0.5).collect();
        let order = order.into_iter().zip(first).flat_map(|(n, own)| [(n, own), (n, !own)]);
        let mut row = vec![(f64::NAN, f64::NAN); pairs.len()];
        for (n, own) in order {
            let pair = &pairs[n];
            let mut fresh = None;
            let server = servers[n].as_mut().unwrap_or_else(|| fresh.insert(Face::start(&pair.face)));
            let us = cost(if own { &pair.own } else { &pair.other }, server);
            *(if own { &mut row[n].0 } else { &mut row[n].1 }) = us;
        }
        costs.iter_mut().zip(row).for_each(|(costs, us): (&mut Vec<(f64, f64)>, _)| costs.push(us));
        note(round + 1);
    }
    servers.clear();
    face::unpin();
    costs.iter().map(|costs| of(costs, &mut random)).collect()
}

fn of(costs: &[(f64, f64)], random: &mut Random) -> Ratio {
    let ratios: Vec<f64> = costs.iter().map(|(own, other)| own / other).collect();
    let middle = |pick: fn(&(f64, f64)) -> f64| client::compare::median(&costs.iter().map(pick).collect::<Vec<_>>());
    Ratio { own_us: middle(|cost| cost.0), other_us: middle(|cost| cost.1), ratio: median_interval(&ratios, random) }
}

/// Microseconds of CPU time per request of this command.
fn cost(words: &Words, server: &mut Face) -> f64 {
    let (before, answered) = (children_us(), server.answered());
    let status = command(words, &server.port).status().unwrap();
    let used = children_us() - before;
    assert!(status.success(), "{}: {status}", words.join(" "));
    let requests = server.answered() - answered;
    assert!(requests > 0, "{}: no request was answered", words.join(" "));
    used / requests as f64
}

/// System calls per request of this command, by strace.
pub fn syscalls(words: &Words, face: &str) -> f64 {
    let mut server = Face::start(face);
    let table = tempfile::NamedTempFile::new().unwrap();
    let strace = ["strace", "-f", "-c", "-o", table.path().to_str().unwrap()].map(str::to_owned).to_vec();
    assert!(command(&[strace, words.clone()].concat(), &server.port).status().unwrap().success());
    face::unpin();
    let text = std::fs::read_to_string(table.path()).unwrap();
    let total = text.lines().rev().find(|line| line.ends_with(" total")).unwrap();
    let calls: u64 = total.split_whitespace().nth(3).unwrap().parse().unwrap();
    calls as f64 / server.answered() as f64
}

fn command(words: &[String], port: &str) -> Command {
    let mut words = words.iter().map(|word| word.replace("{port}", port));
    let mut command = Command::new(words.next().unwrap());
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// CPU time of the children that were waited for, in microseconds.
fn children_us() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e6 + time.tv_usec() as f64;
    micros(usage.user_time()) + micros(usage.system_time())
}

/// The first request that an HTTP client sends, for `--request`: the port it was sent to stands as `{port}` in it.
pub fn request_of(peer: &Words) -> Option<String> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let mut child = Ending(command(peer, &port).spawn().ok()?);
    let begin = Instant::now();
    while begin.elapsed() < STARTED && child.0.try_wait().unwrap().is_none() {
        // Some connect once and close, to see whether anybody is there.
        let Some(head) = listener.accept().ok().and_then(|(conn, _)| head(conn)) else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        let text = String::from_utf8(head).ok()?.replace('\\', "\\\\").replace('\r', "\\r").replace('\n', "\\n");
        return Some(text.replace(&format!(":{port}"), ":{port}"));
    }
    None
}

fn head(mut conn: TcpStream) -> Option<Vec<u8>> {
    conn.set_nonblocking(false).ok()?;
    conn.set_read_timeout(Some(STARTED)).ok()?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        conn.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    Some(head)
}

struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGKILL).ok();
        self.0.wait().ok();
    }
}

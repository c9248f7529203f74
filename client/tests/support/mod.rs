//! Small servers, each with one habit, and the real client run against them under a watchdog.
#![allow(dead_code)] // no test file uses all of it
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr)]

pub mod rig;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// No run in these tests may last longer: it would be a hang.
const WATCHDOG: Duration = Duration::from_secs(60);

/// A server on a port of the kernel's choice. Its threads end with the test's process.
pub struct Server {
    pub addr: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Server {
    /// Each connection goes to `serve`, in a thread of its own.
    pub fn with(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Server {
        let serve = Arc::new(serve);
        Server::mortal(usize::MAX, move |conn, _| {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(conn));
        })
    }

    /// Each connection goes to `serve`, one after the other, with its number from 0. The listener is closed before
    /// the last of `lives` is served, so that it is a definite client who finds nobody there.
    pub fn mortal(lives: usize, serve: impl Fn(TcpStream, usize) + Send + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        thread::spawn(move || {
            let mut listener = Some(listener);
            for number in 0..lives {
                let (conn, _) = listener.as_ref().unwrap().accept().unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                if number + 1 == lives {
                    listener = None;
                }
                serve(conn, number);
            }
        });
        Server { addr, accepted }
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    pub fn port(&self) -> String {
        self.addr.port().to_string()
    }
}

pub fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| b'a' + (i % 26) as u8).collect()
}

/// The next request on a connection; `None` when the client has closed it.
pub fn request(conn: &mut BufReader<TcpStream>) -> Option<usize> {
    let mut line = String::new();
    match conn.read_line(&mut line) {
        Ok(n) if n > 0 => Some(line.trim_end().parse().unwrap()),
        _ => None,
    }
}

/// Answers every request rightly until the client closes.
pub fn serve_well(conn: TcpStream) {
    let mut conn = BufReader::new(conn);
    while let Some(n) = request(&mut conn) {
        if conn.get_mut().write_all(&pattern(n)).is_err() {
            return;
        }
    }
}

/// Reads one request, sends `answer(n)` in one write, and closes in good order once the client has.
pub fn answer_once(conn: TcpStream, answer: impl Fn(usize) -> Vec<u8>) {
    let mut conn = BufReader::new(conn);
    let Some(n) = request(&mut conn) else { return };
    if conn.get_mut().write_all(&answer(n)).is_ok() {
        conn.get_mut().shutdown(std::net::Shutdown::Write).ok();
        conn.read_to_end(&mut Vec::new()).ok();
    }
}

/// The real client with these arguments.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_client"));
    command.args(args);
    command
}

/// What a run of the client came to.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// The count of the failure table's row with this title, and its phase.
    pub fn failures(&self, title: &str) -> Option<(String, u64)> {
        let row = self.out.lines().find(|line| line.contains(title) && line.contains('%'))?;
        let (phase, rest) = row.split_once(' ')?;
        let count = rest.trim_start().strip_prefix(title)?.split_whitespace().next()?;
        Some((phase.to_owned(), count.parse().ok()?))
    }

    #[track_caller]
    pub fn expect(self, code: i32, parts: &[&str]) -> Ran {
        assert_eq!(self.code, code, "{self:#?}");
        for part in parts {
            assert!(
                self.out.contains(part) || self.err.contains(part),
                "{part:?} is missing in {}{}",
                self.out,
                self.err
            );
        }
        self
    }

    /// One kind of failure, in this phase, so often; the run's exit status says so.
    #[track_caller]
    pub fn expect_failures(self, phase: &str, title: &str, count: u64) -> Ran {
        assert_eq!(self.failures(title), Some((phase.to_owned(), count)), "{}{}", self.out, self.err);
        self.expect(1, &["advice: ", "FAILED"])
    }
}

/// Runs the client to its end.
#[track_caller]
pub fn client(server: &Server, args: &[&str]) -> Ran {
    run(&mut command(&[&["-q", "-p", &server.port()], args].concat()))
}

/// Runs a command to its end, which the watchdog brings about if need be; then the test fails.
#[track_caller]
pub fn run(command: &mut Command) -> Ran {
    run_within(WATCHDOG, command)
}

/// The same for a run that may last so long.
#[track_caller]
pub fn run_within(watchdog: Duration, command: &mut Command) -> Ran {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    finish_within(watchdog, command.spawn().unwrap())
}

#[track_caller]
pub fn finish(child: Child) -> Ran {
    finish_within(WATCHDOG, child)
}

#[track_caller]
fn finish_within(watchdog: Duration, child: Child) -> Ran {
    let pid = child.id();
    let (done, finished) = mpsc::channel();
    let waiter = thread::spawn(move || {
        let output = child.wait_with_output();
        done.send(()).ok();
        output.unwrap()
    });
    let hung = finished.recv_timeout(watchdog) == Err(RecvTimeoutError::Timeout);
    if hung {
        // It is not waited for yet, so the number is still its own.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::SIGKILL).unwrap();
    }
    let Output { status, stdout, stderr } = waiter.join().unwrap();
    let ran = Ran {
        code: status.code().unwrap_or(-1),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    };
    assert!(!hung, "the client hung: {ran:#?}");
    ran
}

/// Whether the tool is there. If not, says that the test is skipped, or fails where every test has to run.
pub fn have(tool: &str, test: &str) -> bool {
    let found = Command::new(tool).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        let must = std::env::var_os("REQUIRE_ALL_TESTS").is_some_and(|value| value == "1");
        assert!(!must, "{test}: {tool} is not installed");
        eprintln!("SKIPPED: {test}: {tool} is not installed");
    }
    found
}

/// System calls of a run of the client with these arguments, by name; `total` is one of the names.
pub fn syscalls(args: &[&str]) -> BTreeMap<String, u64> {
    let table = tempfile::NamedTempFile::new().unwrap();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-c", "-o"]).arg(table.path()).arg(env!("CARGO_BIN_EXE_client")).args(args);
    run(&mut strace).expect(0, &["OK"]);
    // Columns: share, seconds, microseconds per call, calls, errors if any, name.
    let text = std::fs::read_to_string(table.path()).unwrap();
    let rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let rows = rows.filter_map(|row| Some((row.last()?.to_string(), row.get(3)?.parse().ok()?)));
    rows.collect()
}

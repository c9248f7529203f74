//! The server in its own directory, the client, and a client that the test controls.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code
)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use fifo::record::{Answer, Nonce, Question};
use fifo::rundir::open_fifo;
use fifo::rundir::reply_path;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::Value;
use testkit::{eventually, procs};

pub const SERVER: &str = env!("CARGO_BIN_EXE_fifo-server");
pub const CLIENT: &str = env!("CARGO_BIN_EXE_fifo-client");

pub struct Running {
    pub child: Child,
    pub dir: PathBuf,
    pub ready: String,
    events: Arc<Mutex<Vec<Value>>>,
    temp: tempfile::TempDir,
}

impl Running {
    pub fn start(args: &[&str]) -> Self {
        Self::start_bin(SERVER, args)
    }

    pub fn start_bin(bin: &str, args: &[&str]) -> Self {
        Self::start_in(bin, args, tempfile::tempdir().unwrap())
    }

    pub fn start_in(bin: &str, args: &[&str], temp: tempfile::TempDir) -> Self {
        let dir = temp.path().join("run");
        let mut child = Command::new(bin)
            .arg("--dir")
            .arg(&dir)
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut ready = String::new();
        stdout.read_line(&mut ready).unwrap();
        assert!(ready.starts_with("serving in "), "{ready}");
        let events = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&events);
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                told.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Self { child, dir, ready, events, temp }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn ask(&self, args: &[&str]) -> Output {
        client(&self.dir, args).output().unwrap()
    }

    /// Checks that another client is answered.
    pub fn serves(&self) {
        let out = self.ask(&["--count", "1", "-n", "7", "--json", "--deadline", "20000"]);
        assert!(out.status.success(), "{out:?}");
        check(&out, 1, 7);
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
        if signal == Signal::SIGSTOP {
            eventually("stopped", || (procs::thread_states(self.pid()) == ['T']).then_some(()));
        }
    }

    /// The events of this kind so far; needs `--events`.
    pub fn events(&self, kind: &str) -> Vec<Value> {
        self.events.lock().unwrap().iter().filter(|event| event["event"] == kind).cloned().collect()
    }

    pub fn wait_event(&self, kind: &str, fits: impl Fn(&Value) -> bool) -> Value {
        eventually(kind, || self.events(kind).into_iter().find(|event| fits(event)))
    }

    /// The names in the directory that begin with `start`.
    pub fn names(&self, start: &str) -> Vec<String> {
        let entries = std::fs::read_dir(&self.dir).unwrap().flatten();
        entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .filter(|name| name.starts_with(start))
            .collect()
    }

    pub fn raw(&self, nonce: Nonce) -> Raw {
        Raw::new(&self.dir, std::process::id() as i32, nonce)
    }

    pub fn write_req(&self, bytes: &[u8]) {
        open_fifo(&self.dir.join("req"), OFlag::O_WRONLY).unwrap().write_all(bytes).unwrap();
    }

    /// Sends SIGTERM, and checks that the server exits with 0 and leaves no file.
    pub fn finish(mut self) {
        self.serves();
        self.signal(Signal::SIGTERM);
        assert!(self.child.wait().unwrap().success());
        assert!(!self.dir.exists(), "left: {:?}", self.names(""));
        assert_eq!(std::fs::read_dir(self.temp.path()).unwrap().count(), 0);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client that has opened its reply FIFO and has not asked.
pub struct Raw {
    pub question: Question,
    pub path: PathBuf,
    pub reply: File,
}

impl Raw {
    pub fn new(dir: &Path, pid: i32, nonce: Nonce) -> Self {
        let path = reply_path(dir, pid, &nonce);
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let reply = open_fifo(&path, OFlag::O_RDONLY).unwrap();
        Self { question: Question { nonce, n: 3, pid }, path, reply }
    }

    /// Waits for the answer, and checks that it belongs to the question.
    pub fn answer(&mut self) -> Answer {
        let mut buffer = [0; 1024];
        let n = eventually("an answer", || self.reply.read(&mut buffer).ok().filter(|n| *n > 0));
        let answer = Answer::from_bytes(&buffer[..n]).unwrap();
        assert_eq!(answer.nonce, self.question.nonce);
        answer
    }
}

pub fn client(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(CLIENT);
    command.arg("--dir").arg(dir).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Checks that the client has printed this number of answers, with `n` numbers each.
pub fn check(out: &Output, answers: usize, n: usize) {
    let text = String::from_utf8(out.stdout.clone()).unwrap();
    assert_eq!(text.lines().count(), answers, "{out:?}");
    for line in text.lines() {
        let answer: Value = serde_json::from_str(line).unwrap();
        let values: Vec<i64> =
            answer["values"].as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect();
        assert_eq!(values.len(), n);
        assert!(values.iter().all(|v| (1..=100).contains(v)), "{line}");
        assert_eq!(answer["sum"].as_i64().unwrap(), values.iter().sum::<i64>());
    }
}

//! The server of the pairs: `faces` of the crate `bench`, which shows every load generator the same loop, and counts.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// A program of the crate `bench`, beside the client.
pub fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_client")).with_file_name(name)
}

/// Builds those programs; this process runs under cargo, which has let go of its lock by now.
pub fn build() {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--quiet", "-p", "bench", "--bin", "faces", "--bin", "bare-client"]);
    assert!(cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success(), "faces does not build");
}

/// A running server. It ends when this is dropped.
pub struct Face {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    pub port: String,
}

impl Face {
    /// Starts it on the first CPU; what is started afterwards has the second.
    pub fn start(face: &str) -> Face {
        pin(0);
        let mut command = Command::new(program("faces"));
        let mut child = command.arg(face).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        pin(1);
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let port = line.trim().rsplit(':').next().unwrap().to_owned();
        Face { stdin: child.stdin.take(), child, stdout, port }
    }

    /// Requests answered so far.
    pub fn answered(&mut self) -> u64 {
        self.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim().parse().unwrap()
    }
}

impl Drop for Face {
    fn drop(&mut self) {
        drop(self.stdin.take());
        self.child.wait().ok();
    }
}

/// Keeps this process, and what it starts from now on, on one CPU: the `nth` of those it may use.
fn pin(nth: usize) {
    let cpus = allowed();
    if let Some(cpu) = cpus.get(nth).filter(|_| cpus.len() > 1) {
        let mut set = CpuSet::new();
        set.set(*cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)).unwrap();
    }
}

/// Gives this process all its CPUs back.
pub fn unpin() {
    let mut set = CpuSet::new();
    allowed().iter().for_each(|cpu| set.set(*cpu).unwrap());
    sched_setaffinity(Pid::from_raw(0), &set).unwrap();
}

fn allowed() -> &'static [usize] {
    static ALLOWED: OnceLock<Vec<usize>> = OnceLock::new();
    ALLOWED.get_or_init(|| {
        let set = sched_getaffinity(Pid::from_raw(0)).unwrap();
        (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect()
    })
}

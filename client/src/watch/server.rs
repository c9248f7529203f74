//! A server that lives as long as its load.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::prctl::{set_child_subreaper, set_pdeathsig};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use procfs::process::Process;

use super::tree::children;

/// A server that does not listen by then does not work.
const START: Duration = Duration::from_secs(20);
/// A server that has not ended by then is killed.
const END: Duration = Duration::from_secs(5);
/// Between two looks at a state that comes soon.
const LOOK: Duration = Duration::from_millis(2);
/// Lines of its stderr that are kept for the case that it fails.
const LINES: usize = 5;
/// What only a shell understands.
const SHELL: &str = "|&;<>()$`\\\"'*?[#~=%{\n";

/// A running server. Dropped, it ends with its whole tree.
pub struct Server {
    command: String,
    child: Child,
    /// Where it listens.
    pub port: u16,
    errors: Arc<Mutex<VecDeque<String>>>,
    ended: bool,
}

impl Server {
    /// Starts `command` and waits until it listens: on the port that its first line `listening on ADDR` names, else
    /// on `port`.
    pub fn start(command: &str, host: &str, port: u16, stop: &AtomicBool) -> anyhow::Result<Self> {
        // Orphans of the server come to this process, which ends them.
        set_child_subreaper(true).context("prctl PR_SET_CHILD_SUBREAPER")?;
        let mut child = build(command).spawn().with_context(|| format!("start {command}"))?;
        let errors = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(stderr) = child.stderr.take() {
            let errors = Arc::clone(&errors);
            thread::spawn(move || keep(stderr, &errors));
        }
        let first = child.stdout.take().map(first_line);
        let mut server = Server { command: command.to_owned(), child, port, errors, ended: false };
        server.await_listening(host, first, stop)?;
        Ok(server)
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn await_listening(&mut self, host: &str, first: Option<Receiver<u16>>, stop: &AtomicBool) -> anyhow::Result<()> {
        let (begin, silent) = (Instant::now(), Duration::from_millis(500));
        loop {
            if let Some(port) = first.as_ref().and_then(|first| first.try_recv().ok()) {
                self.port = port;
                return Ok(());
            }
            if let Some(status) = self.child.try_wait().context("wait for the server")? {
                self.ended = true;
                bail!("{}: {} before it listened{}", self.command, words(status), self.said());
            }
            // A server that says nothing is asked; one that says its port must not be mistaken for another one.
            if begin.elapsed() > silent && answers(host, self.port) {
                return Ok(());
            }
            if begin.elapsed() > START {
                bail!("{}: does not listen on port {} after {} s", self.command, self.port, START.as_secs());
            }
            if stop.load(Ordering::Relaxed) {
                bail!("interrupted before {} listened", self.command);
            }
            thread::sleep(LOOK);
        }
    }

    /// Ends it by SIGTERM.
    ///
    /// # Errors
    /// It ended before, or with a status that is neither 0 nor SIGTERM, or had to be killed.
    pub fn stop(mut self) -> anyhow::Result<()> {
        let early = self.child.try_wait().context("wait for the server")?;
        let status = match early {
            Some(status) => Some(status),
            None => self.terminate(),
        };
        self.sweep();
        self.ended = true;
        match (early, status) {
            (Some(status), _) => bail!("{}: {} during the run{}", self.command, words(status), self.said()),
            (_, None) => bail!("{}: still there {} s after SIGTERM, killed", self.command, END.as_secs()),
            (_, Some(status)) if status.success() || status.signal() == Some(libc::SIGTERM) => Ok(()),
            (_, Some(status)) => bail!("{}: {} at its end{}", self.command, words(status), self.said()),
        }
    }

    fn terminate(&mut self) -> Option<ExitStatus> {
        _ = kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
        let begin = Instant::now();
        while begin.elapsed() < END {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            thread::sleep(LOOK);
        }
        None
    }

    /// Kills what is left of the tree: its process group, and orphans that came to this process.
    fn sweep(&mut self) {
        _ = killpg(Pid::from_raw(self.pid()), Signal::SIGKILL);
        _ = self.child.wait();
        let begin = Instant::now();
        while begin.elapsed() < END {
            let left = Process::myself().map(|me| children(&me)).unwrap_or_default();
            if left.is_empty() {
                return;
            }
            for pid in left {
                let pid = Pid::from_raw(pid);
                _ = kill(pid, Signal::SIGKILL);
                _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            }
            thread::sleep(LOOK);
        }
    }

    fn said(&self) -> String {
        let Ok(lines) = self.errors.lock() else { return String::new() };
        lines.back().map(|line| format!(": {line}")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.ended {
            self.terminate();
            self.sweep();
        }
    }
}

fn build(line: &str) -> Command {
    let mut command = if line.contains(|c| SHELL.contains(c)) {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", line]);
        shell
    } else {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        command
    };
    // A group of its own: Ctrl-C reaches only this client, which then ends the server in good order.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(|| set_pdeathsig(Signal::SIGTERM).map_err(Into::into));
    }
    command
}

/// The port of `listening on ADDR`, if that is the first line; further lines are read and dropped.
fn first_line(stdout: impl Read + Send + 'static) -> Receiver<u16> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let mut lines = BufReader::new(stdout).split(b'\n').map_while(Result::ok);
        let first = lines.next().unwrap_or_default();
        let first = String::from_utf8_lossy(&first).into_owned();
        if let Some(port) =
            first.strip_prefix("listening on ").and_then(|addr| addr.trim().rsplit(':').next()?.parse().ok())
        {
            _ = tell.send(port);
        }
        lines.for_each(drop);
    });
    told
}

fn keep(stderr: impl Read, errors: &Mutex<VecDeque<String>>) {
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        let Ok(mut kept) = errors.lock() else { return };
        kept.push_back(String::from_utf8_lossy(&line).into_owned());
        if kept.len() > LINES {
            kept.pop_front();
        }
    }
}

fn answers(host: &str, port: u16) -> bool {
    let Ok(addrs) = (host, port).to_socket_addrs() else { return false };
    addrs.into_iter().any(|addr| TcpStream::connect_timeout(&addr, Duration::from_millis(200)).is_ok())
}

fn words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (_, Some(signal)) => format!("was ended by signal {signal}"),
        _ => "ended".to_owned(),
    }
}

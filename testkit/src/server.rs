//! Starts an example as a user would, on a port the kernel chooses, and ends it whatever the test does.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::peer::Peer;
use crate::procs::{self, Proc};

/// How long a test waits for something that must happen. Never a measure of speed: passing takes a fraction of it.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// Every process of one test's server carries this variable, children and orphans too.
pub(crate) const MARKER: &str = "TESTKIT_SERVER";

static SERVERS: AtomicU32 = AtomicU32::new(0);

/// What a server has written to stderr, and whether that was all.
#[derive(Default)]
struct Log {
    text: Mutex<(String, bool)>,
    changed: Condvar,
}

/// A running example. Dropping it kills whatever is left of its family.
pub struct Server {
    child: Child,
    marker: String,
    log: Arc<Log>,
    /// The inode number of its listening socket.
    listener: Option<u64>,
    /// Where it listens.
    pub addr: SocketAddr,
}

impl Server {
    /// Starts `bin -p 0 ARGS` and waits for its ready line.
    pub fn start(bin: impl AsRef<Path>, args: &[&str]) -> Server {
        Server::start_with(Command::new(bin.as_ref()).args(["-p", "0"]).args(args))
    }

    /// Starts a prepared command and waits for its ready line. Its stdout is read to the end.
    pub fn start_with(command: &mut Command) -> Server {
        Server::try_start(command).unwrap_or_else(|e| panic!("{e}"))
    }

    /// [`Server::start_with`] for programs that are no tests.
    ///
    /// # Errors
    /// One line: it cannot be started, or ended or stayed silent instead of listening.
    pub fn try_start(command: &mut Command) -> Result<Server, String> {
        procs::prepare_harness();
        let marker = new_marker();
        command.env(MARKER, &marker).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("{}: {e}", command.get_program().display()))?;
        let log = Arc::new(Log::default());
        collect(child.stderr.take().unwrap(), Arc::clone(&log));

        let (send, ready) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || stdout.lines().map_while(Result::ok).for_each(|line| drop(send.send(line))));
        let line = ready.recv_timeout(TIMEOUT);
        let addr = line.as_ref().ok().and_then(|line| line.strip_prefix("listening on ")?.parse().ok());
        let mut server = Server { child, marker, log, listener: None, addr: (Ipv4Addr::LOCALHOST, 0).into() };
        match addr {
            Some(addr) => server.addr = addr,
            None => {
                let _ = server.child.kill();
                server.drain_log();
                return Err(format!("no ready line, but {line:?}: {}", server.log().trim()));
            }
        }
        server.listener = procs::listening_socket_of(&server).map(|(_, inode)| inode);
        Ok(server)
    }

    /// Starts a prepared command whose output goes elsewhere, and looks in /proc for the port it listens on.
    pub fn start_blind(command: &mut Command) -> Server {
        procs::prepare_harness();
        let marker = new_marker();
        let child = command.env(MARKER, &marker).stdin(Stdio::null()).spawn().unwrap();
        let mut server =
            Server { child, marker, log: Arc::default(), listener: None, addr: (Ipv4Addr::LOCALHOST, 0).into() };
        let (port, listener) = eventually("it listens", || {
            assert!(server.exited().is_none(), "{command:?} has ended");
            procs::listening_socket_of(&server)
        });
        server.addr.set_port(port);
        server.listener = Some(listener);
        server
    }

    /// Process id of the process that was started.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// A fresh client.
    pub fn connect(&self) -> Peer {
        Peer::connect(self.addr)
    }

    /// What it has written to stderr so far.
    pub fn log(&self) -> String {
        self.log.text.lock().unwrap().0.clone()
    }

    /// Waits until the log holds `text`.
    pub fn wait_log(&self, text: &str) {
        let seen = self.wait_text(TIMEOUT, |log, _| log.contains(text));
        assert!(seen, "the log never said '{text}': {}", self.log());
    }

    /// After the end: what it wrote last may still be in the pipe. An orphan that keeps stderr open is not waited for.
    fn drain_log(&self) {
        self.wait_text(Duration::from_secs(1), |_, ended| ended);
    }

    fn wait_text(&self, patience: Duration, there: impl Fn(&str, bool) -> bool) -> bool {
        let text = self.log.text.lock().unwrap();
        let waited = self.log.changed.wait_timeout_while(text, patience, |(text, ended)| !there(text, *ended));
        !waited.unwrap().1.timed_out()
    }

    /// Its processes, the first one included, zombies and orphans included.
    pub fn family(&self) -> Vec<Proc> {
        procs::family(self.pid(), &self.marker)
    }

    /// Sends a signal to the first process.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// The exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let status = eventually("the server ends", || self.exited());
        self.drain_log();
        status
    }

    /// SIGTERM, and what must follow: exit 0, no process left, no listening socket left.
    ///
    /// # Errors
    /// What did not follow.
    pub fn stop(&mut self) -> Result<(), String> {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + TIMEOUT / 2;
        let status = loop {
            match self.exited() {
                Some(status) => break status,
                None if Instant::now() > deadline => return Err("SIGTERM did not end it".into()),
                None => thread::sleep(Duration::from_millis(2)),
            }
        };
        self.drain_log();
        if status.code() != Some(0) {
            return Err(format!("after SIGTERM: {}, {}", describe(status), self.log()));
        }
        let left = self.family();
        if !left.is_empty() {
            return Err(format!("left behind after SIGTERM: {left:?}"));
        }
        match self.listener.is_some_and(procs::listens) {
            true => Err("the listening socket outlives the server".into()),
            false => Ok(()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let family = self.family();
        let _ = self.child.kill();
        let _ = self.child.wait();
        procs::end_family(&family, self.pid());
    }
}

/// Polls until `look` has something to say; what is waited for is an event, and the pause only spares the CPU.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn new_marker() -> String {
    format!("{}-{}", std::process::id(), SERVERS.fetch_add(1, Ordering::Relaxed))
}

/// An exit status in words.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (_, Some(signal)) => format!("killed by signal {signal}"),
        _ => "ended".into(),
    }
}

fn collect(mut from: impl Read + Send + 'static, into: Arc<Log>) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            into.text.lock().unwrap().0.push_str(&String::from_utf8_lossy(&buffer[..n]));
            into.changed.notify_all();
        }
        into.text.lock().unwrap().1 = true;
        into.changed.notify_all();
    });
}

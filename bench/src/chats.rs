//! The chats, and what they are compared with: how each is started, and what its processes use.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use client::room::Wire;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use testkit::{Server, catalogue, procs};

use crate::subject::pin;

/// A server must listen by then.
const START: Duration = Duration::from_secs(20);
/// Our servers without what protects them from a load client: no rate limit; and no log. The queues are as long as
/// ever.
const FREE: &[&str] = &["--no-log", "--rate", "1000000", "--burst", "1000000"];

/// A chat that can be measured.
pub struct Chat {
    /// What the tables call it.
    pub name: String,
    /// Its version, where it is not ours.
    pub version: String,
    /// What it speaks.
    pub wire: Wire,
    start: Start,
}

enum Start {
    Ours { bin: PathBuf, args: Vec<String> },
    Redis,
    Mosquitto,
    Ngircd,
}

/// A chat that runs, on one CPU of its own. Dropped, it ends.
pub struct Running {
    /// Where it listens.
    pub port: u16,
    pid: i32,
    _server: Option<Server>,
    child: Option<Child>,
    _folder: TempDir,
}

/// Builds ours for release, finds the others, and says what is missing.
///
/// # Errors
/// Where cargo fails.
pub fn all(root: &Path, say: &mut dyn FnMut(&str)) -> Result<Vec<Chat>> {
    let examples: Vec<_> = catalogue::examples(root)?.into_iter().filter(|example| example.family == "chat").collect();
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--release", "--quiet", "--bins"]).current_dir(root);
    build.args(examples.iter().flat_map(|example| ["--package", &example.name]));
    ensure!(build.status()?.success(), "the chats do not build");
    let mut chats = Vec::new();
    for example in examples {
        let bin = root.join("target/release").join(&example.name);
        // Only what is another model; another policy for slow readers makes no difference where nobody is slow.
        let variants = example.variants.iter().filter(|variant| variant.args.iter().any(|arg| arg == "--poller"));
        let plain = [(example.name.clone(), Vec::new())];
        let named = variants.map(|variant| (format!("{} {}", example.name, variant.name), variant.args.clone()));
        for (name, args) in plain.into_iter().chain(named) {
            let start = Start::Ours { bin: bin.clone(), args };
            chats.push(Chat { name, version: String::new(), wire: Wire::Room, start });
        }
    }
    for (program, package, wire, start) in [
        ("redis-server", "redis-server", Wire::Redis, Start::Redis),
        ("mosquitto", "mosquitto", Wire::Mqtt, Start::Mosquitto),
        ("ngircd", "ngircd", Wire::Irc, Start::Ngircd),
    ] {
        match version(program) {
            Some(version) => chats.push(Chat { name: program.into(), version, wire, start }),
            None => say(&format!("{program} is not here: apt-get install {package}")),
        }
    }
    Ok(chats)
}

/// Where Debian keeps daemons, whatever the PATH says.
fn program(name: &str) -> PathBuf {
    let sbin = Path::new("/usr/sbin").join(name);
    if sbin.exists() { sbin } else { name.into() }
}

/// What it says of itself, or None where it is missing.
fn version(name: &str) -> Option<String> {
    // mosquitto tells its version in its help only, with status 3.
    let option = if name == "mosquitto" { "-h" } else { "--version" };
    let said = Command::new(program(name)).arg(option).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    Some(text.lines().next().unwrap_or_default().chars().take(60).collect())
}

impl Chat {
    /// Starts it ready for so many members, and leaves the other CPU to the client.
    ///
    /// # Errors
    /// It does not listen.
    pub fn start(&self, members: u32) -> Result<Running> {
        let folder = tempfile::tempdir().context("a folder for the server")?;
        pin(0);
        let started = self.start_in(folder, members);
        pin(1);
        started.with_context(|| self.name.clone())
    }

    fn start_in(&self, folder: TempDir, members: u32) -> Result<Running> {
        if let Start::Ours { bin, args } = &self.start {
            let mut command = Command::new(bin);
            command.args(["-p", "0"]).args(FREE).args(["--max-conns", &(members + 8).to_string()]).args(args);
            let server = Server::try_start(command.current_dir(folder.path())).map_err(anyhow::Error::msg)?;
            let (port, pid) = (server.addr.port(), server.pid());
            return Ok(Running { port, pid, _server: Some(server), child: None, _folder: folder });
        }
        // They take no port 0: one that was free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = self.start.peer(port, folder.path())?;
        command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn()?;
        let pid = child.id() as i32;
        let mut running = Running { port, pid, _server: None, child: Some(child), _folder: folder };
        running.listens()?;
        Ok(running)
    }
}

impl Start {
    fn peer(&self, port: u16, folder: &Path) -> Result<Command> {
        let file = |text: String| -> Result<PathBuf> {
            let path = folder.join("conf");
            fs::File::create(&path)?.write_all(text.as_bytes())?;
            Ok(path)
        };
        Ok(match self {
            Start::Ours { .. } => bail!("ours are started elsewhere"),
            Start::Redis => {
                let mut command = Command::new(program("redis-server"));
                command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
                command.args(["--maxclients", "10000"]);
                command
            }
            Start::Mosquitto => {
                let conf = format!(
                    "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\nlog_type none\nuser root\n"
                );
                let mut command = Command::new(program("mosquitto"));
                command.arg("-c").arg(file(conf)?);
                command
            }
            Start::Ngircd => {
                let conf = format!(
                    "[Global]\nName = irc.room.test\nInfo = room\nListen = 127.0.0.1\nPorts = {port}\n\
                     [Limits]\nMaxConnections = 0\nMaxConnectionsIP = 0\nMaxJoins = 0\nMaxNickLength = 20\n\
                     MaxPenaltyTime = 0\n[Options]\nDNS = no\nIdent = no\nPAM = no\n"
                );
                let mut command = Command::new(program("ngircd"));
                command.arg("-n").arg("-f").arg(file(conf)?);
                command
            }
        })
    }
}

impl Running {
    fn listens(&mut self) -> Result<()> {
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            ensure!(ended.is_none(), "ended at its start: {ended:?}");
            ensure!(start.elapsed() < START, "does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// The process and all below it.
    pub fn family(&self) -> Vec<i32> {
        let all: Vec<(i32, i32)> = procfs::process::all_processes().map_or(Vec::new(), |all| {
            all.flatten().filter_map(|process| process.stat().ok()).map(|stat| (stat.pid, stat.ppid)).collect()
        });
        let mut family = vec![self.pid];
        let mut at = 0;
        while let Some(parent) = family.get(at).copied() {
            family.extend(all.iter().filter(|(_, ppid)| *ppid == parent).map(|(pid, _)| *pid));
            at += 1;
        }
        family
    }

    /// CPU time of the living so far.
    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(self.family().into_iter().map(procs::cpu_ns).sum())
    }

    /// Proportional set size: what is shared by two is half of each, so that forked processes are not counted twice.
    pub fn pss(&self) -> u64 {
        let of = |pid| {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let kib =
                text.lines().find_map(|line| line.strip_prefix("Pss:")).and_then(|rest| rest.split_whitespace().next());
            kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() * 1024
        };
        self.family().into_iter().map(of).sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGTERM);
            let start = Instant::now();
            while child.try_wait().is_ok_and(|status| status.is_none()) {
                if start.elapsed() > Duration::from_secs(3) {
                    let _ = child.kill();
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

//! The chat conformance suite: one named test per row, for one chat server, over its wire.
//!
//! `README.md` beside this file says what the suite expects where the protocol's text is open.

mod commands;
mod handshake;
pub mod history;
mod life;
mod member;
mod nemesis;
mod peers;
mod slow;
mod words;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use libtest_mimic::{Arguments, Trial};
use tempfile::TempDir;

pub use self::member::{GREETING, Member};
use crate::catalogue::{self, Example, SlowReader};
use crate::oracle::{self, Baseline, Service};
use crate::server::Server;

/// The chat log of the rows that ask for one, in the server's working directory.
pub const LOG: &str = "chat_log.txt";
/// The server writes a chat log.
pub const LOGGED: [&str; 2] = ["--log", LOG];
/// So many lines a second that no row but those about the rate meets the limit.
pub const FAST: [&str; 4] = ["--rate", "100000", "--burst", "100000"];

/// The service of the chats. The history ring may fill up in a test: a thousand lines of up to 1 KiB.
pub const CHAT: Service = Service { visit: one_visit, crowd: two_talk, slack: 8 << 20 };

/// A row of the suite: its name and what it does.
pub type Row = (&'static str, fn(&Subject));

/// The chat server under test.
pub struct Subject {
    /// Its binary.
    pub bin: String,
    /// Arguments of the variant under test, given at every start.
    pub variant: Vec<String>,
    /// What it says of itself.
    pub example: Example,
}

/// A running chat, in a folder of its own.
pub struct Room {
    /// The server.
    pub server: Server,
    dir: TempDir,
}

/// Runs every row against the binary of the example in `manifest_dir`.
pub fn conformance(bin: &str, manifest_dir: &str) {
    conformance_with(bin, manifest_dir, &[]);
}

/// One row of the suite, for a variant that differs in that only.
///
/// # Panics
/// Where the row fails, or there is none of that name.
pub fn row(bin: &str, manifest_dir: &str, variant: &[&str], name: &str) {
    let example = catalogue::example(Path::new(manifest_dir)).unwrap_or_else(|e| panic!("{e:#}"));
    let variant = variant.iter().map(|arg| (*arg).to_owned()).collect();
    let (_, row) = rows().into_iter().find(|(known, _)| *known == name).expect("a row of that name");
    row(&Subject { bin: bin.to_owned(), variant, example });
}

/// [`conformance`] of a variant: these arguments are given at every start.
pub fn conformance_with(bin: &str, manifest_dir: &str, variant: &[&str]) {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(4));
    let example = catalogue::example(Path::new(manifest_dir)).unwrap_or_else(|e| panic!("{e:#}"));
    let variant = variant.iter().map(|arg| (*arg).to_owned()).collect();
    let subject = Arc::new(Subject { bin: bin.to_owned(), variant, example });
    let trials = rows().into_iter().map(|(name, row)| {
        let subject = Arc::clone(&subject);
        Trial::test(name, move || {
            row(&subject);
            Ok(())
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

/// All rows, in the order of the files.
pub fn rows() -> Vec<Row> {
    [handshake::ROWS, words::ROWS, commands::ROWS, peers::ROWS, slow::ROWS, life::ROWS, nemesis::ROWS].concat()
}

impl Subject {
    /// The command of the variant, without a port, in a folder.
    pub fn command(&self, dir: &Path) -> Command {
        let mut command = Command::new(&self.bin);
        command.args(&self.variant).current_dir(dir);
        command
    }

    /// A fresh server in a fresh folder.
    pub fn start(&self, args: &[&str]) -> Room {
        self.start_in(tempfile::tempdir().unwrap(), args)
    }

    /// A fresh server in a folder that another one may have left.
    pub fn start_in(&self, dir: TempDir, args: &[&str]) -> Room {
        let server = Server::start_with(self.command(dir.path()).args(["-p", "0"]).args(args));
        Room { server, dir }
    }

    /// A fresh server, abused by `body`; then the oracle, SIGTERM, and what must follow it.
    pub fn abused(&self, args: &[&str], body: impl FnOnce(&Room)) {
        let room = self.start(args);
        // What a queue without an end has grown to, glibc gives back only where it ends the heap.
        let slack = if self.grows() { 2 * slow::FLOOD as u64 } else { 0 };
        let base = Baseline::of_service(&room.server, Service { slack: CHAT.slack + slack, ..CHAT });
        body(&room);
        room.finish(&base);
    }

    /// Whether the server, as it is started here, keeps whatever a member does not read.
    fn grows(&self) -> bool {
        self.variant.iter().any(|arg| arg == "grow")
    }

    /// What the server, as it is started here, does with a member that does not read.
    pub fn slow_reader(&self) -> SlowReader {
        let given = self.variant.iter().skip_while(|arg| *arg != "--slow").nth(1).map(String::as_str);
        match given {
            Some("block") => SlowReader::Block,
            Some("grow") => SlowReader::Grow,
            Some("drop") => SlowReader::Drop,
            Some("kick") => SlowReader::Kick,
            _ => self.example.slow_reader.expect("[package.metadata.example] needs slow-reader"),
        }
    }
}

impl Room {
    /// A new member.
    pub fn join(&self, nick: &str) -> Member {
        Member::join(self.server.addr, nick)
    }

    /// New members, each of whom has already read that the others came.
    pub fn gather<const N: usize>(&self, nicks: [&str; N]) -> [Member; N] {
        let mut members = nicks.map(|nick| self.join(nick));
        members.iter_mut().for_each(|member| drop(member.sync()));
        members
    }

    /// A connection that has said nothing yet.
    pub fn connect(&self) -> Member {
        Member::connect(self.server.addr)
    }

    /// What is in the log file; nothing where there is none yet.
    pub fn log_file(&self) -> String {
        fs::read_to_string(self.dir.path().join(LOG)).unwrap_or_default()
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The oracle, SIGTERM, and nothing left but the log.
    pub fn finish(self, base: &Baseline) {
        let Room { server, dir } = self;
        oracle::finish(server, base);
        only_the_log(dir.path());
    }

    /// SIGTERM, and the folder for another start.
    pub fn stop(mut self) -> TempDir {
        self.server.stop().unwrap_or_else(|fault| panic!("{fault}"));
        only_the_log(self.dir.path());
        self.dir
    }
}

/// The log and, once it was full, its predecessor.
fn only_the_log(dir: &Path) {
    let names = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let left: Vec<String> = names.filter(|name| !name.starts_with(LOG)).collect();
    assert!(left.is_empty(), "left behind in the working directory: {left:?}");
}

/// Nobody else has this nick.
fn fresh_nick() -> String {
    static NICKS: AtomicU32 = AtomicU32::new(0);
    format!("probe-{}", NICKS.fetch_add(1, Ordering::Relaxed))
}

fn one_visit(server: &Server) -> Result<(), String> {
    let mut member = Member::try_join(server.addr, &fresh_nick())?;
    member.try_send("/quit\n").map_err(|e| format!("send: {e}"))?;
    drop(member.rest());
    Ok(())
}

/// Two fresh members hear each other.
fn two_talk(server: &Server) -> Result<(), String> {
    let nicks = [fresh_nick(), fresh_nick()];
    let mut here = Member::try_join(server.addr, &nicks[0])?;
    let mut there = Member::try_join(server.addr, &nicks[1])?;
    for (from, to, nick) in [(true, false, &nicks[0]), (false, true, &nicks[1])] {
        assert_ne!(from, to);
        let (speaker, listener) = if from { (&mut here, &mut there) } else { (&mut there, &mut here) };
        speaker.try_send("are you there\n").map_err(|e| format!("send: {e}"))?;
        let wanted = format!("<{nick}> are you there");
        loop {
            match listener.next() {
                Ok(line) if line == wanted => break,
                Ok(_) => {}
                Err(end) => return Err(format!("a fresh member does not hear another: {end:?}")),
            }
        }
    }
    for mut member in [here, there] {
        member.try_send("/quit\n").map_err(|e| format!("send: {e}"))?;
        drop(member.rest());
    }
    Ok(())
}

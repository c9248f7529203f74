//! The conformance suite: one named test per row, for one server.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

use crate::catalogue::{self, Example, Overload};
use crate::oracle::{self, Baseline};
use crate::server::Server;

/// The server under test.
pub struct Subject {
    pub bin: String,
    /// Arguments of the variant under test, given at every start.
    pub variant: Vec<String>,
    pub example: Example,
}

/// A row of the suite: its name and what it does.
pub type Row = (&'static str, fn(&Subject));

/// Runs every row that applies to the example in `manifest_dir` against its binary. The rows wait more than they work,
/// so several run at a time.
pub fn conformance(bin: &str, manifest_dir: &str) {
    conformance_with(bin, manifest_dir, &[]);
}

/// [`conformance`] of a variant: these arguments are given at every start.
pub fn conformance_with(bin: &str, manifest_dir: &str, variant: &[&str]) {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(4));
    let example = catalogue::example(Path::new(manifest_dir)).unwrap_or_else(|e| panic!("{e:#}"));
    let subject = Arc::new(Subject {
        bin: bin.to_owned(),
        variant: variant.iter().map(|arg| (*arg).to_owned()).collect(),
        example,
    });
    let rows = [crate::cases::ROWS, crate::peers::ROWS, crate::faults::ROWS, crate::life::ROWS].concat();
    let trials = rows.into_iter().map(|(name, row)| {
        let subject = Arc::clone(&subject);
        Trial::test(name, move || {
            row(&subject);
            Ok(())
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

impl Subject {
    /// The command of the variant, without a port.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.bin);
        command.args(&self.variant);
        command
    }

    /// A fresh server.
    pub fn start(&self, args: &[&str]) -> Server {
        Server::start_with(self.command().args(["-p", "0"]).args(args))
    }

    /// A fresh server, abused by `body`; then the oracle, SIGTERM, and what must follow it.
    pub fn abused(&self, args: &[&str], body: impl FnOnce(&Server)) {
        let server = self.start(args);
        let base = Baseline::of(&server);
        body(&server);
        oracle::finish(server, &base);
    }

    /// True if a second client is served while the first one stays.
    pub fn is_concurrent(&self) -> bool {
        self.example.slots > 1
    }

    /// True if a client too many is told `ERR busy`; otherwise it waits in the backlog.
    pub fn refuses(&self) -> bool {
        self.example.overload == Overload::Refuse
    }

    /// True if the example lists the call among its lesson's.
    pub fn calls(&self, syscall: &str) -> bool {
        self.example.syscalls.iter().any(|call| call == syscall)
    }

    /// Arguments that let the server take `n` clients at once, and how many it takes with them.
    pub fn with_slots(&self, n: usize) -> (Vec<String>, usize) {
        match &self.example.slots_flag {
            Some(flag) => (vec![flag.clone(), n.to_string()], n),
            None => (Vec::new(), self.example.slots),
        }
    }
}

//! The designs: the bare loop, and every example of the catalogue with its variants.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use testkit::Server;
use testkit::catalogue::{self, Overload};

/// The name of the loop that everything is compared with.
pub const BARE: &str = "bare-epoll";

/// A server that can be measured.
#[derive(Clone, Debug)]
pub struct Subject {
    /// What the tables call it: the example, and the variant behind it.
    pub name: String,
    bin: std::path::PathBuf,
    args: Vec<String>,
    /// Clients it serves at once.
    slots: usize,
    /// Where a client too many is refused: the option that lets more in, if there is one.
    limit: Option<Option<String>>,
}

/// Builds everything for release, and lists it: the bare loop first.
///
/// # Errors
/// Where cargo fails.
pub fn all(root: &Path) -> Result<Vec<Subject>> {
    let examples: Vec<_> =
        catalogue::examples(root)?.into_iter().filter(|example| example.family == "byte service").collect();
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--release", "--quiet", "--package", "bench", "--bin", BARE]).current_dir(root);
    ensure!(build.status()?.success(), "the bare loop does not build");
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--release", "--quiet", "--bins"]).current_dir(root);
    build.args(examples.iter().flat_map(|example| ["--package", &example.name]));
    ensure!(build.status()?.success(), "the examples do not build");

    let bins = root.join("target/release");
    let bare = Subject { name: BARE.into(), bin: bins.join(BARE), args: Vec::new(), slots: usize::MAX, limit: None };
    let mut subjects = vec![bare];
    for example in examples {
        let limit = (example.overload == Overload::Refuse).then(|| example.slots_flag.clone());
        let plain = Subject {
            name: example.name.clone(),
            bin: bins.join(&example.name),
            args: Vec::new(),
            slots: example.slots,
            limit,
        };
        let variant = |variant: &catalogue::Variant| Subject {
            name: format!("{} {}", example.name, variant.name),
            bin: bins.join(variant.bin.as_ref().unwrap_or(&example.name)),
            args: variant.args.clone(),
            ..plain.clone()
        };
        subjects.extend(example.variants.iter().filter(|v| !v.args.is_empty() || v.bin.is_some()).map(variant));
        subjects.push(plain);
    }
    subjects.get_mut(1..).unwrap_or_default().sort_by(|a, b| a.name.cmp(&b.name));
    Ok(subjects)
}

impl Subject {
    /// Starts it ready for so many clients, on one CPU, and leaves the other to the client. `None` where the design
    /// refuses so many.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start(&self, clients: usize) -> Result<Option<Server>> {
        let mut args = self.args.clone();
        match &self.limit {
            Some(flag) if self.slots < clients => match flag {
                Some(flag) => args.extend([flag.clone(), clients.to_string()]),
                None => return Ok(None),
            },
            _ => {}
        }
        pin(0);
        let started = Server::try_start(Command::new(&self.bin).args(["-p", "0"]).args(args));
        pin(1);
        match started {
            Ok(server) => Ok(Some(server)),
            // The design's own bound, as select's: the option was out of its range.
            Err(e) if self.slots < clients && e.contains("invalid value") => Ok(None),
            Err(e) => Err(anyhow::anyhow!("{}: {e}", self.name)),
        }
    }

    /// True if it serves so many clients at once, and does not let them wait for one another.
    pub fn serves_at_once(&self, clients: usize) -> bool {
        self.slots >= clients || self.limit.is_some()
    }
}

/// Keeps this process, and what it starts from now on, on one CPU: the `nth` of those it may use, where it has two.
pub fn pin(nth: usize) {
    let me = Pid::from_raw(0);
    let online = std::thread::available_parallelism().map_or(1, usize::from);
    static ALLOWED: std::sync::OnceLock<Vec<usize>> = std::sync::OnceLock::new();
    let allowed = ALLOWED.get_or_init(|| {
        let set = sched_getaffinity(me).unwrap_or_default();
        (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect()
    });
    if online < 2 && allowed.len() < 2 {
        return;
    }
    let mut set = CpuSet::new();
    if let Some(cpu) = allowed.get(nth) {
        let _ = set.set(*cpu);
        let _ = sched_setaffinity(me, &set);
    }
}

//! Programs the tests borrow from the machine, and faults injected with strace(1).

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::procs;
use crate::server::eventually;

/// Between two looks at a process that is to be asleep.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// A process that never sleeps is let go of all the same.
const LET_GO: Duration = Duration::from_secs(2);

/// True if `tool` can be run. Otherwise the test `who` is reported as skipped by name, and where
/// `REQUIRE_ALL_TESTS=1` is set (`cargo verify` sets it) it fails.
pub fn have(tool: &str, who: &str) -> bool {
    let found =
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()));
    if !found {
        skip(who, &format!("{tool} is not installed"));
    }
    found
}

fn skip(who: &str, why: &str) {
    assert!(std::env::var("REQUIRE_ALL_TESTS").as_deref() != Ok("1"), "{who} cannot run: {why}");
    eprintln!("SKIPPED: {who}: {why}");
}

/// A command that runs what is appended to it in a user and a network namespace of its own, with loopback up: settings
/// of the kernel's network can be changed there. Where that is not permitted, `who` is reported as by [`have`].
pub fn own_network(who: &str) -> Option<Command> {
    if !have("unshare", who) || !have("ip", who) {
        return None;
    }
    let within = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["-Urn", "sh", "-c", script, "sh"]).stdin(Stdio::null());
        command
    };
    let tried = within("ip link set lo up").output().unwrap();
    if !tried.status.success() {
        skip(who, &format!("no network of its own: {}", String::from_utf8_lossy(&tried.stderr).trim()));
        return None;
    }
    Some(within("ip link set lo up && exec \"$@\""))
}

/// strace attached to a living process; dropping it detaches, so that the recovery can be watched too.
pub struct Injection {
    strace: Child,
    pids: Vec<i32>,
}

impl Injection {
    /// Makes system calls of these processes fail as strace's `-e inject=` says, for example
    /// `accept4:error=EMFILE:when=1..3`. With `follow`, their threads and the children to come too.
    pub fn attach(pids: &[i32], follow: bool, inject: &str) -> Injection {
        // Refused for a moment after another strace has let go of the same process.
        eventually("strace attaches", || Injection::try_attach(pids, follow, inject))
    }

    fn try_attach(pids: &[i32], follow: bool, inject: &str) -> Option<Injection> {
        let calls = inject.split(':').next().unwrap();
        let mut command = Command::new("strace");
        command.args(["-o", "/dev/null"]);
        command.args(pids.iter().flat_map(|pid| ["-p".to_owned(), pid.to_string()]));
        command.args(["-e", &format!("trace={calls}"), "-e", &format!("inject={inject}")]);
        if follow {
            command.arg("-f");
        }
        let mut strace = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(strace.stderr.take().unwrap());
        // A line for each: a child that has just ended is not there any more, and is not missed.
        let mut attached = 0;
        for _ in pids {
            let mut line = String::new();
            stderr.read_line(&mut line).unwrap();
            if line.contains("Operation not permitted") {
                let _ = strace.kill();
                let _ = strace.wait();
                return None;
            }
            assert!(line.contains("attached") || line.contains("No such process"), "strace: {line}");
            attached += usize::from(line.contains("attached"));
        }
        assert!(attached > 0, "strace found nobody to attach to");
        // Read on, or strace would meet a closed pipe when it reports the detaching.
        thread::spawn(move || stderr.lines().for_each(drop));
        Some(Injection { strace, pids: pids.to_vec() })
    }
}

impl Injection {
    /// Whether nobody runs, or is stopped by strace at the entry or the exit of a call.
    fn sleeps(&self) -> bool {
        self.pids.iter().flat_map(|pid| procs::thread_states(*pid)).all(|state| !matches!(state, 'R' | 't'))
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // strace makes a call fail by giving it a number that no call has, and writes the wanted error over the kernel's
        // ENOSYS when it returns. Let go in between, the process would see ENOSYS: so not before all of them sleep.
        let deadline = Instant::now() + LET_GO;
        while !(self.sleeps() && {
            thread::sleep(LOOK_AGAIN);
            self.sleeps()
        }) && Instant::now() < deadline
        {
            thread::sleep(LOOK_AGAIN);
        }
        let _ = kill(Pid::from_raw(self.strace.id() as i32), Signal::SIGTERM);
        let _ = self.strace.wait();
    }
}

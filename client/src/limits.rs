//! What this process may have and what it has used: descriptors, CPU time, memory.

use std::fs;
use std::time::Duration;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeVal;
use serde::{Deserialize, Serialize};

use crate::failure::CouldNotRun;

/// Descriptors beside those of the connections: standard streams, epoll, the files of the caller.
const RESERVE: u64 = 32;

/// Makes room for a descriptor per client: raises the soft limit of this process to the hard one if it has to.
///
/// # Errors
/// [`CouldNotRun::Descriptors`] where the hard limit is too low.
pub fn make_room(clients: u32) -> Result<(), CouldNotRun> {
    let clients = u64::from(clients);
    let need = clients + RESERVE;
    let system = |call, errno: nix::errno::Errno| CouldNotRun::System { call, source: errno.into() };
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|errno| system("getrlimit", errno))?;
    if need <= soft {
        return Ok(());
    }
    if need > hard {
        return Err(CouldNotRun::Descriptors { clients, need, hard });
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(|errno| system("setrlimit RLIMIT_NOFILE", errno))
}

/// CPU time of this process, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// In this program.
    pub user_ns: u64,
    /// In the kernel on its behalf.
    pub system_ns: u64,
}

impl Cpu {
    /// Used so far; zero if the kernel does not say.
    pub fn now() -> Self {
        let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Cpu::default() };
        Cpu { user_ns: nanos(usage.user_time()), system_ns: nanos(usage.system_time()) }
    }

    /// Used since `start`.
    pub fn since(start: Cpu) -> Self {
        Cpu::now().less(start)
    }

    /// Used by the calling thread so far.
    pub fn of_thread() -> Self {
        let Ok(usage) = getrusage(UsageWho::RUSAGE_THREAD) else { return Cpu::default() };
        Cpu { user_ns: nanos(usage.user_time()), system_ns: nanos(usage.system_time()) }
    }

    /// Used by the calling thread since `start`.
    pub fn of_thread_since(start: Cpu) -> Self {
        Cpu::of_thread().less(start)
    }

    /// Without what was used by `start`.
    pub fn less(self, start: Cpu) -> Self {
        Cpu {
            user_ns: self.user_ns.saturating_sub(start.user_ns),
            system_ns: self.system_ns.saturating_sub(start.system_ns),
        }
    }

    /// Both together.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.user_ns + self.system_ns)
    }
}

fn nanos(time: TimeVal) -> u64 {
    let nanos = i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_usec()) * 1000;
    u64::try_from(nanos).unwrap_or_default()
}

/// CPU time that all processes of this machine have used, and the kernel for them; `None` without /proc.
pub fn machine_cpu() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let ticks = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map(str::parse::<u64>);
    let ticks: Vec<u64> = ticks.collect::<Result<_, _>>().ok()?;
    // user, nice, system, idle, iowait, irq, softirq; the rest is of other machines, or counted in user already.
    let busy: u64 = ticks.iter().enumerate().filter(|(place, _)| matches!(place, 0..=2 | 5 | 6)).map(|(_, n)| n).sum();
    // SAFETY: no memory is passed.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    (per_second > 0).then(|| Duration::from_secs_f64(busy as f64 / per_second as f64))
}

/// Most memory this process has had resident, in bytes (`VmHWM`); `None` without /proc.
///
/// Not `ru_maxrss`: that one starts with the size of the process that called exec.
pub fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_clients_than_descriptors_is_one_clear_line() {
        let error = make_room(u32::MAX).unwrap_err().to_string();
        assert!(error.starts_with("4294967295 clients need 4294967327 descriptors, the hard limit is "), "{error}");
        assert!(error.contains("use -c "), "{error}");
    }

    #[test]
    fn the_machine_uses_cpu_time() {
        assert!(machine_cpu().unwrap() >= Cpu::now().total() / 2);
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(peak_memory().unwrap() > 100_000);
    }
}

//! The machine a run was made on.

use std::fs;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The machine of this client. Figures of two machines, or of two kernels, are no comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// Model of the CPU.
    pub cpu: String,
    /// Cores this process may use.
    pub cores: u64,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// When the run began, in nanoseconds since 1970.
    pub started_ns: u64,
}

impl Machine {
    /// This one, for a run that began so long ago. What the kernel does not tell is empty.
    pub fn here(ago: Duration) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(ago);
        let kib =
            field(&read("/proc/meminfo"), "MemTotal").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        Machine {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            cores: thread::available_parallelism().map_or(1, |n| n.get() as u64),
            memory_bytes: kib.map(|kib| kib * 1024),
            started_ns: u64::try_from(started.as_nanos()).unwrap_or_default(),
        }
    }
}

/// What stands behind the first `name` and its colon.
fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_kernel_and_cores() {
        let here = Machine::here(Duration::from_secs(1));
        assert!(here.kernel.starts_with(|c: char| c.is_ascii_digit()) && here.cores >= 1, "{here:?}");
        assert!(here.memory_bytes.is_some_and(|bytes| bytes > 1 << 20));
        assert!(here.started_ns > 1_700_000_000_000_000_000);
        assert_eq!(field("a : 1\nb c\t: 2 3\n", "b c").as_deref(), Some("2 3"));
    }
}

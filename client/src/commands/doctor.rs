//! `client doctor`: what this machine lets a load client have.

use std::fs;
use std::io::{self, Write};
use std::thread;

use nix::sys::resource::{Resource, getrlimit};
use serde::Serialize;

use super::FAILED;

/// Descriptors the client needs beside those of its connections.
const RESERVE: u64 = 32;
/// Connections that hold a port pair for a minute after their end, as many as a rate makes in this time.
const TIME_WAIT_SECONDS: u64 = 60;
/// The accept queue of a server that asks for a usual length is cut to somaxconn: less is little.
const LEAST_BACKLOG: u64 = 1024;

/// The options.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Print the findings as JSON
    #[arg(short, long)]
    json: bool,
    #[command(flatten)]
    _help: super::Help,
}

#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    value: String,
    good: bool,
    meaning: String,
}

/// Prints what it finds; 0 if nothing stands in the way of a usual load, else 1.
pub fn run(args: &Args) -> anyhow::Result<u8> {
    let findings = look();
    let good = findings.iter().all(|finding| finding.good);
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &serde_json::json!({ "good": good, "findings": findings }))?;
        writeln!(out)?;
    } else {
        print(&findings, &mut out)?;
    }
    Ok(if good { 0 } else { FAILED })
}

fn print(findings: &[Finding], out: &mut dyn Write) -> io::Result<()> {
    for finding in findings {
        let mark = if finding.good { "ok " } else { "BAD" };
        writeln!(out, "{mark}  {:<28}{}", finding.name, finding.value)?;
        writeln!(out, "     {}", finding.meaning)?;
    }
    let bad = findings.iter().filter(|finding| !finding.good).count();
    match bad {
        0 => writeln!(out, "\nOK: nothing stands in the way of a usual load"),
        _ => writeln!(out, "\nFAILED: {bad} of {} findings stand in the way", findings.len()),
    }
}

fn look() -> Vec<Finding> {
    let found = [descriptors(), backlog(), ports(), reuse(), time_wait(), cores(), governor(), io_uring()];
    found.into_iter().flatten().collect()
}

/// The words of a file of /proc or /sys.
fn words(path: &str) -> Option<Vec<String>> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.split_whitespace().map(str::to_owned).collect())
}

fn value(path: &str) -> Option<u64> {
    words(path)?.first()?.parse().ok()
}

fn descriptors() -> Option<Finding> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let most = hard.saturating_sub(RESERVE);
    Some(Finding {
        name: "descriptors (RLIMIT_NOFILE)",
        value: format!("soft {soft}, hard {hard}"),
        good: most >= 1000,
        meaning: format!("-c up to {most}: the client raises the soft limit itself; more needs ulimit -Hn"),
    })
}

fn backlog() -> Option<Finding> {
    let most = value("/proc/sys/net/core/somaxconn")?;
    Some(Finding {
        name: "net.core.somaxconn",
        value: most.to_string(),
        good: most >= LEAST_BACKLOG,
        meaning: format!("a server's accept queue holds {most} at most; when more connect at once SYNs are lost"),
    })
}

/// How many ports connect() chooses from.
fn port_count() -> Option<(u64, u64, u64)> {
    let range = words("/proc/sys/net/ipv4/ip_local_port_range")?;
    let mut ends = range.iter().filter_map(|word| word.parse::<u64>().ok());
    let (low, high) = (ends.next()?, ends.next()?);
    Some((low, high, (high + 1).saturating_sub(low)))
}

fn ports() -> Option<Finding> {
    let (low, high, ports) = port_count()?;
    Some(Finding {
        name: "ip_local_port_range",
        value: format!("{low}-{high}: {ports} ports"),
        good: ports >= 10_000,
        meaning: format!("-c up to {ports} per source address and server port"),
    })
}

fn reuse() -> Option<Finding> {
    let mode = value("/proc/sys/net/ipv4/tcp_tw_reuse")?;
    let (_, _, ports) = port_count()?;
    let sustained = ports / TIME_WAIT_SECONDS;
    let (words, limit) = match mode {
        0 => ("0: never", format!("without -k, -R up to {sustained}/s for long; else use -k 0 or --close rst")),
        1 => ("1: everywhere", "a port in TIME_WAIT is used again after a second: no limit for -R here".to_owned()),
        _ => (
            "2: on loopback",
            format!("no limit for -R on loopback; to another machine -R up to {sustained}/s without -k"),
        ),
    };
    Some(Finding { name: "tcp_tw_reuse", value: words.to_owned(), good: true, meaning: limit })
}

fn time_wait() -> Option<Finding> {
    let text = fs::read_to_string("/proc/net/sockstat").ok()?;
    let line = text.lines().find(|line| line.starts_with("TCP:"))?;
    let mut words = line.split_whitespace().skip_while(|word| *word != "tw");
    let now: u64 = words.nth(1)?.parse().ok()?;
    let (_, _, ports) = port_count()?;
    Some(Finding {
        name: "sockets in TIME_WAIT now",
        value: now.to_string(),
        good: now < ports / 2,
        meaning: format!("of {ports} ports per address pair; they end after {TIME_WAIT_SECONDS} s"),
    })
}

fn cores() -> Option<Finding> {
    let cores = thread::available_parallelism().ok()?.get();
    let load = words("/proc/loadavg")?.into_iter().next()?;
    let busy = load.parse::<f64>().ok()? > cores as f64 / 2.0;
    let advice = match (cores, busy) {
        (1, _) => "client and server share one core: the client's own cost is in every number",
        (_, true) => "others are busy on this machine: compare only with bench, which alternates",
        _ => "one for the client (--pin), the others for the server",
    };
    Some(Finding {
        name: "cores",
        value: format!("{cores}, load average {load}"),
        good: cores > 1,
        meaning: advice.to_owned(),
    })
}

fn governor() -> Option<Finding> {
    let path = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor";
    let governor = words(path).and_then(|words| words.into_iter().next());
    let meaning = match governor.as_deref() {
        Some("performance") => "the clock of the cores does not change with the load",
        Some(_) => "the clock of the cores follows the load: warm up (-w), or set the governor performance",
        None => "the kernel does not show it here, as in most virtual machines",
    };
    Some(Finding {
        name: "CPU governor",
        value: governor.unwrap_or_else(|| "not shown".into()),
        good: true,
        meaning: meaning.to_owned(),
    })
}

fn io_uring() -> Option<Finding> {
    // A ring of 0 entries cannot be made: EINVAL says that the call itself is allowed.
    // SAFETY: with 0 entries the kernel refuses before it looks at the parameters, for which null is passed.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 0, std::ptr::null_mut::<libc::c_void>()) };
    let error = io::Error::last_os_error();
    debug_assert!(result < 0);
    let (value, meaning) = match error.raw_os_error() {
        Some(libc::EPERM) => ("forbidden", "server07-io-uring cannot run here (kernel.io_uring_disabled, or seccomp)"),
        Some(libc::ENOSYS) => ("not there", "server07-io-uring cannot run here: this kernel has no io_uring"),
        _ => ("allowed", "server07-io-uring can run here"),
    };
    Some(Finding { name: "io_uring", value: value.to_owned(), good: true, meaning: meaning.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finding_has_a_meaning() {
        let findings = look();
        for name in ["descriptors (RLIMIT_NOFILE)", "ip_local_port_range", "cores", "io_uring"] {
            let finding = findings.iter().find(|finding| finding.name == name).unwrap();
            assert!(!finding.value.is_empty() && !finding.meaning.is_empty(), "{finding:?}");
        }
    }
}

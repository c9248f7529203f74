//! Another load generator, timed by the CPU time of its processes.

use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, bail};
use client::Plan;
use nix::sys::resource::{UsageWho, getrusage};
use serde::Serialize;

use crate::watch::Server;

/// The generator and what each round says of it.
#[derive(Debug, Serialize)]
pub struct Peer {
    pub name: String,
    command: String,
    /// CPU time per request, in microseconds.
    pub cpu_us: Vec<f64>,
}

impl Peer {
    pub fn new((name, command): &(String, String)) -> Self {
        Peer { name: name.clone(), command: command.clone(), cpu_us: Vec::new() }
    }

    /// Runs it once against a fresh server.
    pub fn play(&mut self, server: &str, plan: &Plan, stop: &AtomicBool) -> anyhow::Result<()> {
        let server = Server::start(server, &plan.host, plan.port, stop)?;
        let command = self.command.replace("{host}", &plan.host).replace("{port}", &server.port.to_string());
        let before = cpu_us()?;
        let mut shell = Command::new("/bin/sh");
        let output = shell.args(["-c", &command]).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("start {command}"))?;
        let used = cpu_us()? - before;
        server.stop()?;
        if !output.status.success() {
            bail!("peer {}: {}", self.name, output.status);
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(requests) = requests(&text).or(plan.requests()).filter(|n| *n > 0) else {
            bail!("peer {}: it does not say how many requests it made; give -t instead of -d", self.name);
        };
        self.cpu_us.push(used / requests as f64);
        Ok(())
    }
}

/// CPU time of the children that were waited for, in microseconds.
fn cpu_us() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage")?;
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e6 + time.tv_usec() as f64;
    Ok(micros(usage.user_time()) + micros(usage.system_time()))
}

/// `N requests`, `requests: N` or `requests  N done` in what a generator prints.
fn requests(text: &str) -> Option<u64> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let number = |word: &str| word.trim_end_matches(',').parse::<u64>().ok();
    words.windows(2).find_map(|pair| match pair {
        [n, word] if word.trim_end_matches([',', '.']) == "requests" && number(n).is_some() => number(n),
        [word, n] if word.trim_end_matches(':') == "requests" => number(n),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_generators_print() {
        assert_eq!(requests("  51411 requests in 2.00s, 1MB read"), Some(51411));
        assert_eq!(requests("requests: 1000 total, 1000 started"), Some(1000));
        assert_eq!(requests("requests     2500 done, 0 failed"), Some(2500));
        assert_eq!(requests("closed loop: 5 clients x 500 connections x 1 request of"), None);
    }
}

//! What a server says: the ready line, one line per event, and its CPU time at the end.
//!
//! Nothing here can panic or stop the service: a log on a full disk or a closed pipe loses lines, not clients.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::resource::{UsageWho, getrusage};
use socket2::{SockAddr, Socket};

/// A message of the same kind is logged at most once in this time.
pub const REPEAT: Duration = Duration::from_secs(1);

/// Why a server could not start or go on. `main` returns it: Rust prints its `Debug`, which is one line, and exits 1.
pub struct Failed(String);

impl Failed {
    /// One line that names the call, the object and the reason.
    pub fn new(text: impl Into<String>) -> Self {
        Failed(text.into())
    }
}

impl fmt::Debug for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.0))
    }
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Failed(format!("{error:#}"))
    }
}

/// The log: `LEVEL message` on stderr, one line per event, control bytes escaped.
///
/// `INFO` is the life of one client and is shown with `-v`; `WARN` is a client or a kernel that misbehaves; `ALERT` is
/// a defect of the server itself and fails every test that sees it.
#[derive(Args, Clone, Debug, Default)]
pub struct Log {
    /// Say what happens to every client
    #[arg(short, long)]
    verbose: bool,
    #[arg(skip)]
    last: Arc<Mutex<Option<Repeated>>>,
}

#[derive(Debug)]
struct Repeated {
    text: String,
    at: Instant,
    dropped: u64,
}

impl Log {
    /// Shown with `-v` only.
    pub fn info(&self, text: &str) {
        if self.verbose {
            line("INFO", text);
        }
    }

    /// Something a client or the kernel did that the operator should know of.
    pub fn warn(&self, text: &str) {
        line("WARN", text);
    }

    /// A defect of this server.
    pub fn alert(&self, text: &str) {
        line("ALERT", text);
    }

    /// A line that may come thousands of times: the same text is printed once a second, with the count it stands for.
    pub fn repeated(&self, level: &str, text: &str) {
        let now = Instant::now();
        let mut last = self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut more = 0;
        if let Some(seen) = last.as_mut().filter(|seen| seen.text == text) {
            if now.duration_since(seen.at) < REPEAT {
                seen.dropped += 1;
                return;
            }
            more = seen.dropped;
        }
        match more {
            0 => line(level, text),
            _ => line(level, &format!("{text} ({more} more since the last line)")),
        }
        *last = Some(Repeated { text: text.to_owned(), at: now, dropped: 0 });
    }

    /// How a client's conversation ended. Going away, even by a reset, is a client's right and ordinary life; a bad
    /// request or a deadline is worth a line.
    pub fn client(&self, peer: &SockAddr, outcome: &io::Result<()>) {
        let peer = || peer.as_socket().map_or_else(|| "unknown".to_owned(), |addr| addr.to_string());
        match outcome {
            Ok(()) if !self.verbose => {}
            Ok(()) => self.info(&format!("client {}: done", peer())),
            Err(e) if e.raw_os_error().is_some() => self.info(&format!("client {}: {e}", peer())),
            Err(e) => self.warn(&format!("client {}: {e}", peer())),
        }
    }

    /// User and system CPU time of this process and of the children it has reaped (UNP's `pr_cpu_time`): the price
    /// of a model, printed at its orderly end.
    pub fn cpu_time(&self) {
        let seconds = |who| {
            getrusage(who).map_or((0.0, 0.0), |usage| {
                let of = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
                (of(usage.user_time()), of(usage.system_time()))
            })
        };
        let (user, system) = seconds(UsageWho::RUSAGE_SELF);
        let (reaped_user, reaped_system) = seconds(UsageWho::RUSAGE_CHILDREN);
        line(
            "CPU",
            &format!(
                "user {user:.3} s, system {system:.3} s; children: user {reaped_user:.3} s, system {reaped_system:.3} s"
            ),
        );
    }
}

/// Prints `listening on ADDR`, the first line of every server's stdout. Call it after listen(2) succeeded.
pub fn ready(listener: &Socket) {
    let addr = listener.local_addr().ok().and_then(|addr| addr.as_socket());
    if let Some(addr) = addr {
        let mut stdout = io::stdout();
        // println! would panic if stdout is a full disk or a closed pipe.
        let _ = writeln!(stdout, "listening on {addr}");
        let _ = stdout.flush();
    }
}

/// Control bytes, direction marks and the like, made visible: a log line can neither move the cursor of the terminal
/// that shows it nor pretend to be two lines.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\x20'..='\x7e' => out.push(c),
            c if c.is_ascii() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_alphanumeric() => out.push(c),
            c => out.push_str(&format!("\\u{{{:x}}}", c as u32)),
        }
    }
    out
}

fn line(level: &str, text: &str) {
    // One write, so that lines of several processes do not mix.
    let text = format!("{level} {}\n", escape(text));
    let _ = io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_bytes_become_visible() {
        assert_eq!(escape("plain text, 100 %"), "plain text, 100 %");
        assert_eq!(escape("\x1b[2J5\r\n\0"), "\\x1b[2J5\\x0d\\x0a\\x00");
        assert_eq!(escape("a\u{202e}b\u{9b}c\u{200b}d\u{7f}"), "a\\u{202e}b\\u{9b}c\\u{200b}d\\x7f");
        assert_eq!(escape("café"), "café");
    }

    #[test]
    fn a_failure_is_one_line() {
        let error = anyhow::anyhow!("no\nway").context("bind 127.0.0.1:1");
        assert_eq!(format!("{:?}", Failed::from(error)), "bind 127.0.0.1:1: no\\x0away");
    }
}

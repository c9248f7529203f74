//! What a server prints: the ready line, one line per event, and its CPU time at the end.
//!
//! Nothing here can panic, block or end the server. A log line that stderr does not take at once (a full disk, a
//! closed pipe, a pipe that no process reads) is lost. Lost lines are counted, and the next line that can be
//! written tells the count.

use std::fmt;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{UsageWho, getrusage};
use socket2::{SockAddr, Socket};

/// The same message is logged at most once in this time.
pub const REPEAT: Duration = Duration::from_secs(1);
/// The longest line. A pipe takes this many bytes at once or none (PIPE_BUF, pipe(7)), so lines of several
/// processes do not mix.
const LINE_MAX: usize = libc::PIPE_BUF;

/// Log lines of this process that were lost since the last line that was written.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Why a server cannot start or continue. `main` returns it: Rust prints its `Debug`, which is one line, and exits
/// with 1.
pub struct Failed(String);

impl Failed {
    /// One line that names the call, the object, the reason and the next step.
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
/// `INFO` is the normal life of a client and is shown with `-v`. `WARN` is an error of a client or of the kernel.
/// `ALERT` is a defect of the server itself: every test that sees one fails.
#[derive(Args, Clone, Debug, Default)]
pub struct Log {
    /// Log every connection
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
    /// Logs a normal event. It is shown with `-v` only.
    pub fn info(&self, text: &str) {
        if self.verbose {
            line("INFO", text);
        }
    }

    /// Logs an error of a client or of the kernel.
    pub fn warn(&self, text: &str) {
        line("WARN", text);
    }

    /// Logs a defect of this server.
    pub fn alert(&self, text: &str) {
        line("ALERT", text);
    }

    /// Logs a line that may occur thousands of times. The same text is printed once a second, with its count.
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

    /// Logs how a session ended. A client that disconnects, with a FIN or a RST, is normal: INFO. A bad request or a
    /// timeout is logged as WARN.
    pub fn client(&self, peer: &SockAddr, outcome: &io::Result<()>) {
        let peer = || peer.as_socket().map_or_else(|| "unknown".to_owned(), |addr| addr.to_string());
        match outcome {
            Ok(()) if !self.verbose => {}
            Ok(()) => self.info(&format!("client {}: session ended", peer())),
            Err(e) if e.raw_os_error().is_some() => self.info(&format!("client {}: {e}", peer())),
            Err(e) => self.warn(&format!("client {}: {e}", peer())),
        }
    }

    /// Prints the user and system CPU time of this process and of the children that it has reaped, as `pr_cpu_time`
    /// of UNP does. Servers call it when they exit normally.
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

/// Prints `listening on ADDR`, the first line of every server's stdout. Call it when everything that can fail at
/// the start has succeeded: who starts a server waits for this line.
pub fn ready(listener: &Socket) {
    let addr = listener.local_addr().ok().and_then(|addr| addr.as_socket());
    if let Some(addr) = addr {
        let mut stdout = io::stdout();
        // println! panics if stdout is a full disk or a closed pipe.
        let _ = writeln!(stdout, "listening on {addr}");
        let _ = stdout.flush();
    }
}

/// Escapes control bytes, direction marks and similar characters. A log line cannot move the cursor of a terminal,
/// and cannot look like two lines.
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
    let lost = LOST.swap(0, Relaxed);
    let mut text = escape(text);
    if lost > 0 {
        text.push_str(&format!(" ({lost} lines before this one were lost: stderr did not take them)"));
    }
    let mut line = format!("{level} {text}\n").into_bytes();
    if line.len() > LINE_MAX {
        line.truncate(LINE_MAX - 1); // escape leaves letters of other scripts: a letter may be cut
        line.push(b'\n');
    }
    if !write_now(&line) {
        LOST.fetch_add(lost + 1, Relaxed);
    }
}

/// Writes a line, or a table, to stderr if that is possible without blocking. RWF_NOWAIT does what O_NONBLOCK does,
/// for one call: the flag O_NONBLOCK would also apply to the other processes that have this terminal or pipe open.
pub fn write_now(line: &[u8]) -> bool {
    let part = libc::iovec { iov_base: line.as_ptr().cast_mut().cast(), iov_len: line.len() };
    // SAFETY: the kernel reads the bytes of `line`, which outlives the call, and writes nothing.
    let n = unsafe { libc::pwritev2(libc::STDERR_FILENO, &part, 1, -1, libc::RWF_NOWAIT) };
    match io::Error::last_os_error().raw_os_error() {
        _ if n >= 0 => true,
        // The descriptor does not know the flag (a terminal, a file system, an old kernel).
        Some(libc::EOPNOTSUPP | libc::EAGAIN) => stderr_is_ready() && io::stderr().write_all(line).is_ok(),
        _ => false,
    }
}

/// A regular file is always ready. A pipe is ready if it has room for PIPE_BUF bytes.
fn stderr_is_ready() -> bool {
    let stderr = io::stderr();
    poll(&mut [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO) == Ok(1)
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

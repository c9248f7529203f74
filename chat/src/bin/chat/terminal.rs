//! The terminal's mode: saved at the start, restored at the end of the program, also if a signal ends it.

use std::io::{self, Write};
use std::thread;

use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

/// The mode of standard input at the start.
#[derive(Clone)]
pub struct Terminal(Termios);

impl Terminal {
    /// None: standard input is not a terminal.
    pub fn save() -> Option<Terminal> {
        tcgetattr(io::stdin()).ok().map(Terminal)
    }

    /// Restores the mode. If the line editor was reading a line, its prompt is cleared.
    pub fn restore(&self) {
        let is_raw = tcgetattr(io::stdin()).is_ok_and(|now| !now.local_flags.contains(LocalFlags::ICANON));
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
        if is_raw {
            let _ = io::stdout().write_all(b"\r\x1b[J").and_then(|()| io::stdout().flush());
        }
    }

    /// Restores the mode before SIGTERM, SIGHUP or SIGQUIT ends the program. Call this before other threads start: they
    /// inherit the blocked signals, so only the thread that waits for the signals gets them.
    ///
    /// # Errors
    /// The thread does not start.
    pub fn restore_on_signals(&self) -> Result<(), String> {
        let signals: SigSet = [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT].into_iter().collect();
        signals.thread_block().map_err(|e| format!("pthread_sigmask: {e}"))?;
        let terminal = self.clone();
        let wait = move || {
            if let Ok(signal) = signals.wait() {
                terminal.restore();
                // The default action ends the program, so the shell sees which signal it was.
                let _ = signals.thread_unblock().and_then(|()| raise(signal));
            }
        };
        thread::Builder::new().spawn(wait).map_err(|e| format!("clone: {e}"))?;
        Ok(())
    }
}

//! Progress on stderr: a bar on a terminal, plain lines elsewhere; and Ctrl-C.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use client::{Observer, Plan, Progress, Until};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const LINE_EVERY: Duration = Duration::from_secs(1);

enum Show {
    Nothing,
    /// The next line is due at this time of the run; so many requests were done at the last.
    Lines {
        due: Duration,
        done: u64,
    },
    Bar(ProgressBar),
}

/// Shows a run while it lasts, and ends it when the flag is up.
pub struct Screen {
    show: Show,
    until: Until,
    stop: Arc<AtomicBool>,
}

impl Screen {
    /// `plain` and `quiet` as on the command line.
    pub fn new(plan: &Plan, plain: bool, quiet: bool, stop: Arc<AtomicBool>) -> Self {
        let show = match (quiet, plain || !io::stderr().is_terminal()) {
            (true, _) => Show::Nothing,
            (_, true) => Show::Lines { due: LINE_EVERY, done: 0 },
            _ => Show::Bar(bar(plan)),
        };
        Screen { show, until: plan.until, stop }
    }

    /// Takes the bar off the screen, so that the report has it for itself.
    pub fn clear(&self) {
        if let Show::Bar(bar) = &self.show {
            bar.finish_and_clear();
        }
    }
}

impl Observer for Screen {
    fn progress(&mut self, now: &Progress) {
        match &mut self.show {
            Show::Nothing => {}
            Show::Bar(bar) => {
                let per_second = now.done as f64 / now.elapsed.as_secs_f64().max(1e-9);
                bar.set_message(format!("{} done, {} failed, {per_second:.0} requests/s", now.done, now.failed));
                bar.set_prefix(format!("{:.1} s", now.elapsed.as_secs_f64()));
                bar.set_position(match self.until {
                    Until::Tries(_) => now.done + now.failed,
                    Until::Elapsed(_) => now.elapsed.as_millis() as u64,
                });
            }
            Show::Lines { due, done } => {
                if now.elapsed < *due {
                    return;
                }
                // The rate of the time since the last line; lines come a little late, never early.
                let span = now.elapsed + LINE_EVERY - *due;
                let rate = (now.done - *done) as f64 / span.as_secs_f64();
                let of = now.planned.map(|planned| format!(" of {planned}")).unwrap_or_default();
                let seconds = now.elapsed.as_secs();
                _ = writeln!(
                    io::stderr(),
                    "{seconds:>4} s  {}{of} done, {} failed, {rate:.0} requests/s, {} open",
                    now.done,
                    now.failed,
                    now.open
                );
                *done = now.done;
                *due = now.elapsed + LINE_EVERY;
            }
        }
    }

    fn stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn bar(plan: &Plan) -> ProgressBar {
    let length = match plan.until {
        Until::Tries(_) => plan.requests(),
        Until::Elapsed(time) => Some(time.as_millis() as u64),
    };
    let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr_with_hz(10));
    match ProgressStyle::with_template("{prefix:>8} [{bar:24}] {percent:>3} %  {wide_msg}") {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

//! What is seen of a run while it lasts: a bar on a terminal, plain lines elsewhere, the whole terminal if asked for,
//! and the series. A thread of its own draws and writes, so that a slow terminal or disk does not slow down the load;
//! the run only hands over what it has counted, ten times a second.

mod live;

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use client::output::series;
use client::report::Slice;
use client::{Observer, Plan, Progress, Until};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::options::Cli;
use live::Live;

/// So many looks at the run may wait to be drawn; those that come then are drawn together.
const QUEUE: usize = 64;
/// At the end of the run the drawing thread gets so long: a terminal that takes nothing shall not hold up the report.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    Nothing,
    Lines,
    Bar,
    Tui,
}

impl From<&Cli> for Show {
    fn from(cli: &Cli) -> Self {
        match (cli.tui, cli.quiet, cli.plain || !io::stderr().is_terminal()) {
            (true, ..) => Show::Tui,
            (_, true, _) => Show::Nothing,
            (_, _, true) => Show::Lines,
            _ => Show::Bar,
        }
    }
}

/// Hands over what a run does to the thread that shows it, and ends the run when the flag is up.
pub struct Screen {
    stop: Arc<AtomicBool>,
    to: Option<SyncSender<Progress>>,
    /// What could not be handed over yet.
    kept: Option<Progress>,
    shown: Receiver<anyhow::Result<()>>,
    /// The rate set in the live view, as the bits of an f64; 0 is none.
    rate: Arc<AtomicU64>,
}

impl Screen {
    /// Starts the thread, if there is anything to show or to write.
    pub fn new(
        plan: &Plan,
        show: Show,
        interval: Duration,
        series: Option<Box<dyn Write + Send>>,
        stop: Arc<AtomicBool>,
    ) -> anyhow::Result<Self> {
        let (tell, shown) = mpsc::sync_channel(1);
        let rate = Arc::new(AtomicU64::new(0));
        if show == Show::Nothing && series.is_none() {
            return Ok(Screen { stop, to: None, kept: None, shown, rate });
        }
        if show == Show::Tui && !(io::stderr().is_terminal() && io::stdin().is_terminal()) {
            bail!("--tui needs a terminal: stdin and stderr have to be one");
        }
        let (to, from) = mpsc::sync_channel(QUEUE);
        let (plan, flag, wanted) = (plan.clone(), Arc::clone(&stop), Arc::clone(&rate));
        let draw = move || {
            let series = series.map(|out| Series { out, slice: Slice::default(), interval });
            let result = Drawn::new(&plan, show, interval, flag, wanted).and_then(|drawn| follow(drawn, series, &from));
            _ = tell.send(result);
        };
        thread::Builder::new().name("screen".into()).spawn(draw).context("pthread_create")?;
        Ok(Screen { stop, to: Some(to), kept: None, shown, rate })
    }

    /// The run is over: waits until all is drawn and written, and the terminal is what it was.
    pub fn finish(&mut self) -> anyhow::Result<()> {
        let Some(to) = self.to.take() else { return Ok(()) };
        if let Some(kept) = self.kept.take() {
            _ = to.try_send(kept);
        }
        drop(to);
        match self.shown.recv_timeout(TIMEOUT) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => bail!("write: progress or series is held up"),
            Err(RecvTimeoutError::Disconnected) => bail!("the thread that draws panicked"),
        }
    }
}

impl Observer for Screen {
    fn progress(&mut self, now: &Progress) {
        let Some(to) = &self.to else { return };
        let mut now = now.clone();
        if let Some(mut kept) = self.kept.take() {
            series::join(&mut kept.recent, &now.recent);
            now.recent = kept.recent;
        }
        if let Err(TrySendError::Full(kept)) = to.try_send(now) {
            self.kept = Some(kept);
        }
    }

    fn rate(&self) -> Option<f64> {
        Some(f64::from_bits(self.rate.load(Ordering::Relaxed))).filter(|rate| *rate > 0.0)
    }

    fn stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Draws and writes until the run is over.
fn follow(mut drawn: Drawn, mut series: Option<Series>, from: &Receiver<Progress>) -> anyhow::Result<()> {
    let mut written = Ok(());
    loop {
        let now = match drawn.pause() {
            Some(pause) => match from.recv_timeout(pause) {
                Ok(now) => Some(now),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            },
            None => match from.recv() {
                Ok(now) => Some(now),
                Err(_) => break,
            },
        };
        if let (Some(series), Some(now), true) = (&mut series, &now, written.is_ok()) {
            written = series.take(&now.recent);
        }
        drawn.show(now.as_ref());
    }
    if let (Some(series), true) = (&mut series, written.is_ok()) {
        written = series.end();
    }
    drawn.clear();
    written.context("write the series")
}

/// The file of `--series`.
struct Series {
    out: Box<dyn Write + Send>,
    slice: Slice,
    interval: Duration,
}

impl Series {
    fn take(&mut self, recent: &Slice) -> io::Result<()> {
        series::join(&mut self.slice, recent);
        if u128::from(self.slice.length_ns) < self.interval.as_nanos() {
            return Ok(());
        }
        self.end()
    }

    /// A line each time, at once: somebody may be reading along.
    fn end(&mut self) -> io::Result<()> {
        let slice = std::mem::take(&mut self.slice);
        if slice.length_ns == 0 {
            return Ok(());
        }
        series::write(&slice, &mut self.out).and_then(|()| self.out.flush())
    }
}

/// What is drawn on, and how.
enum Drawn {
    Nothing,
    Lines(Lines),
    Bar(ProgressBar, Until),
    Live(Box<Live>),
}

/// The next line is due at this time of the run; so many requests were done at the last.
struct Lines {
    interval: Duration,
    due: Duration,
    last: Duration,
    done: u64,
}

impl Drawn {
    fn new(
        plan: &Plan,
        show: Show,
        interval: Duration,
        stop: Arc<AtomicBool>,
        rate: Arc<AtomicU64>,
    ) -> anyhow::Result<Self> {
        Ok(match show {
            Show::Nothing => Drawn::Nothing,
            Show::Lines => Drawn::Lines(Lines { interval, due: interval, last: Duration::ZERO, done: 0 }),
            Show::Bar => Drawn::Bar(bar(plan), plan.until),
            Show::Tui => match Live::new(plan, Arc::clone(&stop), rate) {
                Ok(live) => Drawn::Live(Box::new(live)),
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err(error).context("open the terminal");
                }
            },
        })
    }

    /// Longest time to wait for news, because there may be keys too.
    fn pause(&self) -> Option<Duration> {
        matches!(self, Drawn::Live(_)).then_some(live::GLANCE)
    }

    fn show(&mut self, now: Option<&Progress>) {
        match (self, now) {
            (Drawn::Live(live), now) => live.show(now),
            (Drawn::Bar(bar, until), Some(now)) => show_bar(bar, *until, now),
            (Drawn::Lines(lines), Some(now)) => lines.show(now),
            _ => {}
        }
    }

    /// Takes the bar off the screen, so that the report has it for itself.
    fn clear(self) {
        if let Drawn::Bar(bar, _) = self {
            bar.finish_and_clear();
        }
    }
}

fn show_bar(bar: &ProgressBar, until: Until, now: &Progress) {
    let per_second = now.done as f64 / now.elapsed.as_secs_f64().max(1e-9);
    bar.set_message(format!("{} done, {} failed, {per_second:.0} requests/s", now.done, now.failed));
    bar.set_prefix(format!("{:.1} s", now.elapsed.as_secs_f64()));
    bar.set_position(match until {
        Until::Tries(_) => now.done + now.failed,
        Until::Elapsed(_) => now.elapsed.as_millis() as u64,
    });
}

impl Lines {
    fn show(&mut self, now: &Progress) {
        if now.elapsed < self.due {
            return;
        }
        // The rate of the time since the last line; lines come a little late, never early.
        let span = now.elapsed - self.last;
        let rate = (now.done - self.done) as f64 / span.as_secs_f64().max(1e-9);
        let of = now.planned.map(|planned| format!(" of {planned}")).unwrap_or_default();
        let seconds = now.elapsed.as_secs_f64();
        let digits = if self.interval.subsec_nanos() == 0 { 0 } else { 1 };
        _ = writeln!(
            io::stderr(),
            "{:>4.digits$} s  {}{of} done, {} failed, {rate:.0} requests/s, {} open",
            if digits == 0 { seconds.floor() } else { seconds },
            now.done,
            now.failed,
            now.open
        );
        (self.done, self.last) = (now.done, now.elapsed);
        self.due = now.elapsed + self.interval;
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

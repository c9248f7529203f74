//! A client with the ancestor's mistake: it checks a flag, and then waits for the signal that sets
//! the flag. A signal between the two is lost.
//!
//! Run: cargo run -p fifo --bin naive-pause
//! Try: cargo run -p fifo --bin naive-pause -- --window 100
//! Prev: none
//! Next: none
//! Diff base: none
//! Overload: none (a client)

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use common::report::Failed;
use fifo::ms;
use fifo::record::{Answer, HEAD, MAX_N, Question};
use fifo::rundir::{default_dir, make_fifo, open_fifo, reply_path};
use lifecycle::on_signal;
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::unistd::pause;

/// Client that can lose its wake-up signal; it needs `fifo-server --signals`
#[derive(Parser)]
struct Args {
    /// Directory of the server [default: $XDG_RUNTIME_DIR/fifo-demo, or one in /tmp]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// How many numbers to ask for
    #[arg(short, default_value_t = 5)]
    n: i32,
    /// Sleep this long between the check of the flag and pause(), in ms
    #[arg(long, default_value_t = 0, value_name = "MS", value_parser = ms(0))]
    window: u64,
    /// Interval of SIGALRM in ms: pause() returns, and the client gives up
    #[arg(long, default_value_t = 2000, value_name = "MS", value_parser = ms(1))]
    deadline: u64,
}

static SIGUSR1_ARRIVED: AtomicBool = AtomicBool::new(false);
static IS_LATE: AtomicBool = AtomicBool::new(false);

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    on_signal(Signal::SIGUSR1, sigusr1_arrived)?;
    on_signal(Signal::SIGALRM, is_late)?;
    let dir = args.dir.clone().unwrap_or_else(default_dir);
    let question = Question::new(args.n).context("getrandom")?;
    let path = reply_path(&dir, question.pid, &question.nonce);
    make_fifo(&path)?;
    let outcome = ask(&args, &dir, &path, &question);
    let _ = fs::remove_file(&path);
    Ok(outcome?)
}

fn ask(args: &Args, dir: &Path, path: &Path, question: &Question) -> Result<()> {
    let mut reply = open_fifo(path, OFlag::O_RDONLY).context("open the reply FIFO")?;
    let mut req = open_fifo(&dir.join("req"), OFlag::O_WRONLY).context("no server reads req")?;
    req.write_all(&question.to_bytes()).context("write req")?;
    start_timer(args.deadline)?;
    while !SIGUSR1_ARRIVED.load(SeqCst) {
        // The mistake. If the signal arrives here, its handler runs here, and pause() waits for a
        // second signal that nobody sends. fifo-client blocks the signal before it asks.
        thread::sleep(Duration::from_millis(args.window));
        pause();
        if IS_LATE.load(SeqCst) && SIGUSR1_ARRIVED.load(SeqCst) {
            bail!("SIGUSR1 arrived before pause(), so pause() slept: a lost wake-up");
        }
        if IS_LATE.load(SeqCst) {
            bail!("no SIGUSR1 within {} ms", args.deadline);
        }
    }
    let mut buffer = [0u8; HEAD + 4 * MAX_N as usize];
    let n = reply.read(&mut buffer).context("read the reply FIFO")?;
    let bytes = buffer.get(..n).unwrap_or_default();
    let answer = Answer::from_bytes(bytes).context("not an answer")?;
    writeln!(io::stdout(), "{:?}", answer.values).context("stdout")
}

/// A timer that repeats, because a single SIGALRM could be lost in the same window.
fn start_timer(ms: u64) -> Result<()> {
    let (tv_sec, tv_usec) = ((ms / 1000) as i64, (ms % 1000 * 1000) as i64);
    let period = libc::timeval { tv_sec, tv_usec };
    let timer = libc::itimerval { it_interval: period, it_value: period };
    // SAFETY: the kernel reads one itimerval. It writes nothing, because the old value is not
    // wanted.
    match unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).context("setitimer"),
    }
}

extern "C" fn sigusr1_arrived(_: i32) {
    SIGUSR1_ARRIVED.store(true, SeqCst);
}

extern "C" fn is_late(_: i32) {
    IS_LATE.store(true, SeqCst);
}

//! A client with the ancestor's mistake: it looks at a flag, and then waits for the signal that sets it.
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
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use fifo::record::{Answer, HEAD, MAX_N, Question};
use fifo::rundir::{default_dir, reply_path};
use fifo::sys::{open_fifo, random};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::stat::Mode;
use nix::unistd::{mkfifo, pause};

/// A client whose wake-up can be lost; it needs `fifo-server --signals`
#[derive(Parser)]
struct Args {
    /// The server's directory
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Numbers to ask for
    #[arg(short, default_value_t = 5)]
    n: i32,
    /// Sleep so many milliseconds between the look at the flag and pause()
    #[arg(long, default_value_t = 0, value_name = "MS", value_parser = clap::value_parser!(u64).range(..=60_000))]
    window: u64,
    /// Look again after so many milliseconds, by SIGALRM
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=86_400_000))]
    deadline: u32,
}

static WOKEN: AtomicBool = AtomicBool::new(false);
static LATE: AtomicBool = AtomicBool::new(false);

extern "C" fn woken(_: i32) {
    WOKEN.store(true, SeqCst);
}

extern "C" fn late(_: i32) {
    LATE.store(true, SeqCst);
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "naive-pause: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    for (name, handler) in [(Signal::SIGUSR1, woken as extern "C" fn(i32)), (Signal::SIGALRM, late)] {
        // SAFETY: each handler stores to one atomic, which is safe at any moment.
        unsafe { signal(name, SigHandler::Handler(handler)) }.with_context(|| format!("signal {name}"))?;
    }
    let dir = args.dir.clone().unwrap_or_else(default_dir);
    let question = Question { nonce: random().context("getrandom")?, n: args.n, pid: std::process::id() as i32 };
    let path = reply_path(&dir, question.pid, &question.nonce);
    mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).with_context(|| format!("mkfifo {}", path.display()))?;
    let outcome = ask(args, &dir, &path, &question);
    let _ = fs::remove_file(&path);
    outcome
}

fn ask(args: &Args, dir: &Path, path: &Path, question: &Question) -> Result<()> {
    let mut reply = open_fifo(path, true, false).context("open the reply FIFO")?;
    let mut req = open_fifo(&dir.join("req"), false, true).context("no server reads req")?;
    req.write_all(&question.to_bytes()).context("write req")?;
    look_again_every(args.deadline)?;
    while !WOKEN.load(SeqCst) {
        // Here is the window, with --window or without. A signal that comes now is handled now, and pause() waits for
        // the next one: there is none. The cure is to block the signal first, and to wait with a call that unblocks it.
        thread::sleep(Duration::from_millis(args.window));
        pause();
        if LATE.load(SeqCst) && WOKEN.load(SeqCst) {
            bail!("SIGUSR1 came before pause(), which slept on: a lost wake-up");
        }
        if LATE.load(SeqCst) {
            bail!("no SIGUSR1 within {} ms", args.deadline);
        }
    }
    let mut buffer = [0u8; HEAD + 4 * MAX_N as usize];
    let n = reply.read(&mut buffer).context("read the reply FIFO")?;
    let answer = Answer::from_bytes(buffer.get(..n).unwrap_or_default()).context("not an answer")?;
    writeln!(io::stdout(), "{:?}", answer.values).context("stdout")
}

/// Again and again, because SIGALRM can be lost in the same window.
fn look_again_every(ms: u32) -> Result<()> {
    let period = libc::timeval { tv_sec: (ms / 1000).into(), tv_usec: (ms % 1000 * 1000).into() };
    let timer = libc::itimerval { it_interval: period, it_value: period };
    // SAFETY: the kernel reads one itimerval, and writes none where the old one is not asked for.
    match unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).context("setitimer"),
    }
}

//! The self-pipe: the handler writes a byte, and a signal becomes what select can see.
//!
//! Run: cargo run -p self-pipe --bin fixed
//! Try: cargo run -p self-pipe --bin fixed -- --flood 70000

use std::os::fd::{AsFd, AsRawFd};
use std::process::ExitCode;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::select::{FdSet, select};
use nix::sys::signal::{Signal, raise};
use nix::sys::time::TimeVal;
use nix::unistd::{pipe2, read};
use self_pipe::{Experiment, answer, end, on_signal, say, silent_client};

/// The self-pipe: a signal handler writes the byte that select waits for
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// So many signals more in the window: the pipe holds 65536 bytes, and no handler may block
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    flood: u32,
}

/// The write end of the self-pipe.
static WAKE: AtomicI32 = AtomicI32::new(-1);
static CAUGHT: AtomicU32 = AtomicU32::new(0);

fn main() -> ExitCode {
    end("fixed", wait(&Args::parse()))
}

fn wait(args: &Args) -> Result<()> {
    let (client, _other_end) = silent_client()?;
    // Non-blocking at both ends: a full pipe must not stop the handler, nor an empty one the drain.
    let (woken, wake) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).context("pipe2")?;
    // Before the handler is there, or its first byte would go nowhere.
    WAKE.store(wake.as_raw_fd(), SeqCst);
    on_signal(Signal::SIGALRM, write_a_byte)?;
    args.experiment.window()?;
    for _ in 0..args.flood {
        raise(Signal::SIGALRM).context("raise")?;
    }
    let mut timeout =
        TimeVal::new(args.experiment.timeout().as_secs() as i64, args.experiment.timeout().subsec_micros().into());
    let began = Instant::now();
    let result = loop {
        let mut readable = FdSet::new();
        readable.insert(client.as_fd());
        readable.insert(woken.as_fd());
        match select(None, &mut readable, None, None, &mut timeout) {
            // A signal that comes during select interrupts it; the byte is there, and the next round sees it.
            Err(Errno::EINTR) => continue,
            result => break result,
        }
    };
    args.experiment.report("select", answer(result), began, format_args!("{} signals", CAUGHT.load(SeqCst)));
    let mut bytes = 0;
    let mut buffer = [0; 4096];
    // To the end, or the next select returns for the bytes of this one.
    while let Ok(n @ 1..) = read(&woken, &mut buffer) {
        bytes += n;
    }
    say(format_args!("{bytes} bytes in the self-pipe, now 0"));
    Ok(())
}

/// One async-signal-safe call. EAGAIN is no error: a full pipe says already that a signal came. The interrupted code
/// may be about to read its errno.
extern "C" fn write_a_byte(_: libc::c_int) {
    let errno = Errno::last_raw();
    CAUGHT.fetch_add(1, SeqCst);
    // SAFETY: write(2) is async-signal-safe, and the byte outlives the call.
    unsafe { libc::write(WAKE.load(SeqCst), [0u8].as_ptr().cast(), 1) };
    Errno::set_raw(errno);
}

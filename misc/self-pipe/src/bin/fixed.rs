//! The self-pipe: the signal handler writes a byte to a pipe that select watches.
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
use self_pipe::{Experiment, end, on_signal, print_line, result_text, silent_client};

/// The self-pipe: the signal handler writes the byte that select waits for
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
    /// Send this number of additional signals in the window; the pipe holds 65536 bytes
    #[arg(long, default_value_t = 0, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    flood: u32,
}

/// The writing end of the self-pipe.
static WRITER: AtomicI32 = AtomicI32::new(-1);
static CAUGHT: AtomicU32 = AtomicU32::new(0);

fn main() -> ExitCode {
    end("fixed", wait(&Args::parse()))
}

fn wait(args: &Args) -> Result<()> {
    let (client, _other_end) = silent_client()?;
    // Non-blocking at both ends: a full pipe must not block the handler, an empty one not the
    // reader.
    let (reader, writer) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).context("pipe2")?;
    // Store the descriptor before the handler is installed, so that the handler always finds it.
    WRITER.store(writer.as_raw_fd(), SeqCst);
    on_signal(Signal::SIGALRM, write_a_byte)?;
    args.experiment.window()?;
    for _ in 0..args.flood {
        raise(Signal::SIGALRM).context("raise")?;
    }
    let timeout = args.experiment.timeout();
    let mut timeout = TimeVal::new(timeout.as_secs() as i64, timeout.subsec_micros().into());
    let began = Instant::now();
    let result = loop {
        let mut readable = FdSet::new();
        readable.insert(client.as_fd());
        readable.insert(reader.as_fd());
        match select(None, &mut readable, None, None, &mut timeout) {
            // A signal during select interrupts it. The next iteration sees the byte.
            Err(Errno::EINTR) => continue,
            result => break result,
        }
    };
    args.experiment.report(
        "select",
        result_text(result),
        began,
        format_args!("{} signals", CAUGHT.load(SeqCst)),
    );
    let mut bytes = 0;
    let mut buffer = [0; 4096];
    // Read all bytes; otherwise the next select returns at once.
    while let Ok(n @ 1..) = read(&reader, &mut buffer) {
        bytes += n;
    }
    print_line(format_args!("{bytes} bytes in the self-pipe, now 0"));
    Ok(())
}

/// Makes one async-signal-safe call. EAGAIN can be ignored: a full pipe is readable too. errno is
/// restored, because the interrupted code may read it next.
extern "C" fn write_a_byte(_: libc::c_int) {
    let errno = Errno::last_raw();
    CAUGHT.fetch_add(1, SeqCst);
    // SAFETY: write(2) is async-signal-safe, and the byte exists longer than the call.
    unsafe { libc::write(WRITER.load(SeqCst), [0u8].as_ptr().cast(), 1) };
    Errno::set_raw(errno);
}

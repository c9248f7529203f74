//! What it costs to send a file, four ways, and what the receiver gets when the file changes meanwhile.
//!
//! Run: cargo run --release -p sendfile
//! Try: cargo run -p sendfile -- overwrite

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use common::report::escape;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::time::{ClockId, clock_gettime};
use sendfile::calls::{again, completion, permit_zerocopy, send_zerocopy, sendfile as send_some};
use sendfile::pair::{drain, pair};
use sendfile::ways::{Sent, Way, send};
use socket2::Socket;

const MIB: u64 = 1 << 20;
/// EX_UNAVAILABLE of sysexits.h.
const UNAVAILABLE: u8 = 69;
/// What fits into the buffers of a connection while nobody reads.
const SMALL: u64 = 64 * 1024;

/// Sending a file: read and write, sendfile, splice, MSG_ZEROCOPY
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    experiment: Option<Experiment>,
}

#[derive(Subcommand)]
enum Experiment {
    /// System calls and CPU time of the sender, per MiB, all ways in turns (the default)
    Compare {
        /// Size of the file, in MiB
        #[arg(long, default_value_t = 64, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1024))]
        size: u64,
        /// How often each way takes its turn; the median is shown
        #[arg(long, default_value_t = 7, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=101))]
        rounds: u16,
        /// Only this way
        #[arg(long, value_enum)]
        only: Option<Way>,
        /// Send this file instead of one that is made for it
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// The file is sent, then written over, then read by the receiver: whose bytes are they?
    Overwrite,
    /// One send with MSG_ZEROCOPY, and its completion
    Zerocopy,
    /// How much one sendfile sends: to the end of the file, and to the end of the socket's room
    Short,
}

fn main() -> ExitCode {
    let done = match Args::parse().experiment {
        None => compare(64 * MIB, 7, None, None),
        Some(Experiment::Compare { size, rounds, only, file }) => compare(size * MIB, rounds, only, file),
        Some(Experiment::Overwrite) => overwrite(),
        Some(Experiment::Zerocopy) => zerocopy(),
        Some(Experiment::Short) => short(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "sendfile: {}", escape(&format!("{error:#}")));
            if is_not_permitted(&error) { ExitCode::from(UNAVAILABLE) } else { ExitCode::FAILURE }
        }
    }
}

/// MSG_ZEROCOPY: unknown to an old kernel, or more pinned memory than RLIMIT_MEMLOCK and net.core.optmem_max permit.
fn is_not_permitted(error: &anyhow::Error) -> bool {
    let errno = error.root_cause().downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    matches!(errno, Some(libc::ENOBUFS | libc::ENOPROTOOPT))
}

fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// A file that has no name, so that nothing is left of it whatever happens.
fn nameless(byte: u8, len: u64) -> anyhow::Result<File> {
    let mut file = tempfile::tempfile().context("open O_TMPFILE")?;
    let block = vec![byte; MIB as usize];
    let mut left = len;
    while left > 0 {
        let n = left.min(MIB) as usize;
        file.write_all(block.get(..n).unwrap_or_default()).context("write a temporary file")?;
        left -= n as u64;
    }
    Ok(file)
}

struct Turn {
    sent: Sent,
    cpu: Duration,
}

fn compare(size: u64, rounds: u16, only: Option<Way>, file: Option<PathBuf>) -> anyhow::Result<()> {
    let (file, len) = match file {
        None => (nameless(b'a', size)?, size),
        Some(path) => {
            let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
            let metadata = file.metadata().with_context(|| format!("fstat {}", path.display()))?;
            ensure!(metadata.is_file() && metadata.len() > 0, "{}: no regular file with bytes in it", path.display());
            (file, metadata.len())
        }
    };
    let ways: Vec<Way> = Way::value_variants().iter().copied().filter(|way| only.is_none_or(|o| o == *way)).collect();
    let mut turns: Vec<Vec<Turn>> = ways.iter().map(|_| Vec::new()).collect();
    // In turns, so that whatever else the machine does meets all of them.
    for _ in 0..rounds {
        for (way, turns) in ways.iter().zip(&mut turns) {
            match turn(*way, &file, len) {
                Err(error) if is_not_permitted(&error) && only.is_none() => {}
                turn => turns.push(turn?),
            }
        }
    }
    say(&format!("{len} bytes; rounds: {rounds}; the sender's thread, its CPU time: the median"));
    say("way          system calls  per MiB  CPU us per MiB  of read-write");
    let mut reference = None;
    for (way, turns) in ways.iter().zip(&mut turns) {
        turns.sort_by_key(|turn| turn.cpu);
        match turns.get(turns.len() / 2) {
            Some(median) => row(*way, median, len as f64 / MIB as f64, &mut reference),
            None => say(&format!("{:11}  not permitted here (see ulimit -l)", name(*way))),
        }
    }
    Ok(())
}

/// `reference`: the CPU time of read-write, once it is known.
fn row(way: Way, median: &Turn, mib: f64, reference: &mut Option<f64>) {
    let Sent { calls, copied, completed, .. } = median.sent;
    let cpu = median.cpu.as_secs_f64() * 1e6 / mib;
    if way == Way::ReadWrite {
        *reference = Some(cpu);
    }
    let ratio = reference.map_or("-".to_owned(), |reference| format!("{:.2}", cpu / reference));
    let told = if completed > 0 { format!("  {copied} of {completed} sends were copied") } else { String::new() };
    let name = name(way);
    say(&format!("{name:11}  {calls:>12}  {:>7.2}  {cpu:>14.1}  {ratio:>13}{told}", calls as f64 / mib));
}

fn name(way: Way) -> String {
    way.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// One connection, one file, one receiver that reads it all.
fn turn(way: Way, file: &File, len: u64) -> anyhow::Result<Turn> {
    let (sender, receiver) = pair().context("a TCP connection over loopback")?;
    let receiver = drain(receiver).context("clone")?;
    let before = cpu()?;
    let sent = send(way, file, len, &sender).with_context(|| name(way))?;
    let cpu = cpu()?.saturating_sub(before);
    sender.shutdown(Shutdown::Write).context("shutdown")?;
    let received = receiver.join().ok().context("the receiver")?.context("recv")?;
    ensure!(
        received == len && sent.bytes == len,
        "{}: {} sent, and {received} of {len} arrived",
        name(way),
        sent.bytes
    );
    Ok(Turn { sent, cpu })
}

fn cpu() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("clock_gettime")?.into())
}

fn overwrite() -> anyhow::Result<()> {
    say("way         sent   then the file is   the receiver reads");
    for way in [Way::ReadWrite, Way::Sendfile, Way::Splice, Way::Zerocopy] {
        let mut file = nameless(b'A', SMALL)?;
        let (sender, mut receiver) = pair().context("a TCP connection over loopback")?;
        let sent = match send(way, &file, SMALL, &sender).with_context(|| name(way)) {
            Err(error) if is_not_permitted(&error) => {
                say(&format!("{:10}  not permitted here (see ulimit -l)", name(way)));
                continue;
            }
            sent => sent?.bytes,
        };
        file.rewind().context("lseek")?;
        file.write_all(&vec![b'B'; SMALL as usize]).context("write")?;
        say(&format!("{:10}  {sent:5}  written over       {}", name(way), count(&mut receiver, sent)?));
    }
    let (sender, mut receiver) = pair().context("a TCP connection over loopback")?;
    let sent = replaced(&sender)?;
    say(&format!("sendfile    {sent:5}  replaced: rename   {}", count(&mut receiver, sent)?));
    Ok(())
}

/// The cure: whoever changes the file writes another one and renames it. What was sent is the old file, which lives on.
fn replaced(to: &Socket) -> anyhow::Result<u64> {
    // Until the folder is gone again, a Ctrl-C waits.
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("sigprocmask")?;
    let sent = (|| {
        let folder = tempfile::tempdir().context("mkdir")?;
        let (path, new) = (folder.path().join("file"), folder.path().join("file.new"));
        fs::write(&path, vec![b'A'; SMALL as usize]).context("write")?;
        let sent = send(Way::Sendfile, &File::open(&path).context("open")?, SMALL, to).context("sendfile")?.bytes;
        fs::write(&new, vec![b'B'; SMALL as usize]).context("write")?;
        fs::rename(&new, &path).context("rename")?;
        anyhow::Ok(sent)
    })();
    signals.thread_unblock().context("sigprocmask")?;
    sent
}

fn count(receiver: &mut Socket, len: u64) -> anyhow::Result<String> {
    let mut bytes = vec![0; len as usize];
    receiver.read_exact(&mut bytes).context("recv")?;
    let of = |byte| bytes.iter().filter(|b| **b == byte).count();
    Ok(format!("{:5} A  {:5} B", of(b'A'), of(b'B')))
}

fn zerocopy() -> anyhow::Result<()> {
    let (sender, receiver) = pair().context("a TCP connection over loopback")?;
    let receiver = drain(receiver).context("clone")?;
    permit_zerocopy(&sender).context("setsockopt SO_ZEROCOPY")?;
    let buffer = vec![b'A'; SMALL as usize];
    let sent = again(|| send_zerocopy(&sender, &buffer)).context("send MSG_ZEROCOPY")?;
    say(&format!("send({SMALL}, MSG_ZEROCOPY) = {sent}: the buffer is the kernel's until a completion comes"));
    let mut queue = [PollFd::new(sender.as_fd(), PollFlags::empty())];
    ensure!(
        again(|| Ok(poll(&mut queue, PollTimeout::from(10_000u16))?)).context("poll")? == 1,
        "no completion in 10 s"
    );
    say(&format!("poll: {:?}", queue[0].revents().unwrap_or(PollFlags::empty())));
    let done = completion(&sender).context("recvmsg MSG_ERRQUEUE")?.context("an empty error queue")?;
    let what = if done.code == 1 { "SO_EE_CODE_ZEROCOPY_COPIED" } else { "not copied" };
    say(&format!(
        "recvmsg(MSG_ERRQUEUE): origin {} (SO_EE_ORIGIN_ZEROCOPY), code {} ({what}), sends {} to {}",
        done.origin, done.code, done.first, done.last
    ));
    sender.shutdown(Shutdown::Write).context("shutdown")?;
    receiver.join().ok().context("the receiver")?.context("recv")?;
    Ok(())
}

fn short() -> anyhow::Result<()> {
    let file = nameless(b'A', SMALL)?;
    let (sender, receiver) = pair().context("a TCP connection over loopback")?;
    let mut offset = 0;
    for _ in 0..2 {
        let n = again(|| send_some(&sender, &file, &mut offset, MIB as usize)).context("sendfile")?;
        say(&format!("a file of {SMALL} bytes, {MIB} asked for: {n}"));
    }
    drop((sender, receiver));

    let file = nameless(b'A', 64 * MIB)?;
    let (sender, _nobody_reads) = pair().context("a TCP connection over loopback")?;
    sender.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    let mut offset = 0;
    // Until EAGAIN: the socket and the other end's buffer are full.
    for _ in 0..1000 {
        match send_some(&sender, &file, &mut offset, 64 * MIB as usize) {
            Ok(n) => say(&format!("a non-blocking socket, {} asked for: {n}", 64 * MIB)),
            Err(e) => {
                say(&format!("a non-blocking socket, {} asked for: {e}", 64 * MIB));
                return Ok(());
            }
        }
    }
    Ok(())
}

//! sendfile(2) sends pages of the file, not a copy: what is written later is sent too.
//!
//! Each way sends 64 KiB of A. The receiver does not read yet. Then B is written over the file, and
//! then the receiver reads: A or B?
//!
//! Run: cargo run -p sendfile
//! Try: cargo run --release -p sendfile --bin sendfile-cost

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use nix::sys::signal::{SigSet, Signal};
use sendfile::pair::pair;
use sendfile::ways::{Way, send};
use sendfile::{is_not_permitted, print_line, temporary_file};
use socket2::Socket;

/// How many bytes the buffers of a connection hold while the receiver does not read.
const LEN: usize = 64 * 1024;

/// A file is sent, then overwritten, then read by the receiver: which bytes does it get?
#[derive(Parser)]
struct Args {}

fn main() -> ExitCode {
    let Args {} = Args::parse();
    sendfile::run("sendfile", run)
}

/// One line per way, then the fix.
fn run() -> anyhow::Result<()> {
    print_line("way         sent   then the file is   the receiver reads");
    for way in Way::value_variants() {
        match overwritten(*way) {
            Err(e) if is_not_permitted(&e) => {
                print_line(&format!("{:10}  not permitted here (see ulimit -l)", way.name()));
            }
            text => print_line(&format!("{:10}  {}", way.name(), text?)),
        }
    }
    print_line(&format!("sendfile    {}", renamed_without_signals()?));
    Ok(())
}

/// The bug: a process writes into a file that is being sent.
fn overwritten(way: Way) -> anyhow::Result<String> {
    let mut file = temporary_file(b'A', LEN as u64)?;
    let (sender, mut receiver) = pair().context("a TCP connection over loopback")?;
    let sent = send(way, &file, LEN as u64, &sender).context(way.name())?.bytes;
    // The call has returned. The socket's queue holds pages of the file, not a copy.
    file.rewind().context("lseek")?;
    file.write_all(&[b'B'; LEN]).context("write")?;
    Ok(format!("{sent:5}  overwritten        {}", read(&mut receiver)?))
}

/// The fix: write a new file and rename it. The old file, which was sent, exists until its last
/// user has closed it.
fn renamed() -> anyhow::Result<String> {
    let folder = tempfile::tempdir().context("mkdir")?;
    let (path, new) = (folder.path().join("file"), folder.path().join("file.new"));
    fs::write(&path, [b'A'; LEN]).context("write")?;
    let (sender, mut receiver) = pair().context("a TCP connection over loopback")?;
    let file = File::open(&path).context("open")?;
    let sent = send(Way::Sendfile, &file, LEN as u64, &sender).context("sendfile")?.bytes;
    fs::write(&new, [b'B'; LEN]).context("write")?;
    fs::rename(&new, &path).context("rename")?;
    Ok(format!("{sent:5}  replaced: rename   {}", read(&mut receiver)?))
}

/// Blocks the signals that end the process until the folder has been removed.
fn renamed_without_signals() -> anyhow::Result<String> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("sigprocmask")?;
    let text = renamed();
    signals.thread_unblock().context("sigprocmask")?;
    text
}

/// How many A and how many B the receiver reads.
fn read(receiver: &mut Socket) -> anyhow::Result<String> {
    let mut bytes = [0; LEN];
    receiver.read_exact(&mut bytes).context("recv")?;
    let count = |byte| bytes.iter().filter(|b| **b == byte).count();
    Ok(format!("{:5} A  {:5} B", count(b'A'), count(b'B')))
}

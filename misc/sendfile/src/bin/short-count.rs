//! sendfile(2) may send less than it was asked for: at the end of the file, and at a full socket.
//!
//! Run: cargo run -p sendfile --bin short-count

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use nix::errno::Errno;
use sendfile::calls::{retry_eintr, sendfile as sendfile_call};
use sendfile::pair::pair;
use sendfile::{MIB, print_line, temporary_file};

/// How much one sendfile sends: at the end of the file, and at a full socket buffer
#[derive(Parser)]
struct Args {}

fn main() -> ExitCode {
    let Args {} = Args::parse();
    sendfile::run("short-count", || {
        end_of_file()?;
        full_socket()
    })
}

/// At the end of the file sendfile returns 0. A program that loops until it has sent the old length
/// of a file that became shorter does not end.
fn end_of_file() -> anyhow::Result<()> {
    let (len, wanted) = (64 * 1024, MIB as usize);
    let file = temporary_file(b'A', len)?;
    let (sender, _receiver) = pair().context("a TCP connection over loopback")?;
    let mut offset = 0;
    // More than the file holds is requested.
    for _ in 0..2 {
        let n = retry_eintr(|| sendfile_call(&sender, &file, &mut offset, wanted));
        print_line(&format!(
            "a file of {len} bytes, {wanted} requested: {}",
            n.context("sendfile")?
        ));
    }
    Ok(())
}

/// The receiver does not read: sendfile fills both buffers, and then fails with EAGAIN.
fn full_socket() -> anyhow::Result<()> {
    let len = 64 * MIB;
    let file = temporary_file(b'A', len)?;
    let (sender, _receiver) = pair().context("a TCP connection over loopback")?;
    sender.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
    let mut offset = 0;
    // Bounded: the buffers hold a few MiB.
    for _ in 0..1000 {
        match sendfile_call(&sender, &file, &mut offset, len as usize) {
            Ok(n) => print_line(&format!("a non-blocking socket, {len} requested: {n}")),
            Err(e) => {
                let errno = Errno::from_raw(e.raw_os_error().unwrap_or_default());
                print_line(&format!("a non-blocking socket, {len} requested: {errno:?}"));
                break;
            }
        }
    }
    Ok(())
}

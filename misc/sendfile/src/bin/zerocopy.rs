//! MSG_ZEROCOPY on loopback: the kernel copies, and reports the copy in the completion.
//!
//! Run: cargo run -p sendfile --bin zerocopy

use std::net::Shutdown;
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Parser;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sendfile::calls::{completion, enable_zerocopy, retry_eintr, send_zerocopy};
use sendfile::pair::{drain, pair};
use sendfile::print_line;

const LEN: usize = 64 * 1024;
/// The completion must arrive within 10 s.
const TIMEOUT_MS: u16 = 10_000;

/// One send with MSG_ZEROCOPY, and its completion
#[derive(Parser)]
struct Args {}

fn main() -> ExitCode {
    let Args {} = Args::parse();
    sendfile::run("zerocopy", run)
}

/// The three steps: send, wait, and read the completion from the error queue.
fn run() -> anyhow::Result<()> {
    // The receiver reads all the time, so the send does not wait for it.
    let (sender, receiver) = pair().context("a TCP connection over loopback")?;
    let receiver = drain(receiver).context("clone")?;
    // Without this option the kernel ignores MSG_ZEROCOPY.
    enable_zerocopy(&sender).context("setsockopt SO_ZEROCOPY")?;
    let buffer = [b'A'; LEN];
    let sent = retry_eintr(|| send_zerocopy(&sender, &buffer)).context("send MSG_ZEROCOPY")?;
    print_line(&format!(
        "send({LEN}, MSG_ZEROCOPY) = {sent}: the kernel may still read the buffer"
    ));
    // poll reports POLLERR without being asked for it when the error queue is not empty.
    let mut fds = [PollFd::new(sender.as_fd(), PollFlags::empty())];
    let ready = retry_eintr(|| Ok(poll(&mut fds, PollTimeout::from(TIMEOUT_MS))?));
    ensure!(ready.context("poll")? == 1, "no completion in {TIMEOUT_MS} ms");
    let [fd] = &fds;
    print_line(&format!("poll: {:?}", fd.revents().unwrap_or(PollFlags::empty())));
    let done = completion(&sender).context("recvmsg MSG_ERRQUEUE")?.context("no completion")?;
    let code = if done.code == 1 { "SO_EE_CODE_ZEROCOPY_COPIED" } else { "not copied" };
    print_line("recvmsg(MSG_ERRQUEUE):");
    print_line(&format!("  origin {} (SO_EE_ORIGIN_ZEROCOPY)", done.origin));
    print_line(&format!("  code {} ({code})", done.code));
    print_line(&format!("  sends {} to {}", done.first, done.last));
    sender.shutdown(Shutdown::Write).context("shutdown")?;
    receiver.join().ok().context("the receiver panicked")?.context("recv")?;
    Ok(())
}

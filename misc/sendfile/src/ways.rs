//! Four ways to send a file over a blocking socket. Each counts its system calls.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use clap::ValueEnum;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{pipe, write};
use socket2::Socket;

use crate::calls::{
    completion, enable_zerocopy, retry_eintr, send_zerocopy, sendfile, splice_in, splice_out,
};

/// The buffer size of `read-write` and `zerocopy`, and the capacity of a pipe (pipe(7)).
const BLOCK: usize = 64 * 1024;
/// The number of buffers of `zerocopy`, and so of sends without a completion.
const BUFFERS: usize = 16;

/// A way to send a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// pread(2) into a buffer, write(2) from it: two calls and two copies per 64 KiB
    ReadWrite,
    /// sendfile(2): the socket sends the pages of the file
    Sendfile,
    /// splice(2) into a pipe and from the pipe into the socket: pages too
    Splice,
    /// pread(2) into a buffer, send(2) with MSG_ZEROCOPY: pins the buffer until the completion
    Zerocopy,
}

impl Way {
    /// The name of the way in options and tables.
    pub fn name(self) -> &'static str {
        match self {
            Way::ReadWrite => "read-write",
            Way::Sendfile => "sendfile",
            Way::Splice => "splice",
            Way::Zerocopy => "zerocopy",
        }
    }
}

/// What was sent, and with how many calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// Bytes.
    pub bytes: u64,
    /// System calls.
    pub calls: u64,
    /// Sends with MSG_ZEROCOPY that the kernel has copied.
    pub copied: u64,
    /// Sends with MSG_ZEROCOPY that have a completion.
    pub completed: u64,
}

/// Sends `len` bytes of the file, or fewer if the file ends earlier.
///
/// # Errors
/// The call that failed.
pub fn send(way: Way, file: &File, len: u64, to: &Socket) -> io::Result<Sent> {
    match way {
        Way::ReadWrite => by_read_write(file, len, to),
        Way::Sendfile => by_sendfile(file, len, to),
        Way::Splice => by_splice(file, len, to),
        Way::Zerocopy => by_zerocopy(file, len, to),
    }
}

fn by_read_write(file: &File, len: u64, to: &Socket) -> io::Result<Sent> {
    let mut sent = Sent::default();
    let mut buffer = vec![0; BLOCK];
    while sent.bytes < len {
        let room = buffer.get_mut(..BLOCK.min((len - sent.bytes) as usize)).unwrap_or_default();
        let n = retry_eintr(|| file.read_at(room, sent.bytes))?;
        sent.calls += 1;
        if n == 0 {
            break;
        }
        let mut block = buffer.get(..n).unwrap_or_default();
        while !block.is_empty() {
            let n = retry_eintr(|| Ok(write(to, block)?))?;
            sent.calls += 1;
            sent.bytes += n as u64;
            block = block.get(n..).unwrap_or_default();
        }
    }
    Ok(sent)
}

fn by_sendfile(file: &File, len: u64, to: &Socket) -> io::Result<Sent> {
    let (mut sent, mut offset) = (Sent::default(), 0);
    // A short count: a signal or a timeout. 0: the file has become shorter.
    while sent.bytes < len {
        let n = retry_eintr(|| sendfile(to, file, &mut offset, (len - sent.bytes) as usize))?;
        sent.calls += 1;
        sent.bytes += n as u64;
        if n == 0 {
            break;
        }
    }
    Ok(sent)
}

fn by_splice(file: &File, len: u64, to: &Socket) -> io::Result<Sent> {
    let (mut sent, mut offset) = (Sent::default(), 0);
    let (out, into) = pipe()?;
    while sent.bytes < len {
        let wanted = BLOCK.min((len - sent.bytes) as usize);
        let mut piped = retry_eintr(|| splice_in(file, &mut offset, &into, wanted))?;
        sent.calls += 1;
        if piped == 0 {
            break;
        }
        while piped > 0 {
            let n = retry_eintr(|| splice_out(&out, to, piped))?;
            sent.calls += 1;
            sent.bytes += n as u64;
            piped -= n;
        }
    }
    Ok(sent)
}

fn by_zerocopy(file: &File, len: u64, to: &Socket) -> io::Result<Sent> {
    enable_zerocopy(to)?;
    let mut sent = Sent::default();
    let mut free: Vec<Vec<u8>> = (0..BUFFERS).map(|_| vec![0; BLOCK]).collect();
    // In the order of the sends. The kernel may still read these buffers.
    let mut pinned: VecDeque<Vec<u8>> = VecDeque::new();
    while sent.bytes < len {
        let Some(mut buffer) = free.pop() else {
            reclaim(to, &mut pinned, &mut free, &mut sent)?;
            continue;
        };
        buffer.resize(BLOCK.min((len - sent.bytes) as usize), 0);
        let n = retry_eintr(|| file.read_at(&mut buffer, sent.bytes))?;
        sent.calls += 1;
        if n == 0 {
            break;
        }
        buffer.truncate(n);
        sent.calls += 1;
        match retry_eintr(|| send_zerocopy(to, &buffer)) {
            // After a short count the next buffer starts where this send ended.
            Ok(n) => {
                sent.bytes += n as u64;
                pinned.push_back(buffer);
            }
            // The limit of pinned memory of this socket or user: wait for a completion.
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) && !pinned.is_empty() => {
                free.push(buffer);
                reclaim(to, &mut pinned, &mut free, &mut sent)?;
            }
            Err(e) => return Err(e),
        }
    }
    while !pinned.is_empty() {
        reclaim(to, &mut pinned, &mut free, &mut sent)?;
    }
    Ok(sent)
}

/// Waits for a completion and reuses its buffers.
fn reclaim(
    to: &Socket,
    pinned: &mut VecDeque<Vec<u8>>,
    free: &mut Vec<Vec<u8>>,
    sent: &mut Sent,
) -> io::Result<()> {
    sent.calls += 1;
    let Some(done) = completion(to)? else {
        // poll reports POLLERR, without being asked for it, when a completion has arrived.
        sent.calls += 1;
        let mut queue = [PollFd::new(to.as_fd(), PollFlags::empty())];
        return match retry_eintr(|| Ok(poll(&mut queue, PollTimeout::from(20_000u16))?))? {
            0 => Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)),
            _ => Ok(()),
        };
    };
    for _ in done.first..=done.last {
        sent.completed += 1;
        sent.copied += u64::from(done.code == 1);
        free.extend(pinned.pop_front());
    }
    Ok(())
}

//! Four ways to send a file, on a blocking socket. Each counts its own system calls.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use clap::ValueEnum;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{pipe, write};
use socket2::Socket;

use crate::calls::{again, completion, permit_zerocopy, send_zerocopy, sendfile, splice_in, splice_out};

/// The buffer of `read-write` and of each send of `zerocopy`, and the capacity of a pipe (pipe(7)).
const BLOCK: usize = 64 * 1024;
/// Buffers of `zerocopy`: so many sends may be under way.
const BUFFERS: usize = 16;

/// A way to send a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// pread(2) into a buffer and write(2) out of it: two calls and two copies for each 64 KiB
    ReadWrite,
    /// sendfile(2): the pages of the file go to the socket as they are
    Sendfile,
    /// splice(2) into a pipe and out of it: the same, for any pair with a pipe
    Splice,
    /// pread(2) into a buffer, and send(2) with MSG_ZEROCOPY, which pins it until a completion comes
    Zerocopy,
}

/// What was sent, and what it took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// Bytes.
    pub bytes: u64,
    /// System calls.
    pub calls: u64,
    /// Sends with MSG_ZEROCOPY of which the kernel said that they were copied.
    pub copied: u64,
    /// Sends with MSG_ZEROCOPY that are completed.
    pub completed: u64,
}

/// Sends `len` bytes of the file, or what there is of them.
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
        let n = again(|| file.read_at(room, sent.bytes))?;
        sent.calls += 1;
        if n == 0 {
            break;
        }
        let mut block = buffer.get(..n).unwrap_or_default();
        while !block.is_empty() {
            let n = again(|| Ok(write(to, block)?))?;
            sent.calls += 1;
            sent.bytes += n as u64;
            block = block.get(n..).unwrap_or_default();
        }
    }
    Ok(sent)
}

fn by_sendfile(file: &File, len: u64, to: &Socket) -> io::Result<Sent> {
    let (mut sent, mut offset) = (Sent::default(), 0);
    // Short where the call was interrupted or timed out with a part of it done; 0 where the file has become shorter.
    while sent.bytes < len {
        let n = again(|| sendfile(to, file, &mut offset, (len - sent.bytes) as usize))?;
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
        let mut piped = again(|| splice_in(file, &mut offset, &into, wanted))?;
        sent.calls += 1;
        if piped == 0 {
            break;
        }
        while piped > 0 {
            let n = again(|| splice_out(&out, to, piped))?;
            sent.calls += 1;
            sent.bytes += n as u64;
            piped -= n;
        }
    }
    Ok(sent)
}

fn by_zerocopy(file: &File, len: u64, to: &Socket) -> io::Result<Sent> {
    permit_zerocopy(to)?;
    let mut sent = Sent::default();
    let mut free: Vec<Vec<u8>> = (0..BUFFERS).map(|_| vec![0; BLOCK]).collect();
    // In the order of the sends. A buffer in here belongs to the kernel.
    let mut pinned: VecDeque<Vec<u8>> = VecDeque::new();
    while sent.bytes < len {
        let Some(mut buffer) = free.pop() else {
            reclaim(to, &mut pinned, &mut free, &mut sent)?;
            continue;
        };
        buffer.resize(BLOCK.min((len - sent.bytes) as usize), 0);
        let n = again(|| file.read_at(&mut buffer, sent.bytes))?;
        sent.calls += 1;
        if n == 0 {
            break;
        }
        buffer.truncate(n);
        sent.calls += 1;
        match again(|| send_zerocopy(to, &buffer)) {
            // Short: the rest is read and sent again with the next buffer.
            Ok(n) => {
                sent.bytes += n as u64;
                pinned.push_back(buffer);
            }
            // More is pinned than the limits of this socket or this user permit.
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

/// Waits for a completion, and takes the buffers back that it is about.
fn reclaim(to: &Socket, pinned: &mut VecDeque<Vec<u8>>, free: &mut Vec<Vec<u8>>, sent: &mut Sent) -> io::Result<()> {
    sent.calls += 1;
    let Some(done) = completion(to)? else {
        // Nothing yet. An error queue that is not empty shows as POLLERR, which need not be asked for.
        sent.calls += 1;
        let mut queue = [PollFd::new(to.as_fd(), PollFlags::empty())];
        return match again(|| Ok(poll(&mut queue, PollTimeout::from(20_000u16))?))? {
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

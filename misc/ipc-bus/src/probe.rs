//! One question per function. Each answer is an experiment on a new bus.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recv, recvmsg, sendmsg,
};
use nix::sys::stat::fstat;
use nix::unistd::pipe2;

use crate::bus::{Bus, End};

/// Larger than every message of these experiments.
pub const BUFFER: usize = 1 << 20;
const MOST_QUEUED: usize = 1_000_000;

/// How many messages of 128 bytes are queued before a writer blocks.
pub fn queued(bus: Bus) -> Result<String> {
    let (_reader, writer) = bus.open()?;
    writer.set_nonblocking()?;
    for count in 0..MOST_QUEUED {
        match writer.put(&[b'x'; 128]) {
            Ok(128) => {}
            Ok(_) | Err(Errno::EAGAIN) => return Ok(count.to_string()),
            Err(e) => return Ok(errno(e)),
        }
    }
    Ok(format!("over {MOST_QUEUED}"))
}

/// Two messages, one read: does it return one of them or both?
pub fn boundaries(bus: Bus) -> Result<String> {
    let (reader, writer) = bus.open()?;
    writer.put(b"first").context("write")?;
    writer.put(b"second").context("write")?;
    Ok(match reader.get(&mut buffer()) {
        Ok(5) => "yes".into(),
        Ok(11) => "no".into(),
        other => bail!("two messages were read as {other:?}"),
    })
}

/// All writers have closed and nothing is queued: what does the reader read?
pub fn end_of_file(bus: Bus) -> Result<String> {
    let (reader, writer) = bus.open()?;
    drop(writer);
    reader.set_nonblocking()?;
    Ok(match reader.get(&mut buffer()) {
        Ok(0) => "yes".into(),
        Err(Errno::EAGAIN) => "no: it blocks".into(),
        Ok(n) => format!("{n} bytes"),
        Err(e) => errno(e),
    })
}

/// Sends a descriptor (SCM_RIGHTS) and compares the received one with it.
pub fn carries_a_descriptor(bus: Bus) -> Result<String> {
    let (reader, writer) = bus.open()?;
    let (sent, _) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    let fds = [sent.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let (from, to) = (writer.as_fd().as_raw_fd(), reader.as_fd().as_raw_fd());
    match sendmsg::<UnixAddr>(from, &[IoSlice::new(b"x")], &rights, MsgFlags::MSG_NOSIGNAL, None) {
        Ok(_) => {}
        Err(e) => return Ok(format!("no: {}", errno(e))),
    }
    let mut byte = [0];
    let mut iov = [IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(to, &mut iov, Some(&mut space), flags).context("recvmsg")?;
    for control in message.cmsgs().context("control message")? {
        if let ControlMessageOwned::ScmRights(received) = control
            && let [fd] = received.as_slice()
        {
            // SAFETY: the kernel has just made this descriptor for us.
            let received = unsafe { OwnedFd::from_raw_fd(*fd) };
            let inode = |fd: &OwnedFd| fstat(fd).map(|stat| stat.st_ino).context("fstat");
            let is_same = inode(&received)? == inode(&sent)?;
            return Ok(if is_same { "yes" } else { "another one" }.into());
        }
    }
    Ok("no: lost".into())
}

/// Reads a message of 100 bytes with a buffer of 10, then the next message.
pub fn short_buffer(bus: Bus) -> Result<String> {
    let (reader, writer) = bus.open()?;
    writer.put(&[b'x'; 100]).context("write")?;
    writer.put(b"next").context("write")?;
    let mut small = [0; 10];
    let first = match read_with_flags(&reader, &mut small) {
        Ok((n, true)) => format!("{n} bytes, MSG_TRUNC"),
        Ok((n, false)) => format!("{n} bytes"),
        Err(e) => errno(e),
    };
    let rest = match reader.get(&mut buffer()) {
        Ok(4) => "the rest is gone",
        Ok(94) => "the rest follows",
        Ok(100) => "the message stays",
        other => bail!("after a short read: {other:?}"),
    };
    Ok(format!("{first}; {rest}"))
}

/// The number of bytes, and whether the kernel has set MSG_TRUNC. A pipe and a queue have no flags.
fn read_with_flags(reader: &End, buffer: &mut [u8]) -> nix::Result<(usize, bool)> {
    let mut iov = [IoSliceMut::new(buffer)];
    match recvmsg::<UnixAddr>(reader.as_fd().as_raw_fd(), &mut iov, None, MsgFlags::empty()) {
        Ok(message) => Ok((message.bytes, message.flags.contains(MsgFlags::MSG_TRUNC))),
        Err(Errno::ENOTSOCK) => reader.get(buffer).map(|n| (n, false)),
        Err(e) => Err(e),
    }
}

/// MSG_PEEK | MSG_TRUNC with a buffer of 10: does recv return the length of the next message?
pub fn next_length(bus: Bus) -> Result<String> {
    let (reader, writer) = bus.open()?;
    writer.put(&[b'x'; 100]).context("write")?;
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
    match recv(reader.as_fd().as_raw_fd(), &mut [0; 10], flags) {
        Ok(n) => Ok(n.to_string()),
        Err(e) => Ok(errno(e)),
    }
}

/// An empty message: does it arrive, and does it differ from end of file?
pub fn empty_message(bus: Bus) -> Result<String> {
    let (reader, writer) = bus.open()?;
    writer.put(b"").context("write")?;
    reader.set_nonblocking()?;
    Ok(match reader.get(&mut buffer()) {
        Ok(0) if end_of_file(bus)? == "yes" => "reads 0, as the end of file does".into(),
        Ok(0) => "reads 0".into(),
        Err(Errno::EAGAIN) => "nothing arrives".into(),
        Ok(n) => format!("{n} bytes"),
        Err(e) => errno(e),
    })
}

pub fn buffer() -> Vec<u8> {
    vec![0; BUFFER]
}

/// The name of the errno.
pub fn errno(e: Errno) -> String {
    format!("{e:?}")
}

//! One question to a bus, answered by an experiment on a fresh one.

use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recv, recvmsg, sendmsg};
use nix::sys::stat::fstat;
use nix::unistd::{ForkResult, Pid, fork, getpid, pipe2, read, write};

use crate::bus::{Bus, End, Names, Shielded};
use crate::process::{die_with, leave, reap};

/// More than any of them holds.
const BUFFER: usize = 1 << 20;
const MOST_QUEUED: usize = 1_000_000;

/// Messages of 128 bytes before a writer would block.
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

/// Two messages, one read: one of them, or both?
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

/// All writers are gone and nothing is queued: what does the reader read?
pub fn end_of_file(bus: Bus) -> Result<String> {
    let (reader, writer) = bus.open()?;
    drop(writer);
    reader.set_nonblocking()?;
    Ok(match reader.get(&mut buffer()) {
        Ok(0) => "yes".into(),
        Err(Errno::EAGAIN) => "no: it waits".into(),
        Ok(n) => format!("{n} bytes"),
        Err(e) => errno(e),
    })
}

/// Sends a descriptor (SCM_RIGHTS) and compares what arrives with what was sent.
pub fn carries_a_descriptor(bus: Bus) -> Result<String> {
    let (reader, writer) = bus.open()?;
    let (passenger, _) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    let fds = [passenger.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let (from, to) = (writer.as_fd().as_raw_fd(), reader.as_fd().as_raw_fd());
    match sendmsg::<UnixAddr>(from, &[IoSlice::new(b"x")], &rights, MsgFlags::MSG_NOSIGNAL, None) {
        Ok(_) => {}
        Err(e) => return Ok(format!("no: {}", errno(e))),
    }
    let mut byte = [0];
    let mut iov = [IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!([RawFd; 1]);
    let message = recvmsg::<UnixAddr>(to, &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).context("recvmsg")?;
    for control in message.cmsgs().context("control message")? {
        if let ControlMessageOwned::ScmRights(received) = control
            && let [fd] = received.as_slice()
        {
            // SAFETY: the kernel has just made it, and nobody else has it.
            let received = unsafe { OwnedFd::from_raw_fd(*fd) };
            let same = fstat(&received).context("fstat")?.st_ino == fstat(&passenger).context("fstat")?.st_ino;
            return Ok(if same { "yes" } else { "another one" }.into());
        }
    }
    Ok("no: lost".into())
}

/// A process makes it, sends a message and is killed: what is left for those who come later?
pub fn after_a_crash(bus: Bus) -> Result<String> {
    let _shielded = Shielded::new()?;
    let names = Names::new()?;
    let (told, tell) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    let parent = getpid();
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    let maker = match unsafe { fork() } {
        Ok(ForkResult::Child) => maker(bus, &names, &tell, parent),
        Ok(ForkResult::Parent { child }) => child,
        Err(e) => return Err(e).context("fork"),
    };
    drop(tell);
    let made = read(&told, &mut [0]);
    let _ = kill(maker, Signal::SIGKILL);
    reap(maker)?;
    if made != Ok(1) {
        // The reason, told by this process.
        bus.open()?;
        bail!("a child could not make it");
    }
    if names.path().exists() {
        let late = match names.connected() {
            Ok(_) => "somebody listens".into(),
            Err(e) => e.downcast_ref::<Errno>().map_or_else(|| e.to_string(), |e| errno(*e)),
        };
        return Ok(format!("the name: {late}"));
    }
    match names.open_queue() {
        Ok(queue) => {
            queue.set_nonblocking()?;
            Ok(match queue.get(&mut buffer()) {
                Ok(n) => format!("the queue, {n} bytes in it"),
                Err(e) => format!("the queue: {}", errno(e)),
            })
        }
        Err(_) => Ok("nothing".into()),
    }
}

fn maker(bus: Bus, names: &Names, tell: &OwnedFd, parent: Pid) -> ! {
    die_with(parent);
    let Ok((_reader, writer)) = bus.open_at(names) else { leave(1) };
    let _ = writer.put(b"left behind");
    let _ = write(tell, b"x");
    // Until it is killed.
    loop {
        thread::sleep(Duration::from_secs(1));
    }
}

/// PIPE_BUF, and what is larger than one limit or another.
const SIZES: [(usize, &str); 5] =
    [(4096, "4 KiB"), (8192, "8 KiB"), (49_152, "48 KiB"), (196_608, "192 KiB"), (1 << 20, "1 MiB")];

/// The largest records of two writers that arrive whole, and what happens to larger ones.
pub fn whole_up_to(bus: Bus) -> Result<String> {
    let mut largest = "none".to_owned();
    for (size, name) in SIZES {
        match two_writers(bus, size)? {
            Whole::Yes => largest = name.to_owned(),
            Whole::Torn => return Ok(format!("{largest}, then torn")),
            Whole::Refused(e) => return Ok(format!("{largest}, then {}", errno(e))),
        }
    }
    Ok(largest)
}

enum Whole {
    Yes,
    Torn,
    Refused(Errno),
}

/// Records of each writer in an experiment; enough that two who sleep in `write` take turns.
const RECORDS: usize = 32;

/// Each writer's records are made of its own letter: a record with two letters, or a part of one, is not whole.
fn two_writers(bus: Bus, size: usize) -> Result<Whole> {
    let (reader, writer) = bus.open()?;
    writer.set_nonblocking()?;
    if let Err(e @ Errno::EMSGSIZE) = writer.put(&vec![b'x'; size]) {
        return Ok(Whole::Refused(e));
    }
    // The try has left something in it.
    let (reader, writer) = {
        drop((reader, writer));
        bus.open()?
    };
    let parent = getpid();
    let mut writers = Vec::new();
    for letter in [b'a', b'b'] {
        // SAFETY: this process has one thread, so the child may do whatever the parent may.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => record_writer(&writer, letter, size, parent),
            Ok(ForkResult::Parent { child }) => writers.push(child),
            Err(e) => return Err(e).context("fork"),
        }
    }
    let whole = read_records(bus, &reader, size, &writers);
    for child in writers {
        let _ = kill(child, Signal::SIGKILL);
        reap(child)?;
    }
    Ok(if whole? { Whole::Yes } else { Whole::Torn })
}

fn record_writer(end: &End, letter: u8, size: usize, parent: Pid) -> ! {
    die_with(parent);
    let record = vec![letter; size];
    for _ in 0..RECORDS {
        let mut rest = record.as_slice();
        while !rest.is_empty() {
            match end.put(rest) {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(_) => leave(1),
            }
        }
    }
    leave(0)
}

/// Full: both writers sleep in the middle of something. Or they have written all there is, and are zombies.
fn until_it_sleeps(child: Pid) {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        if stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['S', 'Z'])) {
            return;
        }
        thread::sleep(Duration::from_micros(100));
    }
}

/// On a stream of bytes the reader makes the records again, by their size; else one read must be one record.
fn read_records(bus: Bus, reader: &End, size: usize, writers: &[Pid]) -> Result<bool> {
    let framed = boundaries(bus)? == "yes";
    let mut record = vec![0; size.max(BUFFER)];
    for _ in 0..2 * RECORDS {
        let mut filled = 0;
        while filled < size {
            writers.iter().for_each(|child| until_it_sleeps(*child));
            // In small bites: a writer who sleeps in the middle of a record finds room for a part of the rest, and then
            // the next one for a part of his.
            let end = if framed { record.len() } else { size.min(filled + 4096) };
            let n = reader.get(record.get_mut(filled..end).unwrap_or_default()).context("read")?;
            filled += n;
            if framed && n < size {
                return Ok(false);
            }
        }
        let first = record.first().copied();
        if record.iter().take(size).any(|byte| Some(*byte) != first) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// 100 bytes are read with a buffer of 10, and then the next message.
pub fn short_buffer(bus: Bus) -> Result<String> {
    let (reader, writer) = bus.open()?;
    writer.put(&[b'x'; 100]).context("write")?;
    writer.put(b"next").context("write")?;
    let mut small = [0; 10];
    let first = match told_by_recvmsg(&reader, &mut small) {
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

/// The number of bytes, and MSG_TRUNC in the answer's flags. What is no socket has no flags.
fn told_by_recvmsg(reader: &End, buffer: &mut [u8]) -> nix::Result<(usize, bool)> {
    let mut iov = [IoSliceMut::new(buffer)];
    match recvmsg::<UnixAddr>(reader.as_fd().as_raw_fd(), &mut iov, None, MsgFlags::empty()) {
        Ok(message) => Ok((message.bytes, message.flags.contains(MsgFlags::MSG_TRUNC))),
        Err(Errno::ENOTSOCK) => reader.get(buffer).map(|n| (n, false)),
        Err(e) => Err(e),
    }
}

/// MSG_PEEK | MSG_TRUNC: how long is the message that waits? Asked with a buffer of 10, before it is read.
pub fn asks_the_length(bus: Bus) -> Result<String> {
    let (reader, writer) = bus.open()?;
    writer.put(&[b'x'; 100]).context("write")?;
    match recv(reader.as_fd().as_raw_fd(), &mut [0; 10], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC) {
        Ok(n) => Ok(n.to_string()),
        Err(e) => Ok(errno(e)),
    }
}

/// A message of no bytes: does anything arrive, and can it be told from the end of file?
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

fn buffer() -> Vec<u8> {
    vec![0; BUFFER]
}

/// By its name, as man pages have it.
fn errno(e: Errno) -> String {
    format!("{e:?}")
}

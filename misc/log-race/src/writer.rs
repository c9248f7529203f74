//! Nine ways to write one line.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::thread;

use clap::ValueEnum;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, Whence, getppid, lseek, read};

use crate::locks::{Lock, flock, ofd_lock, posix_lock};
use crate::log::{Log, line};

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Mode {
    Seek,
    Append,
    AppendTwice,
    Flock,
    FlockInherited,
    Ofd,
    OfdOtherClosed,
    Posix,
    PosixOtherClosed,
}

impl Mode {
    pub fn steps(self) -> &'static str {
        match self {
            Mode::Seek => "lseek to the end, write",
            Mode::Append => "O_APPEND: one write",
            Mode::AppendTwice => "O_APPEND: two writes",
            Mode::Flock => "flock, two writes",
            Mode::FlockInherited => "flock on an inherited descriptor",
            Mode::Ofd => "F_OFD_SETLKW, two writes",
            Mode::OfdOtherClosed => "F_OFD_SETLKW, close, two writes",
            Mode::Posix => "F_SETLKW, two writes",
            Mode::PosixOtherClosed => "F_SETLKW, close, two writes",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// The work of one writer.
pub struct Job {
    pub number: u32,
    pub lines: u32,
    pub size: usize,
    pub mode: Mode,
    pub parent: Pid,
}

/// The whole life of a writer. `!`: it never returns into the parent's loop.
pub fn writer(job: &Job, log: &Log, shared: &File, wait: &OwnedFd, gate: OwnedFd) -> ! {
    let _ = set_pdeathsig(Signal::SIGKILL);
    drop(gate);
    // End of file: the parent has closed the gate or has ended.
    let _ = read(wait, &mut [0]);
    let outcome = if getppid() == job.parent { write_lines(job, log, shared) } else { Ok(()) };
    if let Err(e) = &outcome {
        // One write, because the other writers may fail too.
        let text = format!("log-race: writer {}: {e}\n", job.number);
        let _ = io::stderr().write_all(text.as_bytes());
    }
    // SAFETY: _exit, because exit would run the parent's atexit functions.
    unsafe { libc::_exit(i32::from(outcome.is_err())) }
}

fn write_lines(job: &Job, log: &Log, shared: &File) -> io::Result<()> {
    // Opened after the fork: a new open file description with its own offset and its own locks.
    let own = match job.mode {
        Mode::Seek => log.open_without_append()?,
        _ => log.open()?,
    };
    for number in 0..job.lines {
        let line = line(job.number, number, job.size);
        match job.mode {
            Mode::Seek => seek_and_write(&own, &line)?,
            Mode::Append => (&own).write_all(&line)?,
            Mode::AppendTwice => in_two(&own, &line)?,
            Mode::Flock => with_lock(flock, &own, None, &line)?,
            // All writers have the same open file description, which owns the lock, so no writer
            // waits.
            Mode::FlockInherited => with_lock(flock, shared, None, &line)?,
            Mode::Ofd => with_lock(ofd_lock, &own, None, &line)?,
            Mode::OfdOtherClosed => with_lock(ofd_lock, &own, Some(log), &line)?,
            Mode::Posix => with_lock(posix_lock, &own, None, &line)?,
            Mode::PosixOtherClosed => with_lock(posix_lock, &own, Some(log), &line)?,
        }
    }
    Ok(())
}

/// Two steps: another writer can find the same end of the file between them.
fn seek_and_write(mut file: &File, line: &[u8]) -> io::Result<()> {
    lseek(file, 0, Whence::SeekEnd)?;
    thread::yield_now();
    file.write_all(line)
}

/// Locks, writes the line in two parts, unlocks. With `other` it opens and closes the file in
/// between, as a library does that knows nothing of the lock: that releases a POSIX lock.
fn with_lock(
    lock: fn(&File, Lock) -> io::Result<()>,
    file: &File,
    other: Option<&Log>,
    line: &[u8],
) -> io::Result<()> {
    lock(file, Lock::Exclusive)?;
    if let Some(log) = other {
        drop(log.open()?);
    }
    in_two(file, line)?;
    lock(file, Lock::Unlock)
}

/// A line of two writes. Each write is complete, but only a lock keeps both together.
fn in_two(mut file: &File, line: &[u8]) -> io::Result<()> {
    let (head, tail) = line.split_at(line.len() / 2);
    file.write_all(head)?;
    thread::yield_now();
    file.write_all(tail)
}

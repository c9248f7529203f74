//! What a writer does for one line: the lesson's nine ways.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::thread;

use clap::ValueEnum;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, Whence, getppid, lseek, read};

use crate::locks::{flock, ofd_lock, posix_lock};
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
            Mode::Flock => "flock, two writes, unlock",
            Mode::FlockInherited => "the same on one open file for all",
            Mode::Ofd => "F_OFD_SETLKW, two writes, unlock",
            Mode::OfdOtherClosed => "F_OFD_SETLKW, open+close, two writes, unlock",
            Mode::Posix => "F_SETLKW, two writes, unlock",
            Mode::PosixOtherClosed => "F_SETLKW, open+close, two writes, unlock",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default().as_str())
    }
}

/// What one writer has to do.
pub struct Job {
    pub number: u32,
    pub lines: u32,
    pub size: usize,
    pub mode: Mode,
    pub parent: Pid,
}

/// A writer's whole life. `!`: it never returns into the parent's loop.
pub fn writer(job: &Job, log: &Log, shared: &File, wait: &OwnedFd, gate: OwnedFd) -> ! {
    let _ = set_pdeathsig(Signal::SIGKILL);
    drop(gate);
    // End of file when the parent has closed the gate, or has died.
    let _ = read(wait, &mut [0]);
    let outcome = if getppid() == job.parent { write_lines(job, log, shared) } else { Ok(()) };
    if let Err(e) = &outcome {
        // One write, here too: the others may have the same to say.
        let text = format!("log-race: writer {}: {e}\n", job.number);
        let _ = io::stderr().write_all(text.as_bytes());
    }
    // SAFETY: _exit, not exit: nothing of the parent's runs at the child's end.
    unsafe { libc::_exit(i32::from(outcome.is_err())) }
}

fn write_lines(job: &Job, log: &Log, shared: &File) -> io::Result<()> {
    // An open file of its own, with an offset and locks of its own: not a copy of one that was opened before the fork.
    let own = if job.mode == Mode::Seek { log.open_without_append()? } else { log.open()? };
    for number in 0..job.lines {
        let line = line(job.number, number, job.size);
        match job.mode {
            Mode::Seek => {
                lseek(&own, 0, Whence::SeekEnd)?;
                // Whoever else seeks now finds the same end.
                thread::yield_now();
                (&own).write_all(&line)?;
            }
            Mode::Append => (&own).write_all(&line)?,
            Mode::AppendTwice => in_two(&own, &line)?,
            Mode::Flock => {
                flock(&own, libc::LOCK_EX)?;
                in_two(&own, &line)?;
                flock(&own, libc::LOCK_UN)?;
            }
            // All writers have the same open file, and the lock is the open file's: each of them has it already.
            Mode::FlockInherited => {
                flock(shared, libc::LOCK_EX)?;
                in_two(shared, &line)?;
                flock(shared, libc::LOCK_UN)?;
            }
            Mode::Ofd => {
                ofd_lock(&own, libc::F_WRLCK)?;
                in_two(&own, &line)?;
                ofd_lock(&own, libc::F_UNLCK)?;
            }
            Mode::OfdOtherClosed => {
                ofd_lock(&own, libc::F_WRLCK)?;
                drop(log.open()?);
                in_two(&own, &line)?;
                ofd_lock(&own, libc::F_UNLCK)?;
            }
            Mode::Posix => {
                posix_lock(&own, libc::F_WRLCK)?;
                in_two(&own, &line)?;
                posix_lock(&own, libc::F_UNLCK)?;
            }
            // As a library does that looks at the log's size, and knows nothing of the lock: it is gone from here on.
            Mode::PosixOtherClosed => {
                posix_lock(&own, libc::F_WRLCK)?;
                drop(log.open()?);
                in_two(&own, &line)?;
                posix_lock(&own, libc::F_UNLCK)?;
            }
        }
    }
    Ok(())
}

/// A line made of two writes, each of them whole: what belongs together needs a lock.
fn in_two(mut file: &File, line: &[u8]) -> io::Result<()> {
    let (head, tail) = line.split_at(line.len() / 2);
    file.write_all(head)?;
    thread::yield_now();
    file.write_all(tail)
}

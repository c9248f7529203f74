//! Three locks on a file, and who has them: the process (POSIX) or the open file (OFD, flock).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::prctl::{set_child_subreaper, set_pdeathsig};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe2, read, write};

use crate::log::{Log, Unavailable};
use crate::say;

/// LOCK_EX waits until it gets the lock; LOCK_UN gives it back.
pub fn flock(file: &File, operation: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is involved.
    Ok(Errno::result(unsafe { libc::flock(file.as_raw_fd(), operation) }).map(drop)?)
}

/// F_WRLCK waits for the lock; F_UNLCK gives it back.
pub fn ofd_lock(file: &File, kind: libc::c_int) -> io::Result<()> {
    Ok(fcntl(file, FcntlArg::F_OFD_SETLKW(&whole_file(kind))).map(drop)?)
}

/// As `ofd_lock`, but the process owns it, whatever descriptor it was taken with.
pub fn posix_lock(file: &File, kind: libc::c_int) -> io::Result<()> {
    Ok(fcntl(file, FcntlArg::F_SETLKW(&whole_file(kind))).map(drop)?)
}

/// A length of 0 is "to the end, however long it becomes".
fn whole_file(kind: libc::c_int) -> libc::flock {
    let (l_type, l_whence) = (kind as libc::c_short, libc::SEEK_SET as libc::c_short);
    libc::flock { l_type, l_whence, l_start: 0, l_len: 0, l_pid: 0 }
}

#[derive(Clone, Copy)]
enum Kind {
    Posix,
    Ofd,
    Flock,
}

impl Kind {
    /// True: it has the lock. False: somebody else has it.
    fn try_lock(self, file: &File) -> Result<bool> {
        let lock = whole_file(libc::F_WRLCK);
        let result = match self {
            Kind::Posix => fcntl(file, FcntlArg::F_SETLK(&lock)),
            Kind::Ofd => fcntl(file, FcntlArg::F_OFD_SETLK(&lock)),
            // SAFETY: no memory is involved.
            Kind::Flock => Errno::result(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }),
        };
        match result {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(Errno::EINVAL | Errno::ENOLCK | Errno::EOPNOTSUPP) => {
                Err(Unavailable("this kernel or file system lacks one of the locks").into())
            }
            Err(e) => Err(e).context("lock"),
        }
    }
}

type Question = fn(Kind, &Log) -> Result<bool>;

const QUESTIONS: [(&str, Question); 5] = [
    ("keeps another process out", keeps_another_process_out),
    ("keeps out a second open() of its own process", keeps_out_its_own_process),
    ("is shared with a forked child", is_shared_with_a_child),
    ("is lost when another descriptor is closed", is_lost_by_another_close),
    ("outlives its killed holder in a child of his", outlives_its_holder),
];

/// Every cell is an experiment with processes of its own.
pub fn table(log: &Log) -> Result<()> {
    set_child_subreaper(true).context("PR_SET_CHILD_SUBREAPER")?;
    say(format_args!("{:46} {:8} {:8} {}", "the lock ...", "POSIX", "OFD", "flock"));
    for (text, question) in QUESTIONS {
        let cell = |kind| question(kind, log).context(text).map(|yes| if yes { "yes" } else { "no" });
        let (posix, ofd, flock) = (cell(Kind::Posix)?, cell(Kind::Ofd)?, cell(Kind::Flock)?);
        say(format_args!("{text:46} {posix:8} {ofd:8} {flock}"));
    }
    Ok(())
}

fn keeps_another_process_out(kind: Kind, log: &Log) -> Result<bool> {
    let _held = locked(kind, log)?;
    Ok(!a_stranger_gets_it(kind, log)?)
}

fn keeps_out_its_own_process(kind: Kind, log: &Log) -> Result<bool> {
    let _held = locked(kind, log)?;
    Ok(!kind.try_lock(&log.open()?)?)
}

fn is_shared_with_a_child(kind: Kind, log: &Log) -> Result<bool> {
    let held = locked(kind, log)?;
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => answer(kind.try_lock(&held)),
        Ok(ForkResult::Parent { child }) => answer_of(child),
        Err(e) => Err(e).context("fork"),
    }
}

fn is_lost_by_another_close(kind: Kind, log: &Log) -> Result<bool> {
    let _held = locked(kind, log)?;
    drop(log.open()?);
    a_stranger_gets_it(kind, log)
}

fn outlives_its_holder(kind: Kind, log: &Log) -> Result<bool> {
    let (told, tell) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    let (stay, end) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    let holder = match unsafe { fork() } {
        Ok(ForkResult::Child) => holder(kind, log, tell, stay, end),
        Ok(ForkResult::Parent { child }) => child,
        Err(e) => return Err(e).context("fork"),
    };
    drop((tell, stay));
    let mut heir = [0; 4];
    let n = read(&told, &mut heir).context("pipe")?;
    let _ = kill(holder, Signal::SIGKILL);
    waitpid(holder, None).context("waitpid")?;
    if n != heir.len() {
        bail!("the holder could not lock or fork");
    }
    let free = a_stranger_gets_it(kind, log);
    drop(end);
    // An orphan: it came to this process, which is a subreaper.
    waitpid(Pid::from_raw(i32::from_ne_bytes(heir)), None).context("waitpid")?;
    Ok(!free?)
}

/// Locks, forks a child that keeps the descriptor, and waits to be killed.
fn holder(kind: Kind, log: &Log, tell: OwnedFd, stay: OwnedFd, end: OwnedFd) -> ! {
    let _ = set_pdeathsig(Signal::SIGKILL);
    drop(end);
    let Ok(_held) = locked(kind, log) else { answer(Ok(false)) };
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => heir(&tell, &stay),
        Ok(ForkResult::Parent { .. }) => {
            drop(tell);
            let _ = read(&stay, &mut [0]);
            answer(Ok(true))
        }
        Err(_) => answer(Ok(false)),
    }
}

/// Stays until the observer has looked, or is dead.
fn heir(tell: &OwnedFd, stay: &OwnedFd) -> ! {
    let _ = write(tell, &std::process::id().to_ne_bytes());
    let _ = read(stay, &mut [0]);
    answer(Ok(true))
}

fn locked(kind: Kind, log: &Log) -> Result<File> {
    let file = log.open()?;
    if !kind.try_lock(&file)? {
        bail!("somebody holds the lock already");
    }
    Ok(file)
}

/// Another process, with an open file of its own.
fn a_stranger_gets_it(kind: Kind, log: &Log) -> Result<bool> {
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => stranger(kind, log),
        Ok(ForkResult::Parent { child }) => answer_of(child),
        Err(e) => Err(e).context("fork"),
    }
}

fn stranger(kind: Kind, log: &Log) -> ! {
    answer(log.open().map_err(Into::into).and_then(|file| kind.try_lock(&file)))
}

/// A child's answer is its exit status.
fn answer(answer: Result<bool>) -> ! {
    let status = match answer {
        Ok(yes) => i32::from(yes),
        Err(_) => 2,
    };
    // SAFETY: _exit, not exit: nothing of the parent's runs at the child's end.
    unsafe { libc::_exit(status) }
}

fn answer_of(child: Pid) -> Result<bool> {
    match waitpid(child, None).context("waitpid")? {
        WaitStatus::Exited(_, 0) => Ok(false),
        WaitStatus::Exited(_, 1) => Ok(true),
        status => bail!("a child failed: {status:?}"),
    }
}

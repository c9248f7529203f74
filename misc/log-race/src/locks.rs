//! Three locks on a file. The owner is the process (POSIX) or the open file description (OFD,
//! flock).

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
use crate::print_line;

/// What to do with a lock.
#[derive(Clone, Copy, PartialEq)]
pub enum Lock {
    /// Wait for the lock.
    Exclusive,
    /// Release the lock.
    Unlock,
}

/// flock(2): the owner is the open file description.
pub fn flock(file: &File, lock: Lock) -> io::Result<()> {
    let operation = if lock == Lock::Unlock { libc::LOCK_UN } else { libc::LOCK_EX };
    // SAFETY: no memory is involved.
    Ok(Errno::result(unsafe { libc::flock(file.as_raw_fd(), operation) }).map(drop)?)
}

/// F_OFD_SETLKW: the owner is the open file description.
pub fn ofd_lock(file: &File, lock: Lock) -> io::Result<()> {
    Ok(fcntl(file, FcntlArg::F_OFD_SETLKW(&whole_file(lock))).map(drop)?)
}

/// F_SETLKW: the owner is the process, with all its descriptors of the file.
pub fn posix_lock(file: &File, lock: Lock) -> io::Result<()> {
    Ok(fcntl(file, FcntlArg::F_SETLKW(&whole_file(lock))).map(drop)?)
}

/// A length of 0 means: to the end of the file, also when it grows.
fn whole_file(lock: Lock) -> libc::flock {
    let kind = if lock == Lock::Unlock { libc::F_UNLCK } else { libc::F_WRLCK };
    let (l_type, l_whence) = (kind as libc::c_short, libc::SEEK_SET as libc::c_short);
    libc::flock { l_type, l_whence, l_start: 0, l_len: 0, l_pid: 0 }
}

/// flock(2) without waiting.
const EXCLUSIVE: libc::c_int = libc::LOCK_EX | libc::LOCK_NB;

#[derive(Clone, Copy)]
enum Kind {
    Posix,
    Ofd,
    Flock,
}

impl Kind {
    /// True: the lock is taken. False: it is in use.
    fn try_lock(self, file: &File) -> Result<bool> {
        let lock = whole_file(Lock::Exclusive);
        let result = match self {
            Kind::Posix => fcntl(file, FcntlArg::F_SETLK(&lock)),
            Kind::Ofd => fcntl(file, FcntlArg::F_OFD_SETLK(&lock)),
            // SAFETY: no memory is involved.
            Kind::Flock => Errno::result(unsafe { libc::flock(file.as_raw_fd(), EXCLUSIVE) }),
        };
        match result {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(Errno::EINVAL | Errno::ENOLCK | Errno::EOPNOTSUPP) => {
                Err(Unavailable("this kernel or file system does not have all three locks").into())
            }
            Err(e) => Err(e).context("lock"),
        }
    }
}

type Question = fn(Kind, &Log) -> Result<bool>;

const QUESTIONS: [(&str, Question); 5] = [
    ("excludes another process", excludes_another_process),
    ("excludes a second open() of the same process", excludes_its_own_process),
    ("is shared with a forked child", is_shared_with_a_child),
    ("is lost when another descriptor is closed", is_lost_by_another_close),
    ("is kept by a child of its killed owner", is_kept_by_a_child),
];

/// Each cell is an experiment with new processes.
pub fn table(log: &Log) -> Result<()> {
    set_child_subreaper(true).context("PR_SET_CHILD_SUBREAPER")?;
    print_line(format_args!("{:46} {:8} {:8} {}", "the lock ...", "POSIX", "OFD", "flock"));
    for (text, question) in QUESTIONS {
        let cell =
            |kind| question(kind, log).context(text).map(|yes| if yes { "yes" } else { "no" });
        let (posix, ofd, flock) = (cell(Kind::Posix)?, cell(Kind::Ofd)?, cell(Kind::Flock)?);
        print_line(format_args!("{text:46} {posix:8} {ofd:8} {flock}"));
    }
    Ok(())
}

fn excludes_another_process(kind: Kind, log: &Log) -> Result<bool> {
    let _held = locked(kind, log)?;
    Ok(!another_process_gets_it(kind, log)?)
}

fn excludes_its_own_process(kind: Kind, log: &Log) -> Result<bool> {
    let _held = locked(kind, log)?;
    Ok(!kind.try_lock(&log.open()?)?)
}

fn is_shared_with_a_child(kind: Kind, log: &Log) -> Result<bool> {
    let held = locked(kind, log)?;
    // SAFETY: this process has one thread, so the child may call any function.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => exit_with(kind.try_lock(&held)),
        Ok(ForkResult::Parent { child }) => answer_of(child),
        Err(e) => Err(e).context("fork"),
    }
}

fn is_lost_by_another_close(kind: Kind, log: &Log) -> Result<bool> {
    let _held = locked(kind, log)?;
    drop(log.open()?);
    another_process_gets_it(kind, log)
}

fn is_kept_by_a_child(kind: Kind, log: &Log) -> Result<bool> {
    let (ready, notify) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    let (stay, end) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    // SAFETY: this process has one thread, so the child may call any function.
    let owner = match unsafe { fork() } {
        Ok(ForkResult::Child) => owner(kind, log, notify, stay, end),
        Ok(ForkResult::Parent { child }) => child,
        Err(e) => return Err(e).context("fork"),
    };
    drop((notify, stay));
    let mut pid = [0; 4];
    let n = read(&ready, &mut pid).context("pipe")?;
    let _ = kill(owner, Signal::SIGKILL);
    waitpid(owner, None).context("waitpid")?;
    if n != pid.len() {
        bail!("the owner could not lock or fork");
    }
    let is_free = another_process_gets_it(kind, log);
    drop(end);
    // The child of the owner is now a child of this process, which is a subreaper.
    waitpid(Pid::from_raw(i32::from_ne_bytes(pid)), None).context("waitpid")?;
    Ok(!is_free?)
}

/// Locks, forks a child that keeps the descriptor, and waits until it is killed.
fn owner(kind: Kind, log: &Log, notify: OwnedFd, stay: OwnedFd, end: OwnedFd) -> ! {
    let _ = set_pdeathsig(Signal::SIGKILL);
    drop(end);
    let Ok(_held) = locked(kind, log) else { exit_with(Ok(false)) };
    // SAFETY: this process has one thread, so the child may call any function.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => child_of_owner(&notify, &stay),
        Ok(ForkResult::Parent { .. }) => {
            drop(notify);
            let _ = read(&stay, &mut [0]);
            exit_with(Ok(true))
        }
        Err(_) => exit_with(Ok(false)),
    }
}

/// Runs until the observer closes its end of the pipe or ends.
fn child_of_owner(notify: &OwnedFd, stay: &OwnedFd) -> ! {
    let _ = write(notify, &std::process::id().to_ne_bytes());
    let _ = read(stay, &mut [0]);
    exit_with(Ok(true))
}

/// Opens the file and locks it.
fn locked(kind: Kind, log: &Log) -> Result<File> {
    let file = log.open()?;
    if !kind.try_lock(&file)? {
        bail!("the lock is already in use");
    }
    Ok(file)
}

/// Another process opens the file and tries to lock it.
fn another_process_gets_it(kind: Kind, log: &Log) -> Result<bool> {
    // SAFETY: this process has one thread, so the child may call any function.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => try_in_child(kind, log),
        Ok(ForkResult::Parent { child }) => answer_of(child),
        Err(e) => Err(e).context("fork"),
    }
}

/// The life of the other process.
fn try_in_child(kind: Kind, log: &Log) -> ! {
    exit_with(log.open().map_err(Into::into).and_then(|file| kind.try_lock(&file)))
}

/// The exit status of a child is its answer.
fn exit_with(answer: Result<bool>) -> ! {
    let status = match answer {
        Ok(yes) => i32::from(yes),
        Err(_) => 2,
    };
    // SAFETY: _exit, because exit would run the parent's atexit functions.
    unsafe { libc::_exit(status) }
}

fn answer_of(child: Pid) -> Result<bool> {
    match waitpid(child, None).context("waitpid")? {
        WaitStatus::Exited(_, 0) => Ok(false),
        WaitStatus::Exited(_, 1) => Ok(true),
        status => bail!("a child failed: {status:?}"),
    }
}

//! Signals to a process, not to a number: pidfd_open(2) and pidfd_send_signal(2). nix has neither.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use crate::rundir::my_uid;

/// A descriptor for the process that has the number `pid` now. The kernel may give the number to
/// another process later; the descriptor still means the first one.
///
/// # Errors
/// ESRCH if there is no such process.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: two integers; the kernel returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the descriptor is new, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends `signal` to the process that the descriptor was opened for, and to no other.
///
/// # Errors
/// ESRCH after the process has been reaped.
pub fn pidfd_send_signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    let (fd, info) = (pidfd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: with a null siginfo the kernel fills one in, as it does for kill(2).
    let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// True if the process `pid` belongs to this user and has a handler for `signal`, so that the
/// signal cannot kill it. A blocked signal is not enough: the process may unblock it later. Call
/// this after [`pidfd_open`], so that the process that is checked is the process that is signalled.
#[must_use]
pub fn catches(pid: i32, signal: i32) -> bool {
    let proc = format!("/proc/{pid}");
    let is_ours = fs::metadata(&proc).is_ok_and(|meta| meta.uid() == my_uid());
    let status = fs::read_to_string(format!("{proc}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0");
    let caught = u64::from_str_radix(mask.trim(), 16).unwrap_or(0);
    is_ours && caught & (1 << (signal - 1)) != 0
}

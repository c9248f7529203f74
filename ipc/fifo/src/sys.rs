//! What nix has no name for: pidfd_open, pidfd_send_signal, getrandom; and the checks on names and pids.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The user this process acts for.
#[must_use]
pub fn my_uid() -> u32 {
    // SAFETY: it takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// A descriptor for the process that has `pid` now. It never comes to mean another process.
///
/// # Errors
/// ESRCH where there is none.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: two integers; the kernel returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the descriptor is new and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends `signal` to exactly the process the descriptor was opened for.
///
/// # Errors
/// ESRCH once it has been reaped.
pub fn pidfd_send_signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo asks the kernel to fill it as kill(2) would.
    let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// 16 bytes nobody can guess.
///
/// # Errors
/// Where the kernel gives none.
pub fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0u8; 16];
    // SAFETY: the pointer and the length are those of the array.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == 16 { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}

/// Opens a FIFO of ours: never through a symbolic link, never a plain file put there, never somebody else's.
///
/// # Errors
/// ENXIO where a write end is asked for and nobody reads; `InvalidInput` for anything that is not our FIFO.
pub fn open_fifo(path: &Path, read: bool, write: bool) -> io::Result<File> {
    let file =
        OpenOptions::new().read(read).write(write).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    let ours = meta.file_type().is_fifo() && meta.uid() == my_uid() && meta.mode() & 0o077 == 0;
    if ours { Ok(file) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "not a private FIFO of ours")) }
}

/// May this pid be sent `signal`? It must be another process of ours that has unblockable death by it ruled out:
/// it catches the signal. (Blocked is not enough: it may be unblocked later.) Ask while a pidfd is held, so that the
/// process asked about is the one that will be signalled.
#[must_use]
pub fn expects(pid: i32, signal: i32) -> bool {
    let proc = format!("/proc/{pid}");
    let ours = fs::metadata(&proc).is_ok_and(|meta| meta.uid() == my_uid());
    let status = fs::read_to_string(format!("{proc}/status")).unwrap_or_default();
    let mask = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("0");
        u64::from_str_radix(line.trim(), 16).unwrap_or(0)
    };
    ours && mask("SigCgt:") & (1 << (signal - 1)) != 0
}

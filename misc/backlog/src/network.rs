//! A network namespace for this process: its own loopback, its own settings, its own counters.

use std::fs;
use std::os::fd::AsRawFd;

use anyhow::Context;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Socket, Type};

use crate::Stop;

/// Moves this process into a new network namespace and sets its loopback interface up. The process
/// must have one thread.
///
/// Inside a new user namespace every user may do this. There is nothing to undo: the kernel removes
/// both namespaces when the last process in them ends.
///
/// # Errors
/// [`Stop::Unavailable`] if the machine does not permit it.
pub fn enter() -> Result<(), Stop> {
    let entered = match unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET) {
        // User namespaces are disabled; root does not need one.
        Err(_) => unshare(CloneFlags::CLONE_NEWNET),
        done => done,
    };
    entered.map_err(|e| {
        Stop::Unavailable(format!(
            "unshare: {}: cannot make a network namespace. Check user.max_user_namespaces, \
             kernel.apparmor_restrict_unprivileged_userns and the container's seccomp filter.",
            e.desc()
        ))
    })?;
    loopback_up()
}

/// Sets IFF_UP on `lo`: a new network namespace has only a loopback interface, and it is down.
fn loopback_up() -> Result<(), Stop> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).context("socket")?;
    // SAFETY: all bytes zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the descriptor is open, and the kernel reads one ifreq.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) };
    // EPERM: AppArmor permits the namespace but gives no capability in it.
    Errno::result(rc).map(drop).map_err(|e| {
        let why = e.desc();
        Stop::Unavailable(format!("ioctl SIOCSIFFLAGS lo: {why}: no privilege in the namespace"))
    })
}

/// Writes a setting below `/proc/sys/net/`. It belongs to the namespace of the writer.
///
/// # Errors
/// [`Stop::Unavailable`] if the kernel has no such setting, or /proc/sys is read-only.
pub fn set(name: &str, value: u32) -> Result<(), Stop> {
    let path = format!("/proc/sys/net/{name}");
    fs::write(&path, value.to_string()).map_err(|e| Stop::Unavailable(format!("write {path}: {e}")))
}

//! A network namespace of this process's own: its loopback, its settings and its counters are nobody else's.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use anyhow::Context;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Socket, Type};

use crate::Stop;

/// Moves this process, which must have one thread, into a new network namespace, and brings loopback up there.
///
/// In a user namespace of its own every user may do that. Nothing has to be undone: the kernel takes both namespaces
/// away with the last process in them.
///
/// # Errors
/// [`Stop::Unavailable`] where the machine does not permit it.
pub fn enter() -> Result<(), Stop> {
    let entered = match unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET) {
        // User namespaces are switched off; root needs none.
        Err(_) => unshare(CloneFlags::CLONE_NEWNET),
        done => done,
    };
    entered.map_err(|e| {
        Stop::Unavailable(format!(
            "unshare: {}: this experiment needs a network namespace of its own, and the machine permits none \
             (user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns, a container's filter)",
            e.desc()
        ))
    })?;
    loopback_up()
}

/// Sets IFF_UP on `lo`: a new network namespace has nothing but a loopback that is down.
fn loopback_up() -> Result<(), Stop> {
    let any = Socket::new(Domain::IPV4, Type::DGRAM, None).context("socket")?;
    // SAFETY: all bytes zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the descriptor is open, and the kernel reads one ifreq.
    let rc = unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCSIFFLAGS, &request) };
    match Errno::result(rc) {
        Ok(_) => Ok(()),
        // The namespace was given without its capabilities: AppArmor's way to say no.
        Err(e) => {
            Err(Stop::Unavailable(format!("ioctl SIOCSIFFLAGS lo: {}: no rights in the new namespace", e.desc())))
        }
    }
}

/// Sets a value under `/proc/sys/net/`: of the namespace that the writer is in.
///
/// # Errors
/// [`Stop::Unavailable`] where the kernel has no such setting, or /proc/sys is read-only.
pub fn set(name: &str, value: u32) -> Result<(), Stop> {
    let path = format!("/proc/sys/net/{name}");
    fs::write(&path, value.to_string()).map_err(|e: io::Error| Stop::Unavailable(format!("write {path}: {e}")))
}

/// The value of such a setting.
///
/// # Errors
/// [`Stop::Unavailable`] where the kernel has no such setting.
pub fn setting(name: &str) -> Result<String, Stop> {
    let path = format!("/proc/sys/net/{name}");
    let text = fs::read_to_string(&path).map_err(|e| Stop::Unavailable(format!("read {path}: {e}")))?;
    Ok(text.trim().to_owned())
}

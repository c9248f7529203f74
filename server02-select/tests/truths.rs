//! Kernel truth (i): an fd_set ends at 1024, the kernel does not, and what matters is the number of the descriptor.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // test code

use std::io::{Write, pipe};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::{mem, ptr};

use testkit::oracle::{self, Baseline};
use testkit::{End, Peer, Server, procs};

const FD_SETSIZE: usize = 1024;
/// Beyond what an fd_set can hold.
const BEYOND: RawFd = 1030;

fn raise_limit() {
    procs::limit_descriptors(std::process::id() as i32, 4096);
}

/// A copy with the lowest free number from `BEYOND` on.
fn beyond(fd: &impl AsRawFd) -> OwnedFd {
    raise_limit();
    // SAFETY: makes a descriptor.
    let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, BEYOND) };
    assert!(copy >= BEYOND, "fcntl: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just made it, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(copy) }
}

/// The 1025th connection would be the first that no set can hold. Refused with a line, and the server stays up.
#[test]
fn truth_i_the_client_that_no_set_can_hold_is_refused_politely() {
    raise_limit();
    let server = Server::start(env!("CARGO_BIN_EXE_server02-select"), &[]);
    let base = Baseline::of(&server);
    let mut peers: Vec<Peer> = (0..=FD_SETSIZE).map(|_| server.connect()).collect();
    let (bytes, end) = peers.pop().unwrap().read_to_end();
    assert_eq!((String::from_utf8_lossy(&bytes).as_ref(), end), ("ERR busy\n", End::Eof));
    peers.iter_mut().take(900).for_each(|peer| peer.ask(1));
    drop(peers);
    oracle::finish(server, &base);
}

/// The same call with a larger map: the limit is the library's.
#[test]
fn truth_i_the_kernel_selects_a_descriptor_beyond_fd_setsize() {
    let (reader, mut writer) = pipe().unwrap();
    let copy = beyond(&reader);
    let fd = copy.as_raw_fd();
    let (word, bit) = (fd as usize / 64, 1 << (fd as usize % 64));
    for (bytes, ready) in [(&b""[..], 0), (b"x", 1)] {
        writer.write_all(bytes).unwrap();
        let mut map = [0_u64; 64];
        assert!(map.len() * 64 > fd as usize, "the map ends before {}", fd);
        map[word] = bit;
        let mut now = libc::timeval { tv_sec: 0, tv_usec: 0 };
        let (reads, none) = (map.as_mut_ptr().cast(), ptr::null_mut());
        // SAFETY: the kernel reads and writes as many bits as the first argument says, and the map has more.
        let n = unsafe { libc::select(fd + 1, reads, none, none, &mut now) };
        assert_eq!(n, ready, "{}", std::io::Error::last_os_error());
        assert_eq!(map[word], if ready == 1 { bit } else { 0 });
    }
}

/// In C it writes beyond the set. The function of the libc crate looks, panics where nothing may unwind, and so aborts:
/// better than corrupted memory, and still the end of the server for all its clients. Aborted is a process of its own.
#[test]
fn truth_i_fd_set_of_the_libc_crate_aborts_the_process() {
    const TEST: &str = "truth_i_fd_set_of_the_libc_crate_aborts_the_process";
    if let Ok(fd) = std::env::var("FD_SET") {
        // SAFETY: all zero bytes are an empty set.
        let mut set: libc::fd_set = unsafe { mem::zeroed() };
        // SAFETY: the function does not write where the set ends: that is what is tested.
        unsafe { libc::FD_SET(fd.parse().unwrap(), &mut set) };
        return;
    }
    for (fd, signal) in
        [(FD_SETSIZE as i32 - 1, None), (FD_SETSIZE as i32, Some(libc::SIGABRT)), (BEYOND, Some(libc::SIGABRT))]
    {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", TEST, "--nocapture"]).env("FD_SET", fd.to_string());
        let output = again.output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.signal(), signal, "{fd}: {text}");
        assert!(signal.is_some() || output.status.success(), "{fd}: {text}");
    }
}

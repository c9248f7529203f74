//! Verified kernel behavior (i): the fd_set of the C library ends at 1024. The kernel has no such
//! limit. The number of the descriptor counts, not how many descriptors are watched.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // test code

use std::io::{Write, pipe};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::{mem, ptr};

use testkit::oracle::{self, Baseline};
use testkit::{End, Peer, Server, procs};

const FD_SETSIZE: usize = 1024;
/// A number that an fd_set has no bit for.
const BEYOND: RawFd = 1030;

fn raise_limit() {
    procs::limit_descriptors(std::process::id() as i32, 4096);
}

/// A copy with the lowest free number from `BEYOND` on.
fn beyond(fd: &impl AsRawFd) -> OwnedFd {
    raise_limit();
    // SAFETY: fcntl creates a descriptor and changes no memory.
    let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, BEYOND) };
    assert!(copy >= BEYOND, "fcntl: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just created the descriptor, and no other value owns it.
    unsafe { OwnedFd::from_raw_fd(copy) }
}

/// The descriptor of the 1025th connection would have no bit in a set.
#[test]
fn truth_i_client_without_a_bit_in_the_set_is_rejected_with_err_busy() {
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

/// The same call with a larger set: the limit is in the library.
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
        // SAFETY: the kernel reads and writes as many bits as the first argument says. The map has
        // more.
        let n = unsafe { libc::select(fd + 1, reads, none, none, &mut now) };
        assert_eq!(n, ready, "{}", std::io::Error::last_os_error());
        assert_eq!(map[word], if ready == 1 { bit } else { 0 });
    }
}

/// In C, FD_SET of such a number writes past the end of the set. The function of the libc crate
/// checks the number and panics in a function that must not unwind, so the process aborts. The test
/// runs it in a process of its own.
#[test]
fn truth_i_fd_set_of_the_libc_crate_aborts_the_process() {
    const TEST: &str = "truth_i_fd_set_of_the_libc_crate_aborts_the_process";
    if let Ok(fd) = std::env::var("FD_SET") {
        // SAFETY: all zero bytes are an empty set.
        let mut set: libc::fd_set = unsafe { mem::zeroed() };
        // SAFETY: the function does not write past the end of the set. This is what the test
        // checks.
        unsafe { libc::FD_SET(fd.parse().unwrap(), &mut set) };
        return;
    }
    let last = FD_SETSIZE as RawFd - 1;
    let abort = Some(libc::SIGABRT);
    for (fd, signal) in [(last, None), (last + 1, abort), (BEYOND, abort)] {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", TEST, "--nocapture"]).env("FD_SET", fd.to_string());
        let output = again.output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.signal(), signal, "{fd}: {text}");
        assert!(signal.is_some() || output.status.success(), "{fd}: {text}");
    }
}

//! Kernel truth (r): what a new thread needs besides its stack. std cannot report this failure.
#![allow(clippy::unwrap_used, clippy::panic)] // test code

use std::os::unix::process::ExitStatusExt;

use testkit::tools::{self, Injection};
use testkit::{Peer, Server, eventually};

/// std gives each new thread an alternative signal stack with a guard page (mmap, mprotect). If the
/// kernel has no memory for it, std panics outside of all code of the program.
#[test]
fn truth_r_failed_guard_page_in_a_new_thread_aborts_the_process() {
    if !tools::have("strace", "truth_r_failed_guard_page_in_a_new_thread_aborts_the_process") {
        return;
    }
    let mut server = Server::start(env!("CARGO_BIN_EXE_server05-threads"), &[]);
    // In a new thread the first mprotect belongs to malloc, and the second makes the guard page.
    let inject = "mprotect:error=ENOMEM:when=2";
    let injection = Injection::attach(&[server.pid()], true, inject);
    let status = eventually("the server ends", || {
        drop(Peer::try_connect(server.addr));
        server.exited()
    });
    drop(injection);
    server.wait();
    assert_eq!(status.signal(), Some(6), "SIGABRT: {}", server.log());
}

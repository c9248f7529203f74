//! The kernel is out of memory in epoll_ctl or epoll_wait: the server logs it and goes on.

use testkit::oracle::{self, Baseline};
use testkit::tools::{self, Injection};
use testkit::{End, Server, pattern, procs};

const LEVEL: &str = env!("CARGO_BIN_EXE_server02b-epoll");
const EDGE: &str = env!("CARGO_BIN_EXE_server02b-edge");
const WARNING: &str = "Cannot allocate memory";

/// With this limit of descriptors the next accept fails with EMFILE.
fn used_up(server: &Server) -> u64 {
    let used = procs::descriptors(server.pid());
    (0..).find(|fd| !used.contains_key(fd)).unwrap_or_default() as u64
}

#[test]
fn listener_that_cannot_be_added_again_is_added_after_a_pause() {
    if !tools::have("strace", "listener_that_cannot_be_added_again_is_added_after_a_pause") {
        return;
    }
    let server = Server::start(LEVEL, &[]);
    let base = Baseline::of(&server);
    let limit = procs::limit_descriptors(server.pid(), used_up(&server));
    // EMFILE removes the listener. The second epoll_ctl adds it again.
    let injection = Injection::attach(&[server.pid()], false, "epoll_ctl:error=ENOMEM:when=2");
    let mut late = server.connect();
    late.send("3000\n");
    server.wait_log(WARNING);
    procs::limit_descriptors(server.pid(), limit);
    assert!(late.read_exactly(3000) == pattern(3000), "not served after the pause");
    drop((injection, late));
    oracle::finish(server, &base);
}

#[test]
fn client_that_cannot_be_registered_is_closed_and_the_next_client_is_served() {
    if !tools::have("strace", "client_that_cannot_be_registered_is_closed") {
        return;
    }
    for bin in [LEVEL, EDGE] {
        let server = Server::start(bin, &[]);
        let base = Baseline::of(&server);
        let call = "epoll_ctl:error=ENOMEM:when=1";
        let injection = Injection::attach(&[server.pid()], false, call);
        let (bytes, end) = server.connect().read_to_end();
        assert_eq!((bytes.len(), end), (0, End::Eof), "{bin}");
        server.connect().ask(100);
        server.wait_log(WARNING);
        assert_eq!(server.log().matches(WARNING).count(), 1, "{bin}: {}", server.log());
        drop(injection);
        oracle::finish(server, &base);
    }
}

#[test]
fn epoll_wait_without_memory_is_called_again() {
    if !tools::have("strace", "epoll_wait_without_memory_is_called_again") {
        return;
    }
    for bin in [LEVEL, EDGE] {
        let server = Server::start(bin, &[]);
        let base = Baseline::of(&server);
        let call = "?epoll_wait,epoll_pwait:error=ENOMEM:when=1..3";
        let injection = Injection::attach(&[server.pid()], false, call);
        server.connect().ask(100);
        server.wait_log(WARNING);
        drop(injection);
        oracle::finish(server, &base);
    }
}

//! A signal and a new connection that one epoll_wait reports together.

use nix::sys::signal::Signal;
use testkit::{Peer, Server, eventually};

/// The signal shuts the listener down. accept on this listener would return EINVAL.
#[test]
fn signal_before_a_connection_in_one_iteration_ends_the_server_with_status_0() {
    for bin in [env!("CARGO_BIN_EXE_server02b-epoll"), env!("CARGO_BIN_EXE_server02b-edge")] {
        let mut server = Server::start(bin, &[]);
        server.connect().ask(1);
        server.signal(Signal::SIGSTOP);
        eventually("it has stopped", || {
            server.family().iter().all(|process| process.state == 'T').then_some(())
        });
        server.signal(Signal::SIGTERM);
        let queued = Peer::try_connect(server.addr);
        server.signal(Signal::SIGCONT);
        let status = server.wait();
        assert_eq!(status.code(), Some(0), "{bin}: {}", server.log());
        drop(queued);
    }
}

//! What the hand-over promises: a worker that dies, cannot take a descriptor or is lied to costs at most its own client.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // test code

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;
use testkit::oracle::{self, Baseline};
use testkit::{End, Peer, Server, eventually, procs};

fn start(workers: usize) -> Server {
    let server = Server::start(env!("CARGO_BIN_EXE_server04-fdpass"), &["-v", "-n", &workers.to_string()]);
    eventually("the pool is complete", || (pool(&server).len() == workers).then_some(()));
    server
}

fn pool(server: &Server) -> BTreeSet<i32> {
    server.family().iter().filter(|p| p.pid != server.pid() && p.state != 'Z').map(|p| p.pid).collect()
}

fn only_worker(server: &Server) -> i32 {
    eventually("a worker", || pool(server).into_iter().next())
}

fn tell(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// The clients have been accepted and passed on: they wait in the channel, and nobody holds them.
fn passed_on(server: &Server) {
    let mut last = 0;
    eventually("the parent sleeps", || {
        std::thread::sleep(Duration::from_millis(50)); // the measure: no CPU time in this long
        std::mem::replace(&mut last, procs::cpu_ns(server.pid())).eq(&procs::cpu_ns(server.pid())).then_some(())
    });
}

/// No listener, no other worker's channel, no other end of its own, no other client.
#[test]
fn a_worker_holds_its_channel_and_its_client_and_no_more() {
    let server = start(4);
    let mut peers: Vec<Peer> = (0..4).map(|_| server.connect()).collect();
    peers.iter_mut().for_each(|peer| peer.ask(10));
    for worker in pool(&server) {
        let open = procs::descriptors(worker);
        assert_eq!(open.len(), 5, "{open:?}");
        assert_eq!(open.iter().filter(|(fd, target)| **fd > 2 && target.starts_with("socket:")).count(), 2, "{open:?}");
        assert_eq!(procs::listening_socket(worker), None, "worker {worker} holds the listener");
    }
}

/// D14, for a hundred workers: kill -9 with a descriptor on the way. The client is served by the next worker.
#[test]
fn a_client_on_its_way_to_a_dead_worker_is_served_by_another() {
    let server = start(100);
    let base = Baseline::of(&server);
    let first = pool(&server);
    first.iter().for_each(|worker| procs::stop(*worker));
    let mut clients: Vec<Peer> = (0..100).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| client.send("3000\n"));
    passed_on(&server);
    assert!(clients.iter().all(Peer::is_waiting));
    first.iter().for_each(|worker| tell(*worker, Signal::SIGKILL));
    for mut client in clients {
        assert!(client.read_exactly(3000) == testkit::pattern(3000));
    }
    oracle::finish(server, &base);
}

/// kill -9 at any moment of the service: one client at most sees it, and nobody hangs.
#[test]
fn a_worker_killed_at_any_moment_costs_its_own_client_at_most() {
    let server = start(4);
    let base = Baseline::of(&server);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    (0..300).filter(|_| Peer::try_connect(server.addr).unwrap().try_ask(1000).is_err()).count()
                })
            })
            .collect();
        let mut kills = 0;
        while clients.iter().any(|client| !client.is_finished()) && kills < 20 {
            if let Some(worker) = pool(&server).into_iter().next_back() {
                let _ = kill(Pid::from_raw(worker), Signal::SIGKILL);
                kills += 1;
            }
            std::thread::sleep(Duration::from_millis(5)); // the stimulus: another moment each time
        }
        let failed: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
        eprintln!("{kills} workers killed under load, {failed} of 1200 clients lost");
        assert!(failed <= kills, "{failed} clients failed for {kills} workers");
    });
    oracle::finish(server, &base);
}

/// The worker's next descriptor is one too many, as soon as this returns.
fn starve(worker: i32) -> u64 {
    let used = procs::descriptors(worker);
    let lowest_free = (0..).find(|fd| !used.contains_key(fd)).unwrap();
    procs::limit_descriptors(worker, lowest_free as u64)
}

/// D15: the worker has no number left. It sees MSG_CTRUNC: the client is closed, the next ones wait, at no cost, and are
/// served when there is room again.
#[test]
fn a_worker_without_room_costs_one_client() {
    let server = start(1);
    let base = Baseline::of(&server);
    let worker = only_worker(&server);
    let before = starve(worker);
    let mut lost = server.connect();
    lost.send("3000\n");
    server.wait_log("MSG_CTRUNC");
    let (bytes, end) = lost.read_to_end();
    assert!(bytes.is_empty() && end != End::Silence);
    let mut peer = server.connect();
    peer.send("3000\n");
    let cpu = || procs::cpu_ns(worker) + procs::cpu_ns(server.pid());
    let (start, used) = (Instant::now(), cpu());
    std::thread::sleep(Duration::from_millis(400)); // the measure: CPU time over this long
    let share = (cpu() - used) as f64 / start.elapsed().as_nanos() as f64;
    assert!(share < 0.05, "spins without room: {:.0} % of a CPU", share * 100.0);
    assert!(peer.is_waiting(), "neither served nor lost");
    procs::limit_descriptors(worker, before);
    assert!(peer.read_exactly(3000) == testkit::pattern(3000));
    drop(peer);
    assert_eq!(only_worker(&server), worker, "the same worker serves on");
    oracle::finish(server, &base);
}

/// D16: messages that are no handover, sent through a copy of the parent's own end of the channel.
#[test]
fn a_forged_message_is_no_client_and_leaks_nothing() {
    let server = start(1);
    let base = Baseline::of(&server);
    let worker = only_worker(&server);
    let channel = parents_end(&server);
    let null = std::fs::File::open("/dev/null").unwrap();
    let fds = [null.as_raw_fd(); 5];
    let forged: [(&[u8], &[RawFd]); 5] =
        [(b"h", &[]), (b"h", &fds), (b"h", &fds[..2]), (b"x", &fds[..1]), (b"hh", &[])];
    for (bytes, fds) in forged {
        let rights = [ControlMessage::ScmRights(fds)];
        let rights: &[ControlMessage] = if fds.is_empty() { &[] } else { &rights };
        sendmsg::<()>(channel.as_raw_fd(), &[io::IoSlice::new(bytes)], rights, MsgFlags::empty(), None).unwrap();
    }
    drop(channel);
    // Each was closed and forgotten: the next message is a client again.
    server.connect().ask(3000);
    assert!(server.log().contains("a message that is no handover"));
    assert_eq!(only_worker(&server), worker);
    oracle::finish(server, &base);
}

/// A duplicate of the only Unix socket that the parent holds besides its own standard ones.
fn parents_end(server: &Server) -> OwnedFd {
    let listener = procs::listening_socket(server.pid()).unwrap().1;
    let open = procs::descriptors(server.pid());
    let is_channel = |target: &str| target.starts_with("socket:") && target != format!("socket:{listener}");
    let number = open.iter().find(|(_, target)| is_channel(target)).map(|(fd, _)| *fd).unwrap();
    // SAFETY: plain system calls on numbers.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, server.pid(), 0) } as RawFd;
    // SAFETY: the kernel has just made it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // SAFETY: as above.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) } as RawFd;
    assert!(fd >= 0, "pidfd_getfd: {}", io::Error::last_os_error());
    // SAFETY: as above.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A stop of one worker: what is on its way is still served, and the place is filled again.
#[test]
fn one_worker_can_be_told_to_end() {
    let server = start(1);
    let base = Baseline::of(&server);
    let worker = only_worker(&server);
    procs::stop(worker);
    let mut peer = server.connect();
    peer.send("3000\n");
    passed_on(&server);
    tell(worker, Signal::SIGTERM);
    tell(worker, Signal::SIGCONT);
    assert!(peer.read_exactly(3000) == testkit::pattern(3000));
    drop(peer);
    eventually("replaced", || (!pool(&server).contains(&worker)).then_some(()));
    server.connect().ask(3000);
    oracle::finish(server, &base);
}

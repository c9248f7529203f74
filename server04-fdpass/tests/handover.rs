//! Descriptor passing between the parent and the workers: a worker that is killed, has no free
//! descriptor, or receives a forged message costs at most one client.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stderr)] // test code

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;
use testkit::oracle::{self, Baseline};
use testkit::{End, Peer, Server, eventually, procs};

fn start(workers: usize) -> Server {
    let args = ["-v", "-n", &workers.to_string()];
    let server = Server::start(env!("CARGO_BIN_EXE_server04-fdpass"), &args);
    assert_eq!(pool(&server).len(), workers, "the ready line means that all workers exist");
    wait_until_free(&server);
    server
}

/// Waits until every worker sleeps in recvmsg.
fn wait_until_free(server: &Server) {
    let sleeps = |worker: &i32| procs::thread_states(*worker) == ['S'];
    eventually("all workers sleep", || pool(server).iter().all(sleeps).then_some(()));
}

fn pool(server: &Server) -> BTreeSet<i32> {
    server
        .family()
        .iter()
        .filter(|p| p.pid != server.pid() && p.state != 'Z')
        .map(|p| p.pid)
        .collect()
}

fn only_worker(server: &Server) -> i32 {
    eventually("a worker", || pool(server).into_iter().next())
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// Waits until the parent has accepted all clients and sent them into the channel.
fn wait_until_passed(server: &Server) {
    let mut last = 0;
    eventually("the parent sleeps", || {
        std::thread::sleep(Duration::from_millis(50)); // the sample: no CPU time in this interval
        std::mem::replace(&mut last, procs::cpu_ns(server.pid()))
            .eq(&procs::cpu_ns(server.pid()))
            .then_some(())
    });
}

/// A worker has closed the listener and the parent's end of the channel.
#[test]
fn worker_holds_one_end_of_the_channel_and_its_client() {
    let server = start(4);
    let mut peers: Vec<Peer> = (0..4).map(|_| server.connect()).collect();
    peers.iter_mut().for_each(|peer| peer.ask(10));
    for worker in pool(&server) {
        let open = procs::descriptors(worker);
        assert_eq!(open.len(), 5, "{open:?}");
        assert_eq!(
            open.iter().filter(|(fd, target)| **fd > 2 && target.starts_with("socket:")).count(),
            2,
            "{open:?}"
        );
        assert_eq!(procs::listening_socket(worker), None, "worker {worker} holds the listener");
    }
}

/// D14, with 100 workers: SIGKILL while descriptors are in the channel. Other workers serve them.
#[test]
fn client_in_the_channel_is_served_after_all_workers_were_killed() {
    let server = start(100);
    let base = Baseline::of(&server);
    let first = pool(&server);
    first.iter().for_each(|worker| procs::stop(*worker));
    let mut clients: Vec<Peer> = (0..100).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| client.send("3000\n"));
    wait_until_passed(&server);
    assert!(clients.iter().all(Peer::is_waiting));
    first.iter().for_each(|worker| signal(*worker, Signal::SIGKILL));
    for mut client in clients {
        assert!(client.read_exactly(3000) == testkit::pattern(3000));
    }
    oracle::finish(server, &base);
}

/// How many connections the listener's backlog holds: rx_queue of a listening socket.
fn backlog(server: &Server) -> u32 {
    let sockets = fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!("0100007F:{:04X}", server.addr.port());
    let fields = |line: &'_ str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let listener = sockets.lines().map(fields).find(|f| f[1] == local && f[3] == "0A").unwrap();
    u32::from_str_radix(listener[4].rsplit(':').next().unwrap(), 16).unwrap()
}

/// A free worker that is killed was counted as free, and its replacement reports that it is free.
#[test]
fn clients_wait_in_the_backlog_while_all_workers_are_busy_also_after_kills() {
    let server = start(2);
    let base = Baseline::of(&server);
    for _ in 0..3 {
        let old = pool(&server);
        old.iter().for_each(|worker| signal(*worker, Signal::SIGKILL));
        let is_replaced = || pool(&server).len() == 2 && pool(&server).is_disjoint(&old);
        eventually("both workers are replaced", || is_replaced().then_some(()));
        wait_until_free(&server);
        wait_until_passed(&server);
    }
    let mut served: Vec<Peer> = (0..2).map(|_| server.connect()).collect();
    served.iter_mut().for_each(|peer| peer.ask(10));
    let mut waiting: Vec<Peer> = (0..3).map(|_| server.connect()).collect();
    eventually("three clients wait in the backlog", || (backlog(&server) == 3).then_some(()));
    wait_until_passed(&server);
    assert_eq!(backlog(&server), 3, "the parent accepts no client for a worker that is busy");
    drop(served);
    waiting.iter_mut().for_each(|peer| peer.send("10\n"));
    for mut peer in waiting {
        assert_eq!(peer.read_exactly(10), testkit::pattern(10));
    }
    oracle::finish(server, &base);
}

/// SIGKILL at any moment: at most one client fails for each killed worker, and none hangs.
#[test]
fn killed_worker_costs_at_most_one_client() {
    let server = start(4);
    let base = Baseline::of(&server);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    (0..300)
                        .filter(|_| Peer::try_connect(server.addr).unwrap().try_ask(1000).is_err())
                        .count()
                })
            })
            .collect();
        let mut kills = 0;
        while clients.iter().any(|client| !client.is_finished()) && kills < 20 {
            if let Some(worker) = pool(&server).into_iter().next_back() {
                let _ = kill(Pid::from_raw(worker), Signal::SIGKILL);
                kills += 1;
            }
            std::thread::sleep(Duration::from_millis(5)); // the stimulus: vary the moment
        }
        let failed: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
        eprintln!("{kills} workers killed under load, {failed} of 1200 clients lost");
        assert!(failed <= kills, "{failed} clients failed for {kills} workers");
    });
    oracle::finish(server, &base);
}

/// Lowers the limit of the worker, so that it has no free descriptor. Returns the old limit.
fn take_all_descriptors(worker: i32) -> u64 {
    let used = procs::descriptors(worker);
    let lowest_free = (0..).find(|fd| !used.contains_key(fd)).unwrap();
    procs::limit_descriptors(worker, lowest_free as u64)
}

/// D15: the worker has no free descriptor and reads MSG_CTRUNC. This client is closed. The next
/// clients wait, use no CPU time, and are served when the worker has a free descriptor again.
#[test]
fn worker_without_a_free_descriptor_costs_one_client() {
    let server = start(1);
    let base = Baseline::of(&server);
    let worker = only_worker(&server);
    let before = take_all_descriptors(worker);
    let mut lost = server.connect();
    lost.send("3000\n");
    server.wait_log("MSG_CTRUNC");
    let (bytes, end) = lost.read_to_end();
    assert!(bytes.is_empty() && end != End::Silence);
    let mut peer = server.connect();
    peer.send("3000\n");
    let cpu = || procs::cpu_ns(worker) + procs::cpu_ns(server.pid());
    let (start, used) = (Instant::now(), cpu());
    std::thread::sleep(Duration::from_millis(400)); // the sample: CPU time in this interval
    let share = (cpu() - used) as f64 / start.elapsed().as_nanos() as f64;
    assert!(
        share < 0.05,
        "without a free descriptor the server uses {:.0} % of a CPU",
        share * 100.0
    );
    assert!(peer.is_waiting(), "the client waits");
    procs::limit_descriptors(worker, before);
    assert!(peer.read_exactly(3000) == testkit::pattern(3000));
    drop(peer);
    assert_eq!(only_worker(&server), worker, "the same worker goes on");
    oracle::finish(server, &base);
}

/// D16: the test sends forged messages through a copy of the parent's end of the channel.
#[test]
fn forged_message_is_ignored_and_leaks_no_descriptor() {
    let server = start(1);
    let base = Baseline::of(&server);
    let worker = only_worker(&server);
    let channel = parents_end(&server);
    let null = fs::File::open("/dev/null").unwrap();
    let fds = [null.as_raw_fd(); 5];
    let forged: [(&[u8], &[RawFd]); 5] =
        [(b"h", &[]), (b"h", &fds), (b"h", &fds[..2]), (b"x", &fds[..1]), (b"hh", &[])];
    for (bytes, fds) in forged {
        let rights = [ControlMessage::ScmRights(fds)];
        let rights: &[ControlMessage] = if fds.is_empty() { &[] } else { &rights };
        sendmsg::<()>(
            channel.as_raw_fd(),
            &[io::IoSlice::new(bytes)],
            rights,
            MsgFlags::empty(),
            None,
        )
        .unwrap();
    }
    drop(channel);
    // The worker has closed what they carried, and receives the next client.
    server.connect().ask(3000);
    server.wait_log("unexpected message");
    assert_eq!(only_worker(&server), worker);
    oracle::finish(server, &base);
}

/// A copy of the parent's end of the channel: its first socket that is not the listener.
fn parents_end(server: &Server) -> OwnedFd {
    let listener = procs::listening_socket(server.pid()).unwrap().1;
    let open = procs::descriptors(server.pid());
    let is_channel =
        |target: &str| target.starts_with("socket:") && target != format!("socket:{listener}");
    let number = open.iter().find(|(_, target)| is_channel(target)).map(|(fd, _)| *fd).unwrap();
    // SAFETY: plain system calls that take and return numbers.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, server.pid(), 0) } as RawFd;
    // SAFETY: the kernel has just made this descriptor.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // SAFETY: as above.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) } as RawFd;
    assert!(fd >= 0, "pidfd_getfd: {}", io::Error::last_os_error());
    // SAFETY: as above.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The client that waits in the channel is still served, and the worker is replaced.
#[test]
fn sigterm_to_one_worker_ends_only_this_worker_after_its_client() {
    let server = start(1);
    let base = Baseline::of(&server);
    let worker = only_worker(&server);
    procs::stop(worker);
    let mut peer = server.connect();
    peer.send("3000\n");
    wait_until_passed(&server);
    signal(worker, Signal::SIGTERM);
    signal(worker, Signal::SIGCONT);
    assert!(peer.read_exactly(3000) == testkit::pattern(3000));
    drop(peer);
    eventually("replaced", || (!pool(&server).contains(&worker)).then_some(()));
    server.connect().ask(3000);
    oracle::finish(server, &base);
}

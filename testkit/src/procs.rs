//! A family of processes as /proc shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid};
use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::{FDTarget, Process, all_processes};
use socket2::Socket;

use crate::peer::Peer;
use crate::server::{MARKER, Server, eventually};

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proc {
    /// Process id.
    pub pid: i32,
    /// Parent's process id.
    pub ppid: i32,
    /// As in proc_pid_stat(5): R running, S sleeping, T stopped, Z zombie.
    pub state: char,
    /// Threads.
    pub threads: i64,
}

/// Orphans of the servers come to this process (PR_SET_CHILD_SUBREAPER), where they are counted; and descriptors that
/// this process was itself given by a shell are not handed on, where they would look like leaks.
pub(crate) fn prepare_harness() {
    prctl::set_child_subreaper(true).unwrap();
    // SAFETY: only marks descriptors close-on-exec; closes none.
    unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
}

/// The process `root`, all that descend from it, and orphans that carry the marker.
pub(crate) fn family(root: i32, marker: &str) -> Vec<Proc> {
    let mut all = BTreeMap::new();
    for process in all_processes().unwrap().flatten() {
        if let Ok(stat) = process.stat() {
            all.insert(stat.pid, Proc { pid: stat.pid, ppid: stat.ppid, state: stat.state, threads: stat.num_threads });
        }
    }
    let mut members: BTreeSet<i32> = all.keys().copied().filter(|pid| *pid == root).collect();
    let me = getpid().as_raw();
    members.extend(all.values().filter(|p| p.pid != root && p.ppid == me && is_marked(p.pid, marker)).map(|p| p.pid));
    loop {
        let more: Vec<i32> =
            all.values().filter(|p| members.contains(&p.ppid) && !members.contains(&p.pid)).map(|p| p.pid).collect();
        if more.is_empty() {
            return all.into_values().filter(|p| members.contains(&p.pid)).collect();
        }
        members.extend(more);
    }
}

/// Kills `family` but for its `root`, whose parent waits for it, and reaps what comes to this process as orphans.
pub(crate) fn end_family(family: &[Proc], root: i32) {
    let rest = || family.iter().map(|p| p.pid).filter(|pid| *pid != root);
    for pid in rest() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    for pid in rest() {
        // ECHILD may mean that its own parent is not quite dead: it becomes ours when that is.
        let deadline = Instant::now() + Duration::from_secs(5);
        while waitpid(Pid::from_raw(pid), None).is_err() && is_there(pid) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// True while the number is a process, or a zombie that nobody has reaped.
pub fn is_there(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn is_marked(pid: i32, marker: &str) -> bool {
    let wanted = format!("{MARKER}={marker}");
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environ| environ.split(|b| *b == 0).any(|v| v == wanted.as_bytes()))
}

/// What a descriptor points at, as far as it can be compared between two looks.
pub fn descriptors(pid: i32) -> BTreeMap<i32, String> {
    let Ok(process) = Process::new(pid) else { return BTreeMap::new() };
    let Ok(fds) = process.fd() else { return BTreeMap::new() };
    fds.flatten()
        .map(|fd| {
            let target = match fd.target {
                FDTarget::Path(path) => path.display().to_string(),
                FDTarget::Socket(inode) => format!("socket:{inode}"),
                FDTarget::Pipe(inode) => format!("pipe:{inode}"),
                FDTarget::AnonInode(name) => format!("anon:{name}"),
                other => format!("{other:?}"),
            };
            (fd.fd, target)
        })
        .collect()
}

/// True if the descriptor is closed by execve: bit 02000000 of its flags, proc_pid_fdinfo(5).
pub fn is_cloexec(pid: i32, fd: i32) -> Option<bool> {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).ok()?;
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    Some(u64::from_str_radix(flags.trim(), 8).ok()? & 0o2_000_000 != 0)
}

/// The states of its threads as in proc_pid_stat(5); none if it is gone.
pub fn thread_states(pid: i32) -> Vec<char> {
    let Ok(tasks) = Process::new(pid).and_then(|process| process.tasks()) else { return Vec::new() };
    tasks.flatten().filter_map(|task| Some(task.stat().ok()?.state)).collect()
}

/// Stops a process, and comes back when it has stopped: until then it could still take a client.
pub fn stop(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    eventually("the process stops", || thread_states(pid).iter().all(|state| *state == 'T').then_some(()));
}

/// CPU time the process has used, all threads, in nanoseconds.
pub fn cpu_ns(pid: i32) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let schedstat = |task: fs::DirEntry| fs::read_to_string(task.path().join("schedstat")).ok();
    let first = |text: String| text.split_whitespace().next().and_then(|ns| ns.parse::<u64>().ok());
    tasks.flatten().filter_map(schedstat).filter_map(first).sum()
}

/// Anonymous memory of the process in bytes: what it allocated, without program text shared with others.
pub fn anonymous_bytes(pid: i32) -> u64 {
    status_kib(pid, "RssAnon:") * 1024
}

/// A `kB` line of /proc/PID/status.
pub fn status_kib(pid: i32, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

/// The signal mask named (`SigBlk`, `SigIgn`, `SigCgt`) of a process.
pub fn signal_mask(pid: i32, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap_or(0)
}

/// Changes the soft limit of descriptors of a living process, prlimit(2), and says what it was; 0 where the process
/// has ended.
pub fn limit_descriptors(pid: i32, soft: u64) -> u64 {
    let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: null for the new limit asks only; the kernel writes the old one.
    let rc = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &mut old) };
    if rc != 0 {
        return 0;
    }
    let new = libc::rlimit { rlim_cur: soft, rlim_max: old.rlim_max };
    // SAFETY: the kernel reads one rlimit.
    unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &new, std::ptr::null_mut()) };
    old.rlim_cur
}

/// The listening socket of the process: its port, and its inode number, which no other socket will have.
pub fn listening_socket(pid: i32) -> Option<(u16, u64)> {
    let mine: BTreeSet<String> = descriptors(pid).into_values().collect();
    let listening =
        |entry: &TcpNetEntry| entry.state == TcpState::Listen && mine.contains(&format!("socket:{}", entry.inode));
    tcp_sockets().into_iter().find(listening).map(|entry| (entry.local_address.port(), entry.inode))
}

/// A second descriptor for the socket that `pid` listens with (pidfd_getfd(2)): what is done to it meets the server.
pub fn borrow_listener(pid: i32) -> Socket {
    let (_, inode) = listening_socket(pid).unwrap();
    borrow(pid, inode)
}

/// A second descriptor for the server's end of a client's connection.
pub fn borrow_connection(server: &Server, client: &Peer) -> Socket {
    let holder = holders(server, client)[0];
    borrow(holder, connection(server, client).unwrap())
}

/// pidfd_getfd(2) of the socket with this inode number.
fn borrow(pid: i32, inode: u64) -> Socket {
    let name = format!("socket:{inode}");
    let fd = descriptors(pid).into_iter().find(|(_, target)| *target == name).map(|(fd, _)| fd).unwrap();
    // SAFETY: makes a descriptor.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    assert!(process >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just made it, and nobody else has it.
    let process = unsafe { OwnedFd::from_raw_fd(process as i32) };
    // SAFETY: makes a descriptor.
    let socket = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) };
    assert!(socket >= 0, "pidfd_getfd: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just made it, and nobody else has it.
    unsafe { Socket::from_raw_fd(socket as i32) }
}

/// The listening socket of the server's first process, or else of the first of its family that has one: where every
/// worker listens on a socket of its own, their parent has none.
pub(crate) fn listening_socket_of(server: &Server) -> Option<(u16, u64)> {
    listening_socket(server.pid()).or_else(|| server.family().iter().find_map(|process| listening_socket(process.pid)))
}

/// True while a socket with this inode number listens.
pub fn listens(inode: u64) -> bool {
    tcp_sockets().iter().any(|entry| entry.state == TcpState::Listen && entry.inode == inode)
}

/// The processes of the server that hold their end of the connection whose other end is `client`.
pub fn holders(server: &Server, client: &Peer) -> Vec<i32> {
    let Some(inode) = connection(server, client) else { return Vec::new() };
    let socket = format!("socket:{inode}");
    let holds = |pid: &i32| descriptors(*pid).values().any(|target| *target == socket);
    server.family().iter().map(|p| p.pid).filter(holds).collect()
}

/// The inode number of the server's end of a connection.
fn connection(server: &Server, client: &Peer) -> Option<u64> {
    let (here, there) = (server.addr, client.addr());
    let is_ours =
        |entry: &TcpNetEntry| entry.local_address == here && entry.remote_address == there && entry.inode != 0;
    tcp_sockets().into_iter().find(is_ours).map(|entry| entry.inode)
}

fn tcp_sockets() -> Vec<TcpNetEntry> {
    [procfs::net::tcp().unwrap_or_default(), procfs::net::tcp6().unwrap_or_default()].concat()
}

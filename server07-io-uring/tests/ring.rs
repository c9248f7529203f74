//! What this example promises beyond the suite: one line and exit status 69 without io_uring, and
//! few system calls with it.

use std::io::{BufRead, BufReader};
use std::net::Shutdown;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::{Peer, Server, eventually, oracle, procs, tools};

const BIN: &str = env!("CARGO_BIN_EXE_server07-io-uring");

/// C9: Docker's default filter returns EPERM, an old kernel ENOSYS, a low RLIMIT_MEMLOCK ENOMEM.
#[test]
fn without_io_uring_the_server_prints_one_line_and_exits_with_69() {
    if !tools::have("strace", "without_io_uring_the_server_prints_one_line_and_exits_with_69") {
        return;
    }
    for (call, errno, hint) in [
        ("io_uring_setup", "EPERM", "kernel.io_uring_disabled"),
        ("io_uring_setup", "EPERM", "seccomp"),
        ("io_uring_setup", "ENOSYS", "not in this kernel"),
        ("io_uring_setup", "ENOMEM", "ulimit -l"),
        ("io_uring_setup", "EINVAL", "Linux 5.19"),
        ("io_uring_register", "EINVAL", "Linux 5.19"),
    ] {
        let mut command = Command::new("strace");
        let inject = format!("inject={call}:error={errno}");
        command.args(["-o", "/dev/null", "-e", &inject, BIN, "-p", "0"]);
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(69), "{call} {errno}: {stderr}");
        assert_eq!((output.stdout.len(), stderr.lines().count()), (0, 1), "{stderr}");
        assert!(stderr.starts_with(&format!("Error: {call}: ")), "{stderr}");
        assert!(stderr.contains(hint), "{stderr}");
    }
}

/// Linux before 6.1 has no deferred task work: the server runs without it.
#[test]
fn kernel_without_deferred_task_work_is_enough() {
    if !tools::have("strace", "kernel_without_deferred_task_work_is_enough") {
        return;
    }
    let (mut server, pid) = start_as_on_linux_5_19();
    server.connect().ask(100_000);
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(server.wait().code(), Some(0));
}

/// The server under strace, and its pid. Its first io_uring_setup has failed.
fn start_as_on_linux_5_19() -> (Server, Pid) {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=io_uring_setup"]);
    command.args(["-e", "inject=io_uring_setup:error=EINVAL:when=1", BIN, "-p", "0"]);
    let server = Server::start_with(&mut command);
    let child = eventually("strace has started the server", || {
        server.family().into_iter().find(|p| p.pid != server.pid())
    });
    (server, Pid::from_raw(child.pid))
}

/// C10: accept requests complete with -EMFILE. The server requests accept again after a pause, and
/// serves its other clients.
#[test]
fn out_of_descriptors_accept_pauses_and_continues() {
    if !tools::have("bash", "out_of_descriptors_accept_pauses_and_continues") {
        return; // some other shells cannot open descriptors of two digits
    }
    // The server inherits descriptors that it does not count: it calculates room for 8 clients, but
    // has room for 6.
    let strays: String = (10..38).map(|fd| format!("exec {fd}</dev/null; ")).collect();
    let mut command = Command::new("bash");
    command.args(["-c", &format!("{strays} ulimit -n 40; exec \"$0\" -p 0"), BIN]);
    let server = Server::start_with(&mut command);
    let mut early: Vec<Peer> = Vec::new();
    while !server.log().contains("Too many open files") {
        assert!(early.len() < 40, "the limit of descriptors has no effect");
        let mut peer = server.connect();
        peer.send("10\n");
        let got = eventually("served, or no descriptor left", || match peer.is_waiting() {
            true => server.log().contains("Too many open files").then_some(false),
            false => Some(true),
        });
        if !got {
            // The client is in the backlog. It is served when another client has gone.
            early.iter_mut().for_each(|peer| peer.ask(10));
            drop(early.pop());
            assert!(
                peer.read_exactly(10) == testkit::pattern(10),
                "accept continues when a descriptor is free"
            );
            early.push(peer);
            break;
        }
        assert!(peer.read_exactly(10) == testkit::pattern(10));
        early.push(peer);
    }
    assert!(server.log().contains("accept: Too many open files"), "{}", server.log());
    early.iter_mut().for_each(|peer| peer.ask(10));
}

/// strace cannot make an accept in the ring fail, but the test can shut the listener down: every
/// accept then fails with EINVAL.
#[test]
fn unusable_listener_ends_the_server_with_one_line() {
    let mut server = Server::start(BIN, &[]);
    procs::borrow_listener(server.pid()).shutdown(Shutdown::Both).unwrap();
    let status = server.wait();
    assert_eq!(status.code(), Some(1));
    let last = "Error: accept: Invalid argument (os error 22)";
    assert_eq!(server.log().lines().last(), Some(last), "{}", server.log());
}

/// A request of a client costs two requests in the ring, and a fraction of a system call.
#[test]
fn hundred_clients_share_their_system_calls() {
    const CLIENTS: usize = 100;
    const ROUNDS: usize = 50;
    if !tools::have("strace", "hundred_clients_share_their_system_calls") {
        return;
    }
    let server = Server::start(BIN, &[]);
    let base = oracle::Baseline::of(&server);
    let mut peers: Vec<Peer> = (0..CLIENTS).map(|_| server.connect()).collect();
    peers.iter_mut().for_each(|peer| peer.ask(10));
    let mut strace = Command::new("strace")
        .args(["-c", "-U", "calls,name", "-p", &server.pid().to_string()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(strace.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.next().is_some_and(|line| line.contains("attached")));
    let start = Barrier::new(CLIENTS);
    thread::scope(|scope| {
        for peer in &mut peers {
            scope.spawn(|| {
                start.wait();
                (0..ROUNDS).for_each(|_| peer.ask(100));
            });
        }
    });
    kill(Pid::from_raw(strace.id() as i32), Signal::SIGINT).unwrap();
    let table: Vec<String> = lines.collect();
    let _ = strace.wait();
    let calls = |line: &String| {
        let mut words = line.split_whitespace();
        words.next()?.parse::<usize>().ok().zip(words.next().map(str::to_owned))
    };
    let calls = table.iter().filter_map(calls).filter(|(_, name)| name != "total");
    let calls: Vec<(usize, String)> = calls.collect();
    eprintln!("{calls:?} for {} requests", CLIENTS * ROUNDS);
    assert!(calls.iter().all(|(_, name)| name == "io_uring_enter"), "{table:?}");
    let sum = calls.iter().map(|(n, _)| *n).sum::<usize>() as f64;
    let per_request = sum / (CLIENTS * ROUNDS) as f64;
    assert!(per_request > 0.0 && per_request <= 0.3, "{per_request} system calls for a request");
    drop(peers);
    oracle::finish(server, &base);
}

/// Idle clients use no buffer and cause no wake-up.
#[test]
fn idle_client_costs_no_cpu_time_and_at_most_2_kib() {
    const CLIENTS: usize = 9_900;
    let (_, hard) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    let clients = CLIENTS.min(hard as usize - 200);
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let server = Server::start(BIN, &[]);
    server.connect().ask(1);
    let before = procs::anonymous_bytes(server.pid());
    let mut peers: Vec<Peer> = (0..clients).map(|_| server.connect()).collect();
    peers.last_mut().unwrap().ask(10);
    let each = (procs::anonymous_bytes(server.pid()) - before) / clients as u64;
    let (cpu, start) = (procs::cpu_ns(server.pid()), std::time::Instant::now());
    // The measurement: CPU time over this interval.
    thread::sleep(std::time::Duration::from_millis(500));
    let share = (procs::cpu_ns(server.pid()) - cpu) as f64 / start.elapsed().as_nanos() as f64;
    eprintln!("{clients} idle clients: {each} bytes each, {:.1} % of a CPU", share * 100.0);
    assert!(each <= 2048, "{each} bytes for an idle client");
    assert!(share < 0.02, "{:.1} % of a CPU for idle clients", share * 100.0);
    peers.iter_mut().step_by(100).for_each(|peer| peer.ask(10));
}

/// C10: a failed call loses nothing. The next call submits the queued requests.
#[test]
fn failed_io_uring_enter_is_repeated() {
    if !tools::have("strace", "failed_io_uring_enter_is_repeated") {
        return;
    }
    let server = Server::start(BIN, &[]);
    let base = oracle::Baseline::of(&server);
    for errno in ["EINTR", "EAGAIN", "EBUSY"] {
        let inject = format!("io_uring_enter:error={errno}:when=1+2");
        let injection = tools::Injection::attach(&[server.pid()], false, &inject);
        (0..20).for_each(|_| server.connect().ask(40_000));
        drop(injection);
    }
    oracle::finish(server, &base);
}

/// C10: more clients send at once than there are buffers and completion entries. A ring with
/// deferred work completes requests in small batches. Without it thousands of completions arrive
/// together, most of them with -ENOBUFS.
#[test]
fn three_thousand_clients_that_send_at_once_are_all_answered() {
    const CLIENTS: usize = 3000;
    let (_, hard) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let server = Server::start(BIN, &[]);
    let pid = Pid::from_raw(server.pid());
    let mut servers = vec![(server, pid)];
    servers.extend(
        tools::have("strace", "three_thousand_clients_that_send_at_once_are_all_answered")
            .then(start_as_on_linux_5_19),
    );
    for (mut server, pid) in servers {
        let mut peers: Vec<Peer> =
            (0..CLIENTS.min(hard as usize - 200)).map(|_| server.connect()).collect();
        for n in [100, 200, 300] {
            peers.last_mut().unwrap().ask(1); // the clients before it have been accepted too
            kill(pid, Signal::SIGSTOP).unwrap();
            let has_stopped =
                |server: &Server| server.family().iter().any(|p| matches!(p.state, 'T' | 't'));
            eventually("the server has stopped", || has_stopped(&server).then_some(()));
            peers.iter_mut().for_each(|peer| peer.send(format!("{n}\n")));
            kill(pid, Signal::SIGCONT).unwrap();
            peers.iter_mut().for_each(|peer| assert!(peer.read_exactly(n) == testkit::pattern(n)));
        }
        drop(peers);
        kill(pid, Signal::SIGTERM).unwrap();
        assert_eq!(server.wait().code(), Some(0));
    }
}

//! Faults of the kernel and of the machine: out of descriptors, failing calls, killed processes, dead output.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::oracle::{self, Baseline};
use crate::peer::{End, Peer};
use crate::procs;
use crate::server::{Server, eventually};
use crate::subject::{Row, Subject};
use crate::tools::{self, Injection};

pub const ROWS: &[Row] = &[
    ("A01_out_of_descriptors", out_of_descriptors),
    ("A03_A04_accept_fails_and_goes_on", accept_fails),
    ("A05_wait_without_memory_goes_on", wait_without_memory),
    ("A06_accept_fails_for_good", accept_fails_for_good),
    ("A07_A10_A11_queued_resets_and_stops", queued_resets),
    ("A12_fork_fails", fork_fails),
    ("A14_start_errors_are_one_line", start_errors),
    ("C06_dead_output", dead_output),
    ("C07_log_that_takes_no_more", log_takes_no_more),
    ("C08_signal_state_from_exec", signal_state_from_exec),
    ("D01_no_zombies", |s| s.abused(&[], |server| (0..1000).for_each(|_| server.connect().ask(1)))),
    ("D03_worker_killed_in_an_answer", worker_killed),
    ("D06_nothing_outlives_the_first_process", nothing_outlives),
    ("D12_a_client_is_held_by_one_process", held_once),
];

/// Most clients that are made to find one of another worker: where a hash chooses, as many of one is no accident.
const TRIES: usize = 50;

/// The lowest number that is free: with this limit the next accept fails with EMFILE.
fn descriptor_ceiling(pid: i32) -> u64 {
    let used = procs::descriptors(pid);
    (0..).find(|fd| !used.contains_key(fd)).unwrap_or_default() as u64
}

fn out_of_descriptors(subject: &Subject) {
    if subject.calls("io_uring_enter") {
        return; // the limit is read when the request is made: a multishot accept goes on with the one it began with
    }
    subject.abused(&[], |server| {
        let mut early = subject.is_concurrent().then(|| server.connect());
        early.iter_mut().for_each(|peer| peer.ask(10));
        let family = server.family();
        let limits: Vec<u64> =
            family.iter().map(|p| procs::limit_descriptors(p.pid, descriptor_ceiling(p.pid))).collect();

        // accept4 takes its descriptor number before it blocks: a call that is blocked during the change still succeeds. In
        // a pool every worker is blocked in one, and connections wake them one by one. No pool has more than 64 workers.
        let sleepers = if subject.refuses() { 1 } else { subject.example.slots.min(64) };
        (0..sleepers).for_each(|_| drop(server.connect()));
        server.wait_log("Too many open files");
        let mut late = server.connect();
        late.send("3000\n");
        let cpu = || family.iter().map(|p| procs::cpu_ns(p.pid)).sum::<u64>();
        let (start, before) = (Instant::now(), cpu());
        std::thread::sleep(Duration::from_millis(400)); // the measure: CPU time over this long
        let share = (cpu() - before) as f64 / start.elapsed().as_nanos() as f64;
        assert!(share < 0.05, "spins without descriptors: {:.0} % of a CPU", share * 100.0);
        assert!(late.is_waiting(), "neither served nor lost");
        early.iter_mut().for_each(|peer| peer.ask(10));

        for (proc, limit) in family.iter().zip(limits) {
            procs::limit_descriptors(proc.pid, limit);
        }
        assert!(late.read_exactly(3000) == crate::pattern(3000), "deaf after the relief");
    });
}

fn accept_fails(subject: &Subject) {
    if subject.calls("io_uring_enter") || !tools::have("strace", "A03_A04_accept_fails_and_goes_on") {
        return; // an accept in the ring is no system call that strace could reach
    }
    subject.abused(&[], |server| {
        for errno in [
            "ECONNABORTED",
            "EPROTO",
            "EPERM",
            "ETIMEDOUT",
            "EHOSTUNREACH",
            "EINTR",
            "EAGAIN",
            "ENFILE",
            "ENOBUFS",
            "ENOMEM",
        ] {
            let injection = Injection::attach(&pids(server), true, &format!("accept4,accept:error={errno}:when=1..3"));
            let mut peer = server.connect();
            peer.send("100\n");
            let mut others = Vec::new();
            eventually(&format!("a client is served after {errno}"), || {
                // After a forged EAGAIN an edge-triggered server waits for the next edge: the next client makes one.
                others.extend((errno == "EAGAIN").then(|| server.connect()));
                (!peer.is_waiting()).then_some(())
            });
            assert!(peer.read_exactly(100) == crate::pattern(100), "{errno}");
            drop((peer, others));
            // A pool's other workers may still be failing, and strace that lets go in the middle of a call which it has
            // replaced leaves it with ENOSYS.
            eventually("every worker has failed and sleeps", || {
                let cpu = || server.family().iter().map(|p| procs::cpu_ns(p.pid)).sum::<u64>();
                let before = cpu();
                std::thread::sleep(Duration::from_millis(60)); // longer than the third pause of a failing accept
                (cpu() == before).then_some(())
            });
            drop(injection);
            server.connect().ask(100);
        }
    });
}

/// One ENOMEM of the call in which an event loop waits: the server logs it, and serves this client and the next one.
fn wait_without_memory(subject: &Subject) {
    let lesson = ["select", "poll", "epoll_wait", "io_uring_enter"].into_iter().find(|call| subject.calls(call));
    let is_event_loop = subject.example.worker.contains("many clients");
    if !is_event_loop || !tools::have("strace", "A05_wait_without_memory_goes_on") {
        return;
    }
    let calls = match lesson {
        Some("select") => "?select,pselect6",
        Some("poll") => "?poll,ppoll",
        Some("io_uring_enter") => "io_uring_enter",
        _ => "?epoll_wait,epoll_pwait,?epoll_pwait2",
    };
    subject.abused(&[], |server| {
        let injection = Injection::attach(&pids(server), true, &format!("{calls}:error=ENOMEM:when=1"));
        let mut early = server.connect();
        early.ask(100);
        server.wait_log("Cannot allocate memory");
        drop(injection);
        early.ask(100);
        server.connect().ask(100);
    });
}

/// A listener that is past use ends the server, or each worker at its start until the supervisor gives up.
fn accept_fails_for_good(subject: &Subject) {
    if subject.calls("io_uring_enter") || !tools::have("strace", "A06_accept_fails_for_good") {
        return; // an accept in the ring is no system call that strace could reach
    }
    for errno in ["EBADF", "EINVAL", "ENOTSOCK"] {
        let mut server = subject.start(&[]);
        let _ = Baseline::of(&server);
        let injection = Injection::attach(&pids(&server), true, &format!("accept4,accept:error={errno}"));
        let status = eventually("the server ends", || {
            drop(Peer::try_connect(server.addr)); // wakes an accept that slept through the attaching
            server.exited()
        });
        drop(injection);
        server.wait();
        let log = server.log();
        assert_eq!(status.code(), Some(1), "{errno}: {log}");
        assert!(log.lines().any(|line| line.starts_with("Error: accept: ")), "{errno}: {log}");
        assert!(!log.contains("panicked"), "{log}");
    }
}

fn pids(server: &Server) -> Vec<i32> {
    server.family().iter().map(|proc| proc.pid).collect()
}

/// Clients that are reset while they wait in the accept queue, of a server that is stopped and goes on.
fn queued_resets(subject: &Subject) {
    subject.abused(&[], |server| {
        let family = server.family();
        let tell = |signal| family.iter().for_each(|p| kill(Pid::from_raw(p.pid), signal).unwrap());
        tell(Signal::SIGSTOP);
        eventually("it has stopped", || server.family().iter().all(|p| p.state == 'T').then_some(()));
        (0..100).for_each(|_| server.connect().reset());
        let mut queued: Vec<Peer> = (0..20).map(|_| server.connect()).collect();
        queued.iter_mut().for_each(|peer| peer.send("100\n"));
        tell(Signal::SIGCONT);
        for mut peer in queued {
            assert!(peer.read_exactly(100) == crate::pattern(100));
        }
    });
}

fn fork_fails(subject: &Subject) {
    if subject.example.worker != "one process per client" || !tools::have("strace", "A12_fork_fails") {
        return;
    }
    subject.abused(&[], |server| {
        for errno in ["EAGAIN", "ENOMEM"] {
            let injection =
                Injection::attach(&[server.pid()], false, &format!("clone,clone3,?fork,?vfork:error={errno}:when=1"));
            let mut peer = server.connect();
            peer.send("10\n");
            assert_eq!(peer.read_to_end(), (b"ERR busy\n".to_vec(), End::Eof), "{errno}");
            server.connect().ask(10);
            drop(injection);
        }
    });
}

fn start_errors(subject: &Subject) {
    let server = subject.start(&[]);
    let taken = server.addr.port().to_string();
    let refusals: [(&[&str], &str); 4] = [
        (&["-p", &taken], "Address already in use"),
        (&["-p", "0", "-i", "192.0.2.1", "--allow-remote"], "Cannot assign requested address"),
        (&["-p", "0", "-i", "0.0.0.0"], "--allow-remote"),
        (&["-p", "0", "-i", "198.51.100.7"], "--allow-remote"),
    ];
    for (args, reason) in refusals {
        let output = subject.command().args(args).env("RUST_BACKTRACE", "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        assert!(text.lines().count() == 1 && text.contains("bind ") && text.contains(reason), "{args:?}: {text}");
        assert!(output.stdout.is_empty(), "{args:?}: a ready line in spite of it");
    }
    for args in [&["-p", "65536"][..], &["-i", "nowhere.invalid"], &["--no-such-flag"], &["--line-timeout", "0"]] {
        let output = subject.command().args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stderr.starts_with(b"error: "), "{args:?}");
    }
}

/// A full disk, a closed pipe or no output at all cost log lines and nothing else.
fn dead_output(subject: &Subject) {
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let closed_pipe = || Stdio::from(nix::unistd::pipe().unwrap().1);
    for round in 0..3 {
        let mut command = match round {
            2 => Command::new("sh"),
            _ => subject.command(),
        };
        match round {
            0 => command.args(["-p", "0", "-v"]).stdout(full()).stderr(full()),
            1 => command.args(["-p", "0", "-v"]).stdout(closed_pipe()).stderr(closed_pipe()),
            _ => command.args(["-c", "exec \"$0\" \"$@\" -p 0 -v <&- >&- 2>&-", &subject.bin]).args(&subject.variant),
        };
        let server = Server::start_blind(&mut command);
        let base = Baseline::of(&server);
        for _ in 0..10 {
            server.connect().ask(100);
            let mut peer = server.connect();
            peer.send("no number\n");
            assert_eq!(peer.read_to_end().0, b"ERR number expected\n");
        }
        oracle::finish(server, &base);
    }
}

/// A log that takes no more bytes, a pipe that no process reads or a file at its size limit, costs lines and nothing else.
fn log_takes_no_more(subject: &Subject) {
    let folder = tempfile::tempdir().unwrap();
    let limited = "ulimit -f 1; exec \"$0\" \"$@\" 2>\"$LOG\"";
    for is_pipe in [true, false] {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut command = match is_pipe {
            true => subject.command(),
            false => Command::new("sh"),
        };
        match is_pipe {
            true => command.stderr(Stdio::from(writer)),
            false => {
                command.args(["-c", limited, &subject.bin]).args(&subject.variant).env("LOG", folder.path().join("log"))
            }
        };
        let server = Server::start_blind(command.args(["-p", "0", "-v"]).stdout(Stdio::null()));
        // SAFETY: the call changes the pipe's buffer and no memory of this process.
        unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
        let base = Baseline::of(&server);
        for _ in 0..120 {
            let mut peer = server.connect();
            peer.send("no number\n");
            assert_eq!(peer.read_to_end().0, b"ERR number expected\n");
        }
        server.connect().ask(100);
        oracle::finish(server, &base);
        drop(reader);
    }
}

/// exec keeps ignored and blocked signals: the server undoes that.
fn signal_state_from_exec(subject: &Subject) {
    let mut command = Command::new("env");
    command.args(["--block-signal=TERM,INT,ALRM,CHLD", "--ignore-signal=CHLD,TERM,INT"]).arg(&subject.bin);
    let server = Server::start_with(command.args(&subject.variant).args(["-p", "0"]));
    let base = Baseline::of(&server);
    (0..20).for_each(|_| server.connect().ask(100));
    oracle::finish(server, &base);
}

/// kill -9 of the process that serves a client, in the middle of an answer: that client sees the end, the others live.
fn worker_killed(subject: &Subject) {
    let server = subject.start(&[]);
    let base = Baseline::of(&server);
    let mut victim = Peer::connect_small_window(server.addr);
    victim.send("1048576\n".repeat(10));
    victim.read_exactly(1);
    let workers = || procs::holders(&server, &victim);
    let worker = workers().into_iter().find(|pid| *pid != server.pid());
    if let Some(worker) = worker {
        let mut other = (0..TRIES).find_map(|_| client_of_another(&server, worker));
        kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
        let (bytes, end) = victim.read_to_end();
        assert!(bytes.len() < 10 << 20 && end != End::Silence, "{} bytes, {end:?}", bytes.len());
        other.iter_mut().for_each(|peer| peer.ask(10));
    }
    drop(victim);
    oracle::finish(server, &base);
}

/// A client that is served by another process than `worker`, which may have many clients.
fn client_of_another(server: &Server, worker: i32) -> Option<Peer> {
    let mut peer = server.connect();
    peer.ask(10);
    (!procs::holders(server, &peer).contains(&worker)).then_some(peer)
}

fn nothing_outlives(subject: &Subject) {
    let mut server = subject.start(&[]);
    let mut peers: Vec<Peer> = (0..if subject.is_concurrent() { 4 } else { 1 }).map(|_| server.connect()).collect();
    peers.iter_mut().for_each(|peer| peer.ask(10));
    server.signal(Signal::SIGKILL);
    server.wait();
    eventually("the family is gone", || server.family().iter().all(|p| p.state == 'Z').then_some(()));
    eventually("the port is refused", || Peer::try_connect(server.addr).is_err().then_some(()));
    for mut peer in peers {
        assert_ne!(peer.read_to_end().1, End::Silence);
    }
}

/// A copy of a client's descriptor in a second process would keep the client from ever seeing the end.
fn held_once(subject: &Subject) {
    subject.abused(&[], |server| {
        let mut peers: Vec<Peer> = (0..if subject.is_concurrent() { 4 } else { 1 }).map(|_| server.connect()).collect();
        peers.iter_mut().for_each(|peer| peer.ask(10));
        for peer in &peers {
            eventually("one holder", || (procs::holders(server, peer).len() == 1).then_some(()));
        }
    });
}

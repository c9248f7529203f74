//! Signals, the stop, and the start after it.

use std::os::unix::process::CommandExt;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::peer::{End, Peer};
use crate::procs;
use crate::server::{Server, eventually};
use crate::subject::{Row, Subject};

pub const ROWS: &[Row] = &[
    ("E01_stop_when_idle", |s| {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let mut server = s.start(&[]);
            server.connect().ask(1);
            server.signal(signal);
            assert_eq!(server.wait().code(), Some(0), "{signal}");
            assert!(server.log().contains("CPU user "), "the CPU time is part of an orderly end: {}", server.log());
        }
    }),
    ("E02_stop_lets_an_answer_finish", stop_lets_finish),
    ("E02_grace_cuts_off_who_does_not_read", |s| {
        // The write deadline is half a minute away and the grace is not.
        let mut server = s.start(&["--grace", "300"]);
        let mut rude = rude_client(&server);
        server.signal(Signal::SIGTERM);
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
        assert!(rude.read_to_end().0.len() < 10 << 20);
        assert_eq!(server.family(), []);
    }),
    ("E03_stop_is_not_held_up_by_silence", |s| {
        let mut server = s.start(&[]);
        let mut peer = server.connect();
        peer.ask(1);
        let _queued: Vec<Peer> = (0..3).map(|_| server.connect()).collect();
        let start = Instant::now();
        server.stop().unwrap();
        assert!(start.elapsed() < Duration::from_secs(5), "it waited for the grace, if not for the idle deadline");
        assert_eq!(peer.read_to_end(), (Vec::new(), End::Eof));
    }),
    ("E04_second_signal_is_now", |s| {
        let mut server = s.start(&["--grace", "60000"]);
        let _rude = rude_client(&server);
        server.signal(Signal::SIGTERM);
        eventually("the first signal is taken", || (pending(server.pid()) == 0).then_some(()));
        server.signal(Signal::SIGTERM);
        assert_eq!(server.wait().code(), Some(0));
        assert_eq!(server.family(), []);
    }),
    ("E05_ctrl_c_reaches_the_whole_group", |s| {
        let mut server = Server::start_with(s.command().args(["-p", "0"]).process_group(0));
        let mut peer = server.connect();
        peer.ask(1);
        kill(Pid::from_raw(-server.pid()), Signal::SIGINT).unwrap();
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
        assert_eq!(server.family(), []);
        assert!(!server.log().contains("respawn"), "{}", server.log());
        assert_eq!(peer.read_to_end(), (Vec::new(), End::Eof));
    }),
    ("E06_a_storm_of_signals", |s| {
        s.abused(&[], |server| {
            thread::scope(|scope| {
                let load = scope.spawn(|| (0..200).for_each(|_| server.connect().ask(20_000)));
                while !load.is_finished() {
                    for signal in [Signal::SIGWINCH, Signal::SIGCHLD, Signal::SIGCONT, Signal::SIGURG] {
                        server.signal(signal);
                    }
                    thread::sleep(Duration::from_micros(200)); // a storm, and still room for the service
                }
            })
        })
    }),
    ("E07_stop_at_any_moment", stop_at_any_moment),
    ("E08_restart_with_time_wait", |s| {
        let mut server = s.start(&[]);
        let port = server.addr.port().to_string();
        for _ in 0..20 {
            // After a bad line the server closes first, so TIME_WAIT is on its side and on its port.
            let mut peer = server.connect();
            peer.send("x\n");
            peer.read_to_end();
            drop(peer);
            server.stop().unwrap();
            server = Server::start_with(s.command().args(["-p", &port]));
        }
        server.stop().unwrap();
    }),
    ("E10_no_signal_is_left_blocked", |s| {
        s.abused(&[], |server| {
            let mut peer = server.connect();
            peer.ask(1);
            for worker in procs::holders(server, &peer) {
                assert_eq!(procs::signal_mask(worker, "SigBlk") & (1 << (libc::SIGCHLD - 1)), 0, "process {worker}");
            }
        })
    }),
    ("idle_after_service_ends_without_a_word", |s| {
        s.abused(&["--idle-timeout", "300"], |server| {
            let mut peer = server.connect();
            peer.ask(3000);
            assert_eq!(peer.read_to_end(), (Vec::new(), End::Eof), "UNP's habit: printf '3000\\n' | nc ... | wc -c");
        })
    }),
];

/// A client in the middle of an answer that it does not read.
fn rude_client(server: &Server) -> Peer {
    let mut peer = Peer::connect_small_window(server.addr);
    peer.ask(1);
    peer.send("1048576\n".repeat(10));
    eventually("the answer begins", || (peer.unread() > 0).then_some(()));
    peer
}

fn pending(pid: i32) -> u64 {
    procs::signal_mask(pid, "SigPnd") | procs::signal_mask(pid, "ShdPnd")
}

fn stop_lets_finish(subject: &Subject) {
    let mut server = subject.start(&[]);
    let mut peer = Peer::connect_small_window(server.addr);
    peer.send("1048576\n");
    let mut bytes = peer.read_exactly(1);
    server.signal(Signal::SIGTERM);
    if subject.is_concurrent() {
        eventually("new clients are refused", || Peer::try_connect(server.addr).is_err().then_some(()));
    } else {
        eventually("the signal is taken", || (pending(server.pid()) == 0).then_some(()));
    }
    let (rest, end) = peer.read_to_end();
    bytes.extend(rest);
    assert!(bytes == crate::pattern(1_048_576), "{} bytes", bytes.len());
    assert_eq!(end, End::Eof);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert_eq!(server.family(), []);
}

/// A stop that falls between any two system calls of accept, fork and service: no hang, no survivor, exit 0.
fn stop_at_any_moment(subject: &Subject) {
    for round in 0..60 {
        let mut server = subject.start(&[]);
        let addr = server.addr;
        let clients: Vec<_> = (0..3)
            .map(|_| {
                thread::spawn(move || {
                    while let Ok(mut peer) = Peer::try_connect(addr) {
                        if peer.try_ask(1000).is_err() {
                            break;
                        }
                    }
                })
            })
            .collect();
        thread::sleep(Duration::from_micros(round * 150)); // the stimulus: another moment each time
        server.stop().unwrap_or_else(|fault| panic!("round {round}: {fault}"));
        clients.into_iter().for_each(|client| client.join().unwrap());
    }
}

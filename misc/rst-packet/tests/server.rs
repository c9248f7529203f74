//! The server and its client as two programs: each way to close, limits, shutdown, exit statuses.
#![allow(clippy::unwrap_used, clippy::panic)] // test code

use std::io::ErrorKind;
use std::process::{Command, Output, Stdio};

use testkit::{End, Peer, Server, eventually, procs, tools};

const SERVER: &str = env!("CARGO_BIN_EXE_rst-packet");
const CLIENT: &str = env!("CARGO_BIN_EXE_rst-client");

fn client(server: &Server, args: &[&str]) -> String {
    let port = server.addr.port().to_string();
    let Output { status, stdout, stderr } =
        Command::new(CLIENT).args(["-p", &port]).args(args).output().unwrap();
    assert_eq!(status.code(), Some(0), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout)
        .unwrap()
        .lines()
        .last()
        .unwrap()
        .trim_start_matches("calls")
        .trim()
        .to_owned()
}

#[test]
fn every_client_gets_a_reset_by_default() {
    let mut server = Server::start(SERVER, &[]);
    for _ in 0..20 {
        for (args, calls) in [
            (&[][..], "recv ECONNRESET · recv 0 · send EPIPE · send EPIPE"),
            (&["--first", "write"], "send ECONNRESET · send EPIPE · recv 0"),
        ] {
            let shown = eventually("connect returns before the RST arrives", || {
                Some(client(&server, args)).filter(|shown| !shown.starts_with("connect ECONNRESET"))
            });
            assert_eq!(shown, calls);
        }
    }
    server.stop().unwrap();
}

#[test]
fn unread_data_and_late_data_are_answered_with_a_reset() {
    for (how, args, calls) in [
        (
            "unread",
            &["--send", "hello"][..],
            "send ok · recv '413 too large' · recv ECONNRESET · send EPIPE · send EPIPE",
        ),
        (
            "unread",
            &["--upload", "26214400"],
            "upload ECONNRESET · recv '413 too large' · recv 0 · send EPIPE · send EPIPE",
        ),
        ("late", &[], "recv 0 · recv 0 · send ok · SO_ERROR EPIPE · send EPIPE"),
        ("late", &["--first", "write"], "send ok · SO_ERROR EPIPE · send EPIPE · recv 0"),
    ] {
        let mut server = Server::start(SERVER, &["--close", how]);
        (0..5).for_each(|_| assert_eq!(client(&server, args), calls, "{how} {args:?}"));
        server.stop().unwrap();
    }
}

#[test]
fn with_drain_no_reply_is_lost() {
    let mut server = Server::start(SERVER, &["--close", "drain"]);
    for _ in 0..20 {
        let mut peer = server.connect();
        peer.send(vec![b'x'; 50_000]);
        peer.half_close();
        assert_eq!(peer.read_to_end(), (b"413 too large\n".to_vec(), End::Eof));
    }
    server.stop().unwrap();
}

/// A client that sends without end, and one that never closes: both reach a limit.
#[test]
fn drain_is_limited_in_bytes_and_time() {
    let mut server = Server::start(SERVER, &["--close", "drain", "--drain-time", "300", "-v"]);
    let mut greedy = server.connect();
    while greedy.try_send(vec![b'x'; 16_384]).is_ok() {}
    server.wait_log("drained 65536 bytes, limit reached, closed");
    let mut stays = server.connect();
    stays.send("x");
    server.wait_log("timeout, closed");
    assert_eq!(stays.read_to_end(), (b"413 too large\n".to_vec(), End::Eof));
    server.stop().unwrap();
}

#[test]
fn a_silent_client_times_out_and_does_not_delay_the_shutdown() {
    for how in ["unread", "drain"] {
        let server = Server::start(
            SERVER,
            &["--close", how, "--idle-timeout", "200", "--drain-time", "200"],
        );
        let mut silent = server.connect();
        assert_eq!(silent.read_to_end(), (b"413 too large\n".to_vec(), End::Eof), "{how}");
        drop(server);

        let mut server = Server::start(SERVER, &["--close", how, "--idle-timeout", "86400000"]);
        let silent = server.connect();
        eventually("the client is served", || {
            (!procs::holders(&server, &silent).is_empty()).then_some(())
        });
        server.stop().unwrap();
    }
}

#[test]
fn no_descriptor_is_leaked() {
    let server = Server::start(SERVER, &["--close", "drain"]);
    let before = procs::descriptors(server.pid());
    for _ in 0..50 {
        server.connect().reset();
        let mut peer = server.connect();
        peer.send("x");
        peer.half_close();
        let _ = peer.read_to_end();
    }
    eventually("closed", || (procs::descriptors(server.pid()) == before).then_some(()));
}

/// The client stays in the queue while the server pauses. It is served when a descriptor is free.
#[test]
fn at_emfile_the_server_pauses_and_then_continues() {
    let server = Server::start(SERVER, &[]);
    let used = procs::descriptors(server.pid()).len() as u64;
    let limit = procs::limit_descriptors(server.pid(), used);
    // The blocked accept has already reserved a descriptor, so this client is still served.
    assert!(is_reset(&server));
    let waits = Peer::try_connect(server.addr);
    server.wait_log("accept: Too many open files");
    let before = procs::cpu_ns(server.pid());
    // Not a synchronisation: the CPU time of these 300 ms is measured.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let used = procs::cpu_ns(server.pid()) - before;
    assert!(used < 60_000_000, "{used} ns of CPU time in 300 ms");
    procs::limit_descriptors(server.pid(), limit);
    match waits {
        Ok(mut waits) => assert_eq!(waits.read_to_end(), (Vec::new(), End::Reset)),
        Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset),
    }
    assert!(is_reset(&server));
}

/// The client is reset: at its first read, or already in connect.
fn is_reset(server: &Server) -> bool {
    match Peer::try_connect(server.addr) {
        Ok(mut peer) => peer.read_to_end().1 == End::Reset,
        Err(e) => e.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn an_error_is_one_line_with_an_exit_status() {
    let unused_port = Server::start(SERVER, &[]).addr.port().to_string();
    let run = |bin: &str, args: &[&str]| Command::new(bin).args(args).output().unwrap();
    let server = Server::start(SERVER, &[]);
    let taken = server.addr.port().to_string();
    for (bin, args, status, words) in [
        (CLIENT, &["-p", unused_port.as_str()][..], 1, "Connection refused"),
        (SERVER, &["-p", taken.as_str()], 1, "ddress already in use"),
        (SERVER, &["-i", "0.0.0.0"], 1, "--allow-remote"),
        (SERVER, &["--close", "softly"], 2, "softly"),
        (CLIENT, &["--port", "0"], 2, "0"),
        (env!("CARGO_BIN_EXE_rst-table"), &["nothing"], 2, "nothing"),
    ] {
        let output = run(bin, args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {text}");
        assert!(
            text.contains(words) && (status == 2 || text.lines().count() == 1),
            "{args:?}: {text}"
        );
    }
}

/// The tables need /proc/net.
#[test]
fn without_the_kernels_counters_it_is_unavailable() {
    let test = "without_the_kernels_counters_it_is_unavailable";
    if !tools::have("strace", test) {
        return;
    }
    for (bin, file) in [
        (env!("CARGO_BIN_EXE_rst-table"), "/proc/net/netstat"),
        (env!("CARGO_BIN_EXE_time-wait"), "/proc/net/tcp"),
    ] {
        let mut strace = Command::new("strace");
        strace.args(["-o", "/dev/null", "-P", file, "-e", "inject=openat:error=EACCES", bin]);
        let output = strace.stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("Error: ")).collect();
        assert_eq!(
            (output.status.code(), lines.len(), output.stdout.len()),
            (Some(69), 1, 0),
            "{text}"
        );
    }
}

#[test]
fn a_closed_stdout_is_no_panic() {
    for bin in [env!("CARGO_BIN_EXE_rst-table"), env!("CARGO_BIN_EXE_time-wait")] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(bin).stdout(writer).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{bin}");
    }
    assert!(Peer::try_connect(([127, 0, 0, 1], 1).into()).is_err(), "no process listens on port 1");
}

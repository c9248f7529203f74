//! What is sent: sizes of many kinds, echo, raw requests, several requests together; and from which address.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use support::{Server, client, request, run, serve_well};

/// A server that answers well and keeps what was asked for, in the order of each connection.
fn noting() -> (Server, Arc<Mutex<Vec<usize>>>) {
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&sizes);
    let server = Server::with(move |conn| {
        let mut conn = BufReader::new(conn);
        while let Some(n) = request(&mut conn) {
            note.lock().unwrap().push(n);
            if conn.get_mut().write_all(&support::pattern(n)).is_err() {
                return;
            }
        }
    });
    (server, sizes)
}

fn asked(args: &[&str]) -> Vec<usize> {
    let (server, sizes) = noting();
    client(&server, args).expect(0, &["OK"]);
    let sizes = sizes.lock().unwrap();
    sizes.clone()
}

#[test]
fn sizes_change_and_a_seed_repeats_them() {
    for bytes in ["10-20", "exp:2000"] {
        let args = ["-c", "1", "-t", "300", "-k", "0", "-b", bytes];
        let first = asked(&args);
        assert_eq!(first.len(), 300);
        assert!(first.iter().any(|n| *n != first[0]), "{bytes}");
        assert_eq!(first, asked(&args), "{bytes}");
        assert_ne!(first, asked(&[&args[..], &["--seed", "2"]].concat()), "{bytes}");
        if bytes == "10-20" {
            assert!(first.iter().all(|n| (10..=20).contains(n)));
        }
    }
}

#[test]
fn sizes_do_not_depend_on_how_requests_are_carried() {
    let mut kept = asked(&["-c", "3", "-t", "40", "-k", "0", "-b", "1-100000"]);
    let mut alone = asked(&["-c", "3", "-t", "40", "-b", "1-100000"]);
    let mut together = asked(&["-c", "3", "-t", "40", "-k", "0", "--pipeline", "7", "-b", "1-100000"]);
    kept.sort_unstable();
    alone.sort_unstable();
    together.sort_unstable();
    assert_eq!(kept, alone);
    assert_eq!(kept, together);
}

#[test]
fn sizes_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        format!("file:{}", path.display())
    };
    let sizes = asked(&["-c", "1", "-t", "100", "-b", &path("good", "# three\n7\n\n70 # more\n700\n")]);
    let counts = sizes.iter().fold(BTreeMap::new(), |mut counts, n| {
        *counts.entry(*n).or_insert(0) += 1;
        counts
    });
    assert_eq!(counts.keys().copied().collect::<Vec<_>>(), [7, 70, 700]);
    let (server, _) = noting();
    for (name, text, word) in [
        ("empty", "", "no sizes in it"),
        ("comments", "# none\n\n", "no sizes in it"),
        ("words", "7\nmany\n", "line 2: \"many\" is no number of bytes"),
        ("zero", "0\n", "line 1: \"0\" is no number of bytes"),
    ] {
        client(&server, &["-b", &path(name, text)]).expect(2, &[word]);
    }
    client(&server, &["-b", "file:/no/such/file"]).expect(2, &["open /no/such/file: No such file or directory"]);
}

/// Sends back what comes, in pieces of at most `piece` bytes; nobody who does not read is read from.
fn echo(mut conn: TcpStream, piece: usize) {
    let mut buffer = vec![0; piece];
    while let Ok(n @ 1..) = conn.read(&mut buffer) {
        if conn.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

#[test]
fn an_echo_comes_back_whole_also_where_it_does_not_fit_into_the_buffers() {
    for (piece, args) in [
        (1000, &["-c", "3", "-t", "20", "-b", "5000"][..]),
        (1, &["-c", "1", "-t", "3", "-b", "100"]),
        (64 * 1024, &["-c", "2", "-t", "2", "-b", "20m"]),
        (4096, &["-c", "2", "-t", "30", "-k", "0", "-b", "1-30k", "--pipeline", "5"]),
        (4096, &["-c", "2", "-k", "0", "-R", "200", "-d", "300ms", "-b", "exp:500"]),
    ] {
        let server = Server::with(move |conn| echo(conn, piece));
        client(&server, &[args, &["--echo"]].concat()).expect(0, &["OK", "to echo"]);
    }
}

#[test]
fn a_wrong_echo_is_found() {
    let server = Server::with(|mut conn: TcpStream| {
        let mut bytes = [0; 50];
        while conn.read_exact(&mut bytes).is_ok() {
            bytes[30] = b'!';
            conn.write_all(&bytes).ok();
        }
    });
    let ran = client(&server, &["-c", "1", "-t", "4", "-b", "50", "--echo"]);
    ran.expect_failures("request", "wrong bytes", 4).expect(1, &["offset 30: expected 'e', got '!'"]);
}

/// Answers each empty line, which ends a request of HTTP, with `reply`.
fn http(conn: TcpStream, reply: &'static [u8]) {
    let mut conn = BufReader::new(conn);
    let mut line = String::new();
    while let Ok(1..) = std::io::BufRead::read_line(&mut conn, &mut line) {
        if line == "\r\n" && conn.get_mut().write_all(reply).is_err() {
            return;
        }
        line.clear();
    }
}

const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

#[test]
fn a_raw_request_drives_an_http_server() {
    let server = Server::with(|conn| http(conn, REPLY));
    let size = REPLY.len().to_string();
    let get = ["--request", r"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "--reply-bytes", &size];
    client(&server, &[&get[..], &["-c", "3", "-t", "20"]].concat()).expect(0, &["OK", "60 done"]);
    client(&server, &[&get[..], &["-c", "3", "-t", "20", "-k", "0", "--pipeline", "4"]].concat())
        .expect(0, &["OK", "60 done", "4 at a time"]);
    let short = (REPLY.len() - 1).to_string();
    let args = ["--request", get[1], "--reply-bytes", &short, "-c", "1", "-t", "3"];
    client(&server, &args).expect_failures("request", "too many bytes", 3);
    client(&server, &[&get[..], &["--verify", "pattern"]].concat()).expect(2, &["--verify pattern"]);
}

#[test]
fn requests_sent_together_are_counted_one_by_one() {
    let server = Server::with(serve_well);
    for (args, done) in [
        (&["-c", "2", "-t", "10", "-k", "0", "--pipeline", "4"][..], "20 done, 0 failed"),
        (&["-c", "2", "-t", "3", "-k", "5", "--pipeline", "4"], "30 done, 0 failed"),
        (&["-c", "1", "-t", "5000", "-k", "0", "--pipeline", "1024", "-b", "1"], "5000 done, 0 failed"),
    ] {
        client(&server, args).expect(0, &[done, "OK"]);
    }
    // Two answers, and then the end: what was sent and not answered has failed.
    let server = Server::with(|conn| {
        let mut conn = BufReader::new(conn);
        let n = request(&mut conn).unwrap();
        conn.get_mut().write_all(&support::pattern(n).repeat(2)).unwrap();
        conn.get_mut().shutdown(std::net::Shutdown::Write).ok();
        conn.read_to_end(&mut Vec::new()).ok();
    });
    let args = ["-c", "1", "-t", "1", "-k", "5", "--pipeline", "5", "-b", "100"];
    client(&server, &args).expect_failures("request", "closed before first byte", 3).expect(1, &["2 done, 3 failed"]);
}

#[test]
fn parts_that_do_not_go_together_are_usage_errors() {
    let server = Server::with(serve_well);
    for (args, word) in [
        (&["--pipeline", "2"][..], "use -k 0"),
        (&["--pipeline", "0", "-k", "0"], "1 to 1024"),
        (&["--pipeline", "2", "-k", "0", "-R", "10"], "--rate"),
        (&["--request", "x"], "--reply-bytes"),
        (&["--reply-bytes", "5"], "--request"),
        (&["--request", "", "--reply-bytes", "5"], "at least one byte"),
        (&["--request", r"\q", "--reply-bytes", "5"], r"\q is no escape"),
        (&["--request", "x", "--reply-bytes", "0"], "at least 1"),
        (&["--request", "x", "--reply-bytes", "5", "--echo"], "--echo"),
        (&["-b", "9-1"], "the smaller number first"),
        (&["-b", "exp:0"], "at least 1"),
        (&["-S", "127.0.0.9-127.0.0.2"], "the lower address first"),
        (&["-S", "localhost"], "is no address"),
        (&["-S", ""], "is no address"),
        (&["-S", "127.0.0.1,::1"], "IPv4 and IPv6"),
    ] {
        client(&server, args).expect(2, &[word]);
    }
    for (args, word) in [
        (&["-S", "192.0.2.1"][..], "source 192.0.2.1: Cannot assign requested address"),
        (&["-S", "::1"], "source ::1: not of the family of 127.0.0.1"),
    ] {
        client(&server, args).expect(1, &[word]);
    }
    let far = ["-q", "-i", "192.0.2.1", "-S", "127.0.0.5", "-c", "1", "-t", "1"];
    run(&mut support::command(&far)).expect(1, &["source 127.0.0.5: a loopback address reaches this machine only"]);
}

/// A server that counts where connections come from.
fn counting() -> (Server, Arc<Mutex<BTreeMap<IpAddr, usize>>>) {
    let peers = Arc::new(Mutex::new(BTreeMap::new()));
    let note = Arc::clone(&peers);
    let server = Server::with(move |conn: TcpStream| {
        *note.lock().unwrap().entry(conn.peer_addr().unwrap().ip()).or_insert(0) += 1;
        serve_well(conn);
    });
    (server, peers)
}

#[test]
fn connections_come_from_the_sources_in_turn() {
    let (server, peers) = counting();
    client(&server, &["-c", "4", "-t", "5", "-S", "127.0.0.2-127.0.0.4,127.1.2.3"]).expect(0, &["OK"]);
    let counts: Vec<_> = peers.lock().unwrap().iter().map(|(ip, n)| (ip.to_string(), *n)).collect();
    let five = |ip: &str| (ip.to_owned(), 5);
    assert_eq!(counts, ["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.1.2.3"].map(five));
}

#[test]
fn without_need_the_source_is_left_to_the_kernel() {
    let (server, peers) = counting();
    client(&server, &["-c", "20", "-t", "5"]).expect(0, &["OK"]);
    assert_eq!(peers.lock().unwrap().keys().map(IpAddr::to_string).collect::<Vec<_>>(), ["127.0.0.1"]);
}

#[test]
fn several_hosts_are_taken_in_turn() {
    let first = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = first.local_addr().unwrap().port();
    let Ok(second) = TcpListener::bind(("127.0.0.2", port)) else { return several_hosts_are_taken_in_turn() };
    let counts = [first, second].map(|listener| {
        let count = Arc::new(Mutex::new(0));
        let note = Arc::clone(&count);
        thread::spawn(move || {
            for conn in listener.incoming() {
                *note.lock().unwrap() += 1;
                thread::spawn(move || serve_well(conn.unwrap()));
            }
        });
        count
    });
    let args = ["-q", "-i", "127.0.0.1,127.0.0.2", "-p", &port.to_string(), "-c", "3", "-t", "10"];
    run(&mut support::command(&args)).expect(0, &["30 done", "OK"]);
    assert_eq!(counts.map(|count| *count.lock().unwrap()), [15, 15]);
}

//! The client as a user runs it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use testkit::Server;

/// Exit status, stdout and stderr of the client with these arguments and this stdin.
fn client(port: u16, args: &[&str], stdin: &str) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_multiply-client"))
        .args([&["-p", &port.to_string()], args].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let out = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
}

fn server(args: &[&str]) -> Server {
    Server::start(env!("CARGO_BIN_EXE_multiply-server"), args)
}

#[test]
fn a_request_on_the_command_line_is_answered() {
    let server = server(&[]);
    let port = server.addr.port();
    let ok = "Acknowledgment: Data received\nResult from server: 50.0\n";
    assert_eq!(client(port, &["5", "10"], ""), (0, ok.into(), String::new()));
    let (status, out, _) = client(port, &["-7", "/", "-2"], "");
    assert!(status == 0 && out.contains("3.5"), "{out}");
    let (status, out, _) = client(port, &["1", "/", "0"], "");
    assert!(status == 3 && out.contains("ERR divide by zero"), "{out}");
    assert_eq!(client(port, &["1"], "").0, 2);
}

#[test]
fn prompts_as_the_ancestor_does() {
    let server = server(&[]);
    let (status, out, _) = client(server.addr.port(), &[], "5\n10\n6\n7\n");
    let answers: Vec<&str> = out.lines().filter(|line| line.starts_with("Result")).collect();
    assert_eq!(
        (status, answers),
        (0, vec!["Result from server: 50.0", "Result from server: 42.0"])
    );
    assert!(
        out.starts_with("Enter first number: ") && out.contains("Enter second number: "),
        "{out}"
    );
    let (_, out, _) = client(server.addr.port(), &["--op", "-"], "5\n10\n");
    assert!(out.contains("Result from server: -5.0"), "{out}");
}

#[test]
fn a_split_request_is_shown_as_two_sends() {
    for framing in ["line", "length"] {
        let server = server(&["--framing", framing]);
        let args = ["--bytes", "--split", "3", "--pause", "50", "--framing", framing, "5", "10"];
        let (status, out, _) = client(server.addr.port(), &args, "");
        assert!(status == 0 && out.matches("send ").count() == 2 && out.contains("recv "), "{out}");
        assert!(out.ends_with("Result from server: 50.0\n"), "{out}");
    }
}

#[test]
fn a_pipeline_gives_all_answers_in_order() {
    let server = server(&[]);
    let (lines, answers): (Vec<_>, Vec<_>) =
        (0..1000).map(|i| (format!("{i} 2\n"), format!("{}.0\n", i * 2))).unzip();
    assert_eq!(
        client(server.addr.port(), &["--pipeline"], &lines.concat()),
        (0, answers.concat(), String::new())
    );
}

#[test]
fn a_missing_or_closing_server_is_one_line_of_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let gone = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let (status, out, err) = client(port, &["5", "10"], "");
    gone.join().unwrap();
    assert!(status == 1 && out.is_empty() && err.lines().count() == 1, "{out}{err}");
    let (status, _, err) = client(port, &["5", "10"], "");
    assert!(status == 1 && err.contains("connect 127.0.0.1") && err.contains("refused"), "{err}");
}

#[test]
fn a_busy_server_is_an_error() {
    let server = server(&["--max-conns", "1"]);
    let mut first = server.connect();
    first.send("1 1\n");
    first.read_exactly(18);
    let (status, _, err) = client(server.addr.port(), &["5", "10"], "");
    assert!(status == 1 && err.contains("ERR busy"), "{err}");
}

/// The client, against a server that answers these bytes: all at once, or one byte per interval.
/// Also returns how many bytes the server has sent when the client has ended.
fn against(answer: &'static [u8], interval: Duration) -> ((i32, String, String), usize) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (done, is_done) = channel::<()>();
    let server = thread::spawn(move || {
        let mut conn = listener.accept().unwrap().0;
        conn.read_exact(&mut [0; 5]).unwrap();
        if interval.is_zero() {
            return conn.write(answer).unwrap();
        }
        let still_running = || is_done.recv_timeout(interval) == Err(RecvTimeoutError::Timeout);
        let sent =
            answer.iter().take_while(|byte| still_running() && conn.write(&[**byte]).is_ok());
        sent.count()
    });
    let outcome = client(port, &["--timeout", "500", "5", "10"], "");
    let _ = done.send(());
    (outcome, server.join().unwrap())
}

#[test]
fn control_bytes_of_the_server_are_escaped() {
    for answer in
        [&b"Data received\n\x1b]0;x\x07\x1b[2J50.0\n"[..], b"ERR \x1b]0;x\x07\n", b"\x1b[2J\n"]
    {
        let ((_, out, err), _) = against(answer, Duration::ZERO);
        assert!(!out.contains('\x1b') && !err.contains('\x1b'), "{out}{err}");
        assert!(out.contains("\\x1b") || err.contains("\\x1b"), "{out}{err}");
    }
}

/// 19 bytes, one each 200 ms: the answer is complete long after the timeout of 500 ms.
#[test]
fn the_timeout_is_for_the_whole_answer() {
    let ((status, _, err), sent) = against(b"Data received\n50.0\n", Duration::from_millis(200));
    assert!(status == 1 && err.contains("no answer from the server in 500 ms"), "{err}");
    assert!(sent < 10, "the client waited for {sent} bytes");
}

/// `localhost` may have the addresses ::1 and 127.0.0.1; the server listens on one of them.
#[test]
fn a_host_name_is_resolved_and_an_unknown_one_is_one_line_of_error() {
    let server = server(&[]);
    let (status, out, err) = client(server.addr.port(), &["-i", "localhost", "5", "10"], "");
    assert!(status == 0 && out.contains("50.0"), "{out}{err}");
    let (status, _, err) = client(server.addr.port(), &["-i", "no such host", "5", "10"], "");
    assert!(status == 1 && err.contains("host no such host") && err.lines().count() == 1, "{err}");
}

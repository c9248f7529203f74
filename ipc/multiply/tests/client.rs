//! The client as a user meets it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use testkit::Server;

/// Exit status, stdout and stderr of the client with these arguments and this on its stdin.
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
fn one_shot() {
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
    assert_eq!((status, answers), (0, vec!["Result from server: 50.0", "Result from server: 42.0"]));
    assert!(out.starts_with("Enter first number: ") && out.contains("Enter second number: "), "{out}");
    let (_, out, _) = client(server.addr.port(), &["--op", "-"], "5\n10\n");
    assert!(out.contains("Result from server: -5.0"), "{out}");
}

#[test]
fn bytes_of_a_split_request() {
    for framing in ["line", "length"] {
        let server = server(&["--framing", framing]);
        let args = ["--bytes", "--split", "3", "--pause", "50", "--framing", framing, "5", "10"];
        let (status, out, _) = client(server.addr.port(), &args, "");
        assert!(status == 0 && out.matches("send ").count() == 2 && out.contains("recv "), "{out}");
        assert!(out.ends_with("Result from server: 50.0\n"), "{out}");
    }
}

#[test]
fn a_pipeline() {
    let server = server(&[]);
    let (lines, answers): (Vec<_>, Vec<_>) = (0..1000).map(|i| (format!("{i} 2\n"), format!("{}.0\n", i * 2))).unzip();
    assert_eq!(client(server.addr.port(), &["--pipeline"], &lines.concat()), (0, answers.concat(), String::new()));
}

#[test]
fn nobody_listens_or_the_server_goes_away() {
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

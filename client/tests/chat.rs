//! `client --chat` against rooms that are right, and rooms that are not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;

/// What a room does with the line of this number.
type Fate = fn(usize) -> (bool, Duration);

/// A room: the first line is the nick, all others go to everybody else. Its port.
fn room(greeting: &'static str, fate: Fate) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let members: Arc<Mutex<Vec<(usize, TcpStream)>>> = Arc::default();
    let said = Arc::new(Mutex::new(0));
    thread::spawn(move || {
        for (id, stream) in listener.incoming().map(Result::unwrap).enumerate() {
            let (members, said) = (Arc::clone(&members), Arc::clone(&said));
            thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                lines.next();
                let mut newcomer = stream;
                newcomer.write_all(greeting.as_bytes()).unwrap();
                members.lock().unwrap().push((id, newcomer));
                for line in lines.map_while(Result::ok) {
                    let mut number = said.lock().unwrap();
                    let (is_told, wait) = fate(*number);
                    *number += 1;
                    thread::sleep(wait); // the fault: everybody waits
                    for (to, stream) in members.lock().unwrap().iter_mut().filter(|_| is_told) {
                        if *to != id {
                            let _ = stream.write_all(format!("<m> {line}\n").as_bytes());
                        }
                    }
                }
            });
        }
    });
    port
}

fn client(port: u16, args: &[&str]) -> (Output, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_client"));
    command.args(["--chat", "-p", &port.to_string(), "-c", "5", "-R", "200", "-d", "500ms", "-w", "100ms"]);
    let output = command.args(["--json", "-"]).args(args).output().unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output, json)
}

fn whole(number: usize) -> (bool, Duration) {
    (number < usize::MAX, Duration::ZERO)
}

#[test]
fn everything_comes_to_everybody() {
    let (output, json) = client(room("* welcome\n", whole), &["-s", "3"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for (key, count) in [("offered", 100), ("sent", 100), ("expected", 400), ("delivered", 400)] {
        assert_eq!(json[key], count, "{key}");
    }
    // All five are probes: each delivery is in the histogram, and no message has been heard before it was sent.
    assert_eq!(json["latency"]["count"], 400);
    assert!(json["from_send"]["max"].as_u64() <= json["latency"]["max"].as_u64());
    assert!(json["latency"]["p99.9"].is_null(), "a percentile of too few samples");
}

#[test]
fn what_is_lost_is_counted() {
    // The 20 messages of the warm-up are whole.
    let port = room("* welcome\n", |number| (number < 20 || number % 10 != 0, Duration::ZERO));
    let (output, json) = client(port, &["--timeout", "1s"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!((&json["expected"], &json["delivered"]), (&400.into(), &360.into()));
}

#[test]
fn a_room_that_stalls_cannot_hide_it() {
    // Stands still once, for 200 ms: 40 messages of the schedule fall into that time.
    let port = room("* welcome\n", |number| (true, Duration::from_millis(if number == 40 { 200 } else { 0 })));
    let (output, json) = client(port, &[]);
    assert_eq!(output.status.code(), Some(0));
    let ms = |key: &str| json["latency"][key].as_f64().unwrap() / 1e6;
    assert!(ms("max") >= 195.0, "the longest wait was {} ms", ms("max"));
    // 40 of 100 messages waited for 0 to 200 ms.
    assert!((60.0..).contains(&ms("p90")), "p90 {} ms", ms("p90"));
}

#[test]
fn a_refusal_is_told_in_the_servers_words() {
    let (output, _) = client(room("! server-full try again later\n", whole), &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("! server-full try again later"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn nonsense_is_a_usage_error() {
    for bad in
        [&["-s", "11"][..], &["-c", "1"], &["-b", "11"], &["-b", "901"], &["-R", "1:5"], &["-R", "0"], &["-c", "0"]]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_client"));
        let output = command.args(["--chat", "-p", "1"]).args(bad).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{bad:?}: {output:?}");
    }
}

#[test]
fn a_dead_reader_is_no_member_of_the_count() {
    let (output, json) = client(room("* welcome\n", whole), &["--dead", "2"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!((&json["expected"], json["dead"].as_array().map(Vec::len)), (&400.into(), Some(2)));
}

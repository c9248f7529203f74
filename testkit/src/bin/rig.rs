//! A server for the self-test: healthy, or broken in the one way that `--fault` names.
//!
//! Run: cargo run -p testkit --bin rig -- -p 0 --fault spins
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)] // test code

use std::io::{BufRead, BufReader, Write};
use std::mem;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

static SERVED: AtomicUsize = AtomicUsize::new(0);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let fault = args.iter().skip_while(|arg| *arg != "--fault").nth(1).cloned().unwrap_or_default();
    // Before the first thread, so that all inherit it and the wait below is the only taker.
    let term = SigSet::from(Signal::SIGTERM);
    term.thread_block().unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("listening on {}", listener.local_addr().unwrap());
    let at_end = fault.clone();
    thread::spawn(move || {
        for conn in listener.incoming().flatten() {
            let fault = fault.clone();
            thread::spawn(move || serve(conn, &fault));
        }
    });

    term.wait().unwrap();
    match at_end.as_str() {
        "ignores SIGTERM" => thread::sleep(Duration::from_secs(600)),
        "leaves a process at the end" => drop(sleeper()),
        "ends with another status" => std::process::exit(3),
        _ => {}
    }
}

fn serve(mut conn: TcpStream, fault: &str) {
    // The first clients are the baseline's and the self-test's own.
    let served = SERVED.fetch_add(1, Ordering::SeqCst);
    if served >= 1 {
        misbehave(&conn, fault);
    }
    if served >= 3 && fault == "goes deaf" {
        return;
    }
    for line in BufReader::new(conn.try_clone().unwrap()).lines().map_while(Result::ok) {
        let n: usize = line.parse().unwrap_or(0);
        let mut answer = testkit::pattern(n);
        match fault {
            "sends a wrong byte" if n > 1 => answer.swap(0, 1),
            "answers short" if n > 1 => answer.truncate(n - 1),
            _ => {}
        }
        if conn.write_all(&answer).is_err() || fault == "answers short" {
            return;
        }
    }
}

fn misbehave(conn: &TcpStream, fault: &str) {
    match fault {
        "spins" => drop(thread::spawn(|| {
            loop {
                std::hint::spin_loop();
            }
        })),
        "leaks a descriptor" => drop(conn.try_clone().unwrap().into_raw_fd()),
        "makes zombies" => mem::forget(Command::new("true").spawn().unwrap()),
        "leaves processes" => drop(sleeper()),
        "leaks a thread" => drop(thread::spawn(|| thread::sleep(Duration::from_secs(600)))),
        "leaks memory" => mem::forget(std::hint::black_box(vec![7u8; 1 << 20])),
        "panics" => eprintln!("thread 'worker' panicked at src/main.rs:1:1"),
        "reports a defect" => eprintln!("ALERT the table is full of ghosts"),
        "lets descriptors be inherited" => {
            // SAFETY: a plain dup: the new descriptor has no close-on-exec flag.
            unsafe { libc::dup(conn.as_raw_fd()) };
        }
        "ends" => std::process::exit(0),
        _ => {}
    }
}

fn sleeper() -> std::process::Child {
    Command::new("sleep").arg("600").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

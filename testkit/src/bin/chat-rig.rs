//! A chat for the self-test: healthy as far as the self-test's rows go, or broken in the one way that `--fault` names.
//!
//! Run: cargo run -p testkit --bin chat-rig -- -p 0 --fault "doubles the leave line"
#![allow(clippy::unwrap_used, clippy::print_stdout)] // test code

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

const LINE: usize = 1024;
const OUTBOX: usize = 64 * 1024;

struct Rig {
    fault: String,
    idle: Duration,
    room: Mutex<BTreeMap<String, Member>>,
    /// Held for the whole of a broadcast: one order.
    order: Mutex<usize>,
}

struct Member {
    conn: TcpStream,
    lines: Sender<String>,
    queued: Arc<AtomicUsize>,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |key: &str| args.iter().skip_while(|arg| *arg != key).nth(1).cloned();
    let idle = Duration::from_millis(value("--idle-timeout").map_or(600_000, |ms| ms.parse().unwrap()));
    let fault = value("--fault").unwrap_or_default();
    // Before the first thread, so that all inherit it and the wait below is the only taker.
    let term = SigSet::from(Signal::SIGTERM);
    term.thread_block().unwrap();

    let rig = Arc::new(Rig { fault, idle, room: Mutex::default(), order: Mutex::default() });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("listening on {}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for conn in listener.incoming().flatten() {
            let rig = Arc::clone(&rig);
            thread::spawn(move || rig.serve(conn));
        }
    });
    term.wait().unwrap();
}

impl Rig {
    fn serve(&self, conn: TcpStream) {
        conn.set_read_timeout(Some(self.idle)).unwrap();
        let mut input = Input { conn: conn.try_clone().unwrap(), bytes: Vec::new() };
        let Ok(nick) = input.line(self) else { return };
        let (lines, queue) = channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let writer = {
            let (conn, queued) = (conn.try_clone().unwrap(), Arc::clone(&queued));
            thread::spawn(move || write(conn, &queue, &queued))
        };
        lines.send(format!("* welcome {nick}\n")).unwrap();
        self.broadcast(&nick, &format!("* {nick} joined"), || {
            let member = Member { conn: conn.try_clone().unwrap(), lines, queued };
            self.room.lock().unwrap().insert(nick.clone(), member).is_none()
        });
        let why = loop {
            match input.line(self) {
                Ok(line) if line == "/quit" => break ("quit", "* bye"),
                Ok(line) if line == "/echo off" => self.tell(&nick, "= echo off"),
                Ok(line) => {
                    self.broadcast(&nick, &format!("<{nick}> {line}"), || true);
                }
                Err(why) => break why,
            }
        };
        self.leave(&nick, why);
        // Whoever was put out of the room by another thread has had its last words from there.
        writer.join().unwrap();
        let _ = conn.shutdown(Shutdown::Write);
        conn.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut rest = input.conn;
        while rest.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {}
    }

    /// One that is not there any more leaves no second time.
    fn leave(&self, nick: &str, (why, last): (&str, &str)) {
        let take_out = || {
            let member = self.room.lock().unwrap().remove(nick);
            if let Some(member) = member.as_ref().filter(|_| !last.is_empty()) {
                let _ = member.lines.send(format!("{last}\n"));
            }
            member.is_some()
        };
        if self.broadcast(nick, &format!("* {nick} left ({why})"), take_out) && self.fault == "doubles the leave line" {
            self.broadcast(nick, &format!("* {nick} left ({why})"), || true);
        }
    }

    fn tell(&self, nick: &str, line: &str) {
        let _order = self.order.lock().unwrap();
        if let Some(member) = self.room.lock().unwrap().get(nick) {
            member.push(&format!("{line}\n"));
        }
    }

    /// To all but the sender, if that makes sense in this moment of the order.
    fn broadcast(&self, from: &str, line: &str, still: impl FnOnce() -> bool) -> bool {
        let mut number = self.order.lock().unwrap();
        if !still() {
            return false;
        }
        *number += 1;
        let text = format!("{line}\n");
        let mut slow = Vec::new();
        for (i, (nick, member)) in self.room.lock().unwrap().iter().enumerate() {
            let said = line.starts_with('<');
            let skip = *nick == from && !(said && self.fault == "echoes to the sender");
            if skip || said && number.is_multiple_of(5) && i == 1 && self.fault == "loses a line" {
                continue;
            }
            match self.fault.as_str() {
                "blocks on a slow reader" => drop((&member.conn).write_all(text.as_bytes())),
                "keeps two orders" if said && i % 2 == 1 && number.is_multiple_of(3) => member.push_later(text.clone()),
                _ if !member.push(&text) => slow.push(nick.clone()),
                _ => {}
            }
        }
        drop(number);
        slow.iter().for_each(|nick| self.leave(nick, ("slow reader", "! slow-reader")));
        true
    }
}

impl Member {
    fn push(&self, line: &str) -> bool {
        let waiting = self.queued.fetch_add(line.len(), Ordering::SeqCst);
        let _ = self.lines.send(line.to_owned());
        waiting < OUTBOX
    }

    fn push_later(&self, line: String) {
        let lines = self.lines.clone();
        self.queued.fetch_add(line.len(), Ordering::SeqCst);
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(3));
            lines.send(line)
        });
    }
}

fn write(mut conn: TcpStream, queue: &Receiver<String>, queued: &AtomicUsize) {
    for line in queue {
        if conn.write_all(line.as_bytes()).is_err() {
            let _ = conn.shutdown(Shutdown::Both);
        }
        if line.starts_with("! slow-reader") {
            let _ = conn.shutdown(Shutdown::Both);
            return;
        }
        queued.fetch_sub(line.len().min(queued.load(Ordering::SeqCst)), Ordering::SeqCst);
    }
}

struct Input {
    conn: TcpStream,
    bytes: Vec<u8>,
}

impl Input {
    /// The next line, or why there is none and what to say of it.
    fn line(&mut self, rig: &Rig) -> Result<String, (&'static str, &'static str)> {
        loop {
            let end = self.bytes.iter().position(|byte| *byte == b'\n');
            if end.unwrap_or(self.bytes.len()) >= LINE && rig.fault != "does not close at a long line" {
                return Err(("line too long", "! line-too-long"));
            }
            if let Some(end) = end {
                let line: Vec<u8> = self.bytes.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            let mut block = [0; 4096];
            match self.conn.read(&mut block) {
                Ok(0) => return Err(("closed", "")),
                Ok(n) => self.bytes.extend(block.iter().take(n)),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(("idle", "! idle"));
                }
                Err(_) => return Err(("connection lost", "")),
            }
        }
    }
}

//! The bug: a chat that writes to its clients while it holds the lock of the room.
//!
//! A client that does not read fills its socket. The thread that writes to this client then sleeps
//! in send and holds the lock, so no other client can say anything, join or leave. v1-threads
//! queues lines while it holds the lock, and unlocks the room before it writes.
//!
//! Run: cargo run -p v1-threads --bin naive-lock

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;

use clap::Parser;
use common::cli::Listen;
use common::report::{self, Failed, Log};
use common::sock::{Backoff, listen};

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    report: Log,
}

type Room = Arc<Mutex<BTreeMap<u64, TcpStream>>>;

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let listener = listen(&args.listen, 128)?;
    let room = Room::default();
    report::ready(&listener);
    let mut backoff = Backoff::default();
    for id in 0.. {
        let conn = match listener.accept() {
            Ok((conn, _)) => TcpStream::from(conn),
            Err(e) => {
                backoff.sleep("accept", &e, &args.report)?;
                continue;
            }
        };
        let room = Arc::clone(&room);
        if let Err(e) = Builder::new().spawn(move || chat(id, conn, &room)) {
            args.report.repeated("WARN", &format!("clone: {e}"));
        }
    }
    Ok(())
}

fn chat(id: u64, conn: TcpStream, room: &Room) {
    let Ok(own) = conn.try_clone() else { return };
    room.lock().unwrap_or_else(PoisonError::into_inner).insert(id, own);
    for line in BufReader::new(conn).lines().map_while(Result::ok) {
        let mut room = room.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, receiver) in room.iter_mut().filter(|(receiver, _)| **receiver != id) {
            // The system call while the lock is held: it may block without end.
            let _ = receiver.write_all(format!("<{id}> {line}\n").as_bytes());
        }
    }
    room.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
}

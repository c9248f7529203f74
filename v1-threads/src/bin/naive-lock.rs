//! What not to do: a chat that writes to its clients while it holds the lock of the room.
//!
//! One client that does not read fills its buffer; the thread that writes to it sleeps in send, with the lock in its
//! hand; and nobody can say, join or leave any more. `v1-threads` queues under the lock and writes outside.
//!
//! Run: cargo run -p v1-threads --bin naive-lock

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;

use clap::Parser;
use common::cli::Listen;
use common::report::{Failed, Log};
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
            // The system call under the lock: it may take for ever.
            let _ = receiver.write_all(format!("<{id}> {line}\n").as_bytes());
        }
    }
    room.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
}

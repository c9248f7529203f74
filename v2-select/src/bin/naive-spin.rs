//! The bug: a chat that takes the end of file for "no bytes yet".
//!
//! A closed connection stays readable, and each read returns 0 bytes. This loop keeps the
//! connection in its set: select returns at once, again and again, and the loop uses a whole CPU
//! without any work. v2-select disconnects a client whose read returns 0 bytes.
//!
//! Run: cargo run -p v2-select --bin naive-spin

use std::io::{Read, Write};
use std::os::fd::AsFd;

use anyhow::Context;
use clap::Parser;
use common::cli::Listen;
use common::report::{self, Failed};
use common::sock::listen;
use nix::sys::select::{FdSet, select};
use socket2::Socket;

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
}

/// Clients at once: fewer than a set has bits.
const MOST: usize = 900;

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let listener = listen(&args.listen, 128)?;
    report::ready(&listener);
    let mut clients: Vec<Socket> = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let mut readable = FdSet::new();
        readable.insert(listener.as_fd());
        clients.iter().for_each(|client| readable.insert(client.as_fd()));
        select(None, &mut readable, None, None, None).context("select")?;

        let ready: Vec<bool> =
            clients.iter().map(|client| readable.contains(client.as_fd())).collect();
        let is_incoming = readable.contains(listener.as_fd());
        for (sender, _) in ready.iter().enumerate().filter(|(_, ready)| **ready) {
            let Some(mut conn) = clients.get(sender) else { continue };
            // The bug: 0 bytes mean the end of file, and this loop ignores them.
            let n = conn.read(&mut buffer).unwrap_or(0);
            let said = buffer.get(..n).unwrap_or_default();
            for (_, mut other) in
                clients.iter().enumerate().filter(|(receiver, _)| *receiver != sender)
            {
                let _ = other.write_all(said);
            }
        }
        if is_incoming && clients.len() < MOST {
            clients.extend(listener.accept().map(|(conn, _)| conn));
        }
    }
}

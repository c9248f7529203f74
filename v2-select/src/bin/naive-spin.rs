//! What not to do: a chat that takes the end of file for "nothing yet".
//!
//! A closed connection is readable, and reading it returns 0 bytes, for ever. This loop goes on to ask for it: select
//! returns at once, each time, and the CPU is busy with nobody. `v2-select` takes 0 bytes for what they are.
//!
//! Run: cargo run -p v2-select --bin naive-spin

use std::io::{Read, Write};
use std::os::fd::AsFd;

use anyhow::Context;
use clap::Parser;
use common::cli::Listen;
use common::report::Failed;
use common::sock::listen;
use nix::sys::select::{FdSet, select};
use socket2::Socket;

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
}

/// As many as fit in a set, with some to spare.
const MOST: usize = 900;

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let listener = listen(&args.listen, 128)?;
    let mut clients: Vec<Socket> = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let mut readable = FdSet::new();
        readable.insert(listener.as_fd());
        clients.iter().for_each(|client| readable.insert(client.as_fd()));
        select(None, &mut readable, None, None, None).context("select")?;

        let ready: Vec<bool> =
            clients.iter().map(|client| readable.contains(client.as_fd())).collect();
        let knock = readable.contains(listener.as_fd());
        for (speaker, _) in ready.iter().enumerate().filter(|(_, ready)| **ready) {
            let Some(mut conn) = clients.get(speaker) else { continue };
            // 0 bytes: nothing was said, so there is nothing to do. Until the next round, a microsecond from now.
            let n = conn.read(&mut buffer).unwrap_or(0);
            let said = buffer.get(..n).unwrap_or_default();
            for (_, mut other) in
                clients.iter().enumerate().filter(|(receiver, _)| *receiver != speaker)
            {
                let _ = other.write_all(said);
            }
        }
        if knock && clients.len() < MOST {
            clients.extend(listener.accept().map(|(conn, _)| conn));
        }
    }
}

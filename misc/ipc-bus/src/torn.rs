//! Two writers on one bus: up to which size do their records stay complete?

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bus::{Bus, End};
use crate::probe::{BUFFER, boundaries, errno};
use crate::process::{reap, start};

/// PIPE_BUF, and sizes above the limits of the other buses.
const SIZES: [(usize, &str); 5] = [
    (4096, "4 KiB"),
    (8192, "8 KiB"),
    (49_152, "48 KiB"),
    (196_608, "192 KiB"),
    (1 << 20, "1 MiB"),
];

/// The largest records of two writers that arrive complete, and what happens to larger ones.
pub fn whole_up_to(bus: Bus) -> Result<String> {
    let mut largest = "none".to_owned();
    for (size, name) in SIZES {
        match two_writers(bus, size)? {
            Whole::Yes => largest = name.to_owned(),
            Whole::Torn => return Ok(format!("{largest}, then torn")),
            Whole::Rejected(e) => return Ok(format!("{largest}, then {}", errno(e))),
        }
    }
    Ok(largest)
}

enum Whole {
    Yes,
    Torn,
    Rejected(Errno),
}

/// Records per writer: enough that two writers that block in `write` take turns.
const RECORDS: usize = 32;

/// The records of a writer contain only its own letter. A record with two letters, or a part of a
/// record, is torn.
fn two_writers(bus: Bus, size: usize) -> Result<Whole> {
    let (reader, writer) = bus.open()?;
    writer.set_nonblocking()?;
    if let Err(e @ Errno::EMSGSIZE) = writer.put(&vec![b'x'; size]) {
        return Ok(Whole::Rejected(e));
    }
    // A new bus, because the test record is still in this one.
    let (reader, writer) = {
        drop((reader, writer));
        bus.open()?
    };
    let mut writers = Vec::new();
    for letter in [b'a', b'b'] {
        writers.push(start(|| record_writer(&writer, letter, size))?);
    }
    let is_whole = read_records(bus, &reader, size, &writers);
    for child in writers {
        let _ = kill(child, Signal::SIGKILL);
        reap(child)?;
    }
    Ok(if is_whole? { Whole::Yes } else { Whole::Torn })
}

fn record_writer(end: &End, letter: u8, size: usize) -> i32 {
    let record = vec![letter; size];
    for _ in 0..RECORDS {
        let mut rest = record.as_slice();
        while !rest.is_empty() {
            match end.put(rest) {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(_) => return 1,
            }
        }
    }
    0
}

/// Waits until the bus is full and the writer blocks, or until the writer has ended.
fn wait_until_blocked(child: Pid) {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        if stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['S', 'Z'])) {
            return;
        }
        thread::sleep(Duration::from_micros(100));
    }
}

/// On a byte stream the reader splits the records by their size. On a packet bus one read must
/// return one record.
fn read_records(bus: Bus, reader: &End, size: usize, writers: &[Pid]) -> Result<bool> {
    let has_boundaries = boundaries(bus)? == "yes";
    let mut record = vec![0; size.max(BUFFER)];
    for _ in 0..2 * RECORDS {
        let mut filled = 0;
        while filled < size {
            writers.iter().for_each(|child| wait_until_blocked(*child));
            // Small reads: a writer that blocks in the middle of a record writes a part of the
            // rest, and then the other writer a part of its record.
            let end = if has_boundaries { record.len() } else { size.min(filled + 4096) };
            let n = reader.get(record.get_mut(filled..end).unwrap_or_default()).context("read")?;
            filled += n;
            if has_boundaries && n < size {
                return Ok(false);
            }
        }
        let first = record.first().copied();
        if record.iter().take(size).any(|byte| Some(*byte) != first) {
            return Ok(false);
        }
    }
    Ok(true)
}

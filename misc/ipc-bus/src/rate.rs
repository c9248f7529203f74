//! Many writers and one reader: messages per second, and reads per message.

use std::os::fd::OwnedFd;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{pipe2, read};

use crate::bus::{Bus, End};
use crate::process::{reap, start, start_timeout};

#[derive(Clone, Copy)]
pub struct Load {
    pub writers: u32,
    /// Messages per writer.
    pub messages: u32,
    pub rounds: u32,
}

/// The result of one bus in the median round.
pub struct Rate {
    pub per_second: f64,
    pub reads_per_message: f64,
    /// The rate divided by the rate of a pipe in the same round.
    pub of_pipe: f64,
}

/// The row of a bus: messages of 128 bytes, then messages of 1 KiB.
pub fn row(small: &Rate, large: &Rate) -> String {
    format!(
        "{:>9.0} {:>8.2} {:>13.3} {:>9.0} {:>8.2}",
        small.per_second, small.of_pipe, small.reads_per_message, large.per_second, large.of_pipe
    )
}

/// Each round measures a pipe and then this bus: other load on the machine slows both.
pub fn measure(bus: Bus, size: usize, load: Load) -> Result<Rate> {
    let mut rounds = Vec::new();
    for _ in 0..load.rounds {
        let pipe = round(Bus::Pipe, size, load)?.per_second;
        let rate = round(bus, size, load)?;
        rounds.push(Rate { of_pipe: rate.per_second / pipe, ..rate });
    }
    rounds.sort_by(|a, b| a.of_pipe.total_cmp(&b.of_pipe));
    let middle = rounds.len() / 2;
    rounds.into_iter().nth(middle).context("no round was run")
}

fn round(bus: Bus, size: usize, load: Load) -> Result<Rate> {
    start_timeout()?;
    let (reader, writer) = bus.open()?;
    let (wait, gate) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    let mut gate = Some(gate);
    let mut children = Vec::new();
    for number in 0..load.writers {
        let letter = b'a' + (number % 26) as u8;
        let job = Job { end: &writer, letter, size, messages: load.messages, wait: &wait };
        children.push(start(|| sender(&job, &mut gate))?);
    }
    // Only the children have a writing end now, so the reader sees end of file when all have ended.
    drop(writer);
    let began = Instant::now();
    // The children read end of file from the other end, and all start now.
    drop(gate);
    let total = load.writers as usize * load.messages as usize;
    let reads = receive(&reader, size, total);
    let seconds = began.elapsed().as_secs_f64();
    for child in children {
        if reads.is_err() {
            let _ = kill(child, Signal::SIGKILL);
        }
        reap(child)?;
    }
    let reads = reads.with_context(|| bus.name())?;
    let reads_per_message = reads as f64 / total as f64;
    Ok(Rate { per_second: total as f64 / seconds, reads_per_message, of_pipe: 1.0 })
}

/// The work of one writer in a round.
struct Job<'a> {
    end: &'a End,
    letter: u8,
    size: usize,
    messages: u32,
    wait: &'a OwnedFd,
}

fn sender(job: &Job, gate: &mut Option<OwnedFd>) -> i32 {
    drop(gate.take()); // the child's copy; the parent keeps its own
    let _ = read(job.wait, &mut [0]);
    let message = vec![job.letter; job.size];
    for _ in 0..job.messages {
        // No message is larger than PIPE_BUF, so a write is never partial.
        if job.end.put(&message) != Ok(job.size) {
            return 1;
        }
    }
    0
}

/// Reads until all messages have arrived, and checks that each is complete.
fn receive(reader: &End, size: usize, total: usize) -> Result<usize> {
    let mut buffer = vec![0; 65_536];
    let (mut reads, mut filled, mut received) = (0, 0, 0);
    let mut at_last_alarm = 0;
    while received < total {
        let n = match reader.get(buffer.get_mut(filled..).unwrap_or_default()) {
            // A long round: messages have arrived since the last alarm.
            Err(Errno::EINTR) if received > at_last_alarm => {
                at_last_alarm = received;
                continue;
            }
            Err(Errno::EINTR) => bail!("no message has arrived within the timeout"),
            n => n.context("read")?,
        };
        ensure!(n > 0, "the writers have ended before the last message");
        reads += 1;
        filled += n;
        let whole = filled - filled % size;
        for message in buffer.get(..whole).unwrap_or_default().chunks(size) {
            ensure!(message.first() == message.last(), "a message contains bytes of two writers");
            received += 1;
        }
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
    }
    Ok(reads)
}

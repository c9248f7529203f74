//! The steps of the service, for people who watch: with `--events`, one JSON object per line.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

/// Events that were not printed, because stdout had no room. The lock also keeps the threads apart:
/// between poll and write no other thread may use up the room.
static LOST: Mutex<u64> = Mutex::new(0);

/// The option for events.
#[derive(Args, Debug)]
pub struct Events {
    /// Print each step as one JSON object per line
    #[arg(long)]
    events: bool,
}

/// One step. What the client has sent is escaped, so it is text in any case.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event<'a> {
    /// A worker has started to serve this client.
    Connected {
        /// The address of the client.
        peer: &'a str,
    },
    /// A request was answered.
    Request {
        /// The address of the client.
        peer: &'a str,
        /// What it has sent.
        request: String,
        /// The result, or the ERR line.
        answer: &'a str,
    },
    /// The session has ended.
    Closed {
        /// The address of the client.
        peer: &'a str,
        /// The reason.
        why: String,
    },
    /// Events were not printed.
    Lost {
        /// How many.
        events: u64,
    },
}

impl Events {
    /// Prints an event. It never blocks: if nobody reads the pipe behind stdout, the event is lost,
    /// and the next event that is printed comes after the number of lost ones.
    pub fn emit(&self, event: &Event) {
        if !self.events {
            return;
        }
        let mut lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
        if *lost > 0 && try_write(&Event::Lost { events: *lost }) {
            *lost = 0;
        }
        *lost += u64::from(*lost > 0 || !try_write(event));
    }
}

/// False: the event is lost. poll(2) reports POLLOUT for a pipe if PIPE_BUF bytes fit into it,
/// which is more than the longest event has. Then the write does not block.
fn try_write(event: &Event) -> bool {
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    let mut out = io::stdout();
    let is_ready = {
        let mut fds = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    };
    is_ready && out.write_all(&line).is_ok()
}

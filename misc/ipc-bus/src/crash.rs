//! What a bus leaves behind when its creator is killed with kill -9.

use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{pipe2, read, write};

use crate::bus::{BlockedSignals, Bus, Names};
use crate::probe::{buffer, errno};
use crate::process::{reap, start};

/// A process makes the bus, sends a message and is killed: what is left for later processes?
pub fn left(bus: Bus) -> Result<String> {
    let _blocked = BlockedSignals::new()?;
    let names = Names::new()?;
    let (ready, notify) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    let creator = start(|| create(bus, &names, &notify))?;
    drop(notify);
    let created = read(&ready, &mut [0]);
    let _ = kill(creator, Signal::SIGKILL);
    reap(creator)?;
    if created != Ok(1) {
        // The same call in this process returns the reason.
        bus.open()?;
        bail!("the child could not make the bus");
    }
    if names.path().exists() {
        let result = match names.connected() {
            Ok(_) => "connected".into(),
            Err(e) => e.downcast_ref::<Errno>().map_or_else(|| e.to_string(), |e| errno(*e)),
        };
        return Ok(format!("the name: {result}"));
    }
    match names.open_queue() {
        Ok(queue) => {
            queue.set_nonblocking()?;
            Ok(match queue.get(&mut buffer()) {
                Ok(n) => format!("the queue with {n} bytes"),
                Err(e) => format!("the queue: {}", errno(e)),
            })
        }
        Err(_) => Ok("nothing".into()),
    }
}

/// The life of the child.
fn create(bus: Bus, names: &Names, notify: &OwnedFd) -> i32 {
    let Ok((_reader, writer)) = bus.open_at(names) else { return 1 };
    let _ = writer.put(b"left behind");
    let _ = write(notify, b"x");
    // The parent kills this process.
    loop {
        thread::sleep(Duration::from_secs(1));
    }
}

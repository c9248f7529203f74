//! Chat with threads: a reader and a writer thread per client, the room behind a mutex.
//!
//! Run: cargo run -p v1-threads
//! Try: cargo run -p chat -- -i localhost -p 2000 --nick alice
//! Prev: v0-processes
//! Next: v2-select
//! Diff base: none
//! Overload: refuse (beyond --max-conns a client is told `! server-full`, by its own threads)
//! Slow reader: kick (beyond --outbox, or after --write-timeout without progress)

use std::io::Read;
use std::net::Shutdown;
use std::process;
use std::sync::Arc;
use std::thread::{self, Builder};
use std::time::Instant;

use anyhow::Context;
use chat::server::ip;
use chat::{ClientId, Options, Room, Slow};
use common::report::Failed;
use common::sock::Backoff;
use lifecycle::Signals;
use parking_lot::{Condvar, Mutex, MutexGuard};
use socket2::Socket;

/// Bytes of address space; memory is what a thread touches of it. glibc keeps 40 MiB of dead threads' stacks for the next
/// ones, with the last 16 KiB of each still in memory: of large stacks that is less than of small ones.
const STACK: usize = 1024 * 1024;

/// What all threads share. Nobody waits for a client while `room` is locked: who waits there waits for memory only.
struct Server {
    options: Options,
    room: Mutex<Room>,
    /// Something has happened in the room. Nearly always it is for all, so all are woken, and each one looks.
    changed: Condvar,
}

fn main() -> Result<(), Failed> {
    let options =
        Options::parse("v1-threads", "Chat: a reader and a writer thread per client, the room behind a mutex");
    let signals = Signals::new()?;
    let room = Mutex::new(options.room(Slow::Kick)?);
    let listener = Arc::new(options.listen()?);
    // It lives as long as the process, and so may any thread.
    let server: &'static Server = Box::leak(Box::new(Server { options, room, changed: Condvar::new() }));
    let stopped = Arc::clone(&listener);
    Builder::new().spawn(move || server.wait_for_signals(&signals, &stopped)).context("clone")?;

    server.accept(&listener)?;

    let end = Instant::now() + server.options.limits.grace();
    let mut room = server.room.lock();
    while !room.is_done() && !server.changed.wait_until(&mut room, end).timed_out() {}
    server.options.log.cpu_time();
    Ok(())
}

impl Server {
    fn accept(&'static self, listener: &Socket) -> Result<(), Failed> {
        let mut backoff = Backoff::default();
        for id in 1.. {
            let accepted = listener.accept();
            let mut room = self.room.lock();
            // Meanwhile the kernel's backlog holds the others.
            self.changed.wait_while(&mut room, |room| !room.has_place() && !room.is_stopping());
            let (conn, peer) = match accepted {
                _ if room.is_stopping() => break,
                Ok(accepted) => accepted,
                Err(e) => {
                    drop(room);
                    backoff.sleep("accept", &e, &self.options.log)?;
                    continue;
                }
            };
            room.connect(id, ip(&peer), Instant::now());
            drop(room);
            // Not thread::spawn, which panics where the kernel has no thread to give.
            if let Err(e) = Builder::new().stack_size(STACK).spawn(move || self.serve(id, &conn)) {
                self.options.log.repeated("WARN", &format!("clone: {e}"));
                self.room.lock().remove(id, Instant::now());
            }
        }
        Ok(())
    }

    /// One client, two threads: who reads never waits for who writes.
    fn serve(&self, id: ClientId, conn: &Socket) {
        thread::scope(|scope| {
            if Builder::new().stack_size(STACK).spawn_scoped(scope, || self.read(id, conn)).is_ok() {
                self.write(id, conn);
            }
            let _ = conn.shutdown(Shutdown::Both); // ends a sleeping read
        });
        let mut room = self.room.lock();
        room.remove(id, Instant::now());
        self.wake(&mut room);
    }

    fn read(&self, id: ClientId, mut conn: &Socket) {
        let mut buffer = [0; 4096];
        loop {
            let received = conn.read(&mut buffer);
            let mut room = self.room.lock();
            room.received(id, &received, &buffer, Instant::now());
            self.wake(&mut room);
            if !received.is_ok_and(|n| n > 0) {
                return;
            }
            // The rate limit: who says too much is not read from, and TCP makes it wait.
            self.changed.wait_while(&mut room, |room| room.session(id).is_some_and(|session| session.is_held()));
        }
    }

    fn write(&self, id: ClientId, conn: &Socket) {
        let _ = conn.set_write_timeout(Some(self.options.limits.write_timeout()));
        let mut room = self.room.lock();
        loop {
            room.tick_one(id, Instant::now());
            self.wake(&mut room);
            let Some(session) = room.session_mut(id).filter(|session| !session.is_over()) else { return };
            if session.wants_write() {
                let bytes = session.pending().to_vec();
                // The room is unlocked meanwhile: only this thread waits for a slow reader.
                let sent = MutexGuard::unlocked(&mut room, || conn.send(&bytes));
                room.sent(id, &sent, Instant::now());
            } else if session.finish(Instant::now()) {
                let _ = conn.shutdown(Shutdown::Write);
            } else {
                let deadline = session.deadline();
                self.changed.wait_until(&mut room, deadline);
            }
        }
    }

    fn wake(&self, room: &mut Room) {
        if room.take_changed() {
            self.changed.notify_all();
        }
    }

    /// First signal: last words for all, and nobody new. Second signal: now.
    fn wait_for_signals(&self, signals: &Signals, listener: &Socket) {
        let _ = signals.wait();
        self.room.lock().shut_down(Instant::now());
        self.changed.notify_all();
        let _ = listener.shutdown(Shutdown::Read); // accept fails from now on
        let _ = signals.wait();
        process::exit(0);
    }
}

//! The event loop's state in the program `emfile`: greets its clients and keeps them connected.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::Socket;

use crate::Stop;

/// The key of the listener. The key of a client is its descriptor.
pub const LISTENER: u64 = u64::MAX;
/// The first pause after EMFILE; each further one is twice as long ...
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// ... up to this.
const LONGEST_PAUSE: Duration = Duration::from_millis(320);

/// A server with one listener.
#[derive(Debug)]
pub struct Server {
    /// `None` after [`quit`](Self::quit).
    pub listener: Option<Socket>,
    /// The clients that were greeted, by descriptor.
    pub conns: BTreeMap<u64, Socket>,
    /// A descriptor that the server can close when it needs one.
    pub spare: Option<File>,
    /// How many times accept has failed with EMFILE.
    pub failed: u64,
    /// How many times epoll_wait has returned events.
    pub wakeups: u64,
    epoll: Epoll,
    is_watching: bool,
    /// When to watch the listener again. `None`: when a client has left.
    resume_at: Option<Instant>,
    pause: Duration,
}

impl Server {
    /// A server that watches its listener.
    ///
    /// # Errors
    /// The call that failed.
    pub fn new(listener: Socket, edge_triggered: bool) -> Result<Server, Stop> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
        let edge = if edge_triggered { EpollFlags::EPOLLET } else { EpollFlags::empty() };
        let event = EpollEvent::new(EpollFlags::EPOLLIN | edge, LISTENER);
        epoll.add(&listener, event).context("epoll_ctl")?;
        Ok(Server {
            listener: Some(listener),
            conns: BTreeMap::new(),
            spare: None,
            failed: 0,
            wakeups: 0,
            epoll,
            is_watching: true,
            resume_at: None,
            pause: FIRST_PAUSE,
        })
    }

    /// Waits for events until `end`, or until the end of a pause. Returns the keys that are ready.
    ///
    /// # Errors
    /// The call that failed.
    pub fn wait(&mut self, end: Instant) -> Result<Vec<u64>, Stop> {
        if self.resume_at.is_some_and(|at| at <= Instant::now()) {
            self.watch_listener()?;
        }
        let wake_at = self.resume_at.map_or(end, |at| at.min(end));
        let left = wake_at.saturating_duration_since(Instant::now()).as_millis() as u16 + 1;
        let mut events = [EpollEvent::empty(); 16];
        let ready = match self.epoll.wait(&mut events, EpollTimeout::from(left)) {
            Err(Errno::EINTR) => 0,
            ready => ready.context("epoll_wait")?,
        };
        self.wakeups += u64::from(ready > 0);
        Ok(events.iter().take(ready).map(EpollEvent::data).collect())
    }

    /// Removes the listener from the interest list until a client leaves.
    ///
    /// # Errors
    /// The errors of epoll_ctl(2).
    pub fn unwatch_listener(&mut self) -> Result<(), Stop> {
        if let Some(listener) = &self.listener {
            self.epoll.delete(listener).context("epoll_ctl")?;
        }
        self.is_watching = false;
        Ok(())
    }

    /// Removes the listener from the interest list for a time that doubles with each call.
    ///
    /// # Errors
    /// The errors of epoll_ctl(2).
    pub fn pause_accept(&mut self) -> Result<(), Stop> {
        self.resume_at = Some(Instant::now() + self.pause);
        self.pause = LONGEST_PAUSE.min(self.pause * 2);
        self.unwatch_listener()
    }

    /// Adds the listener again, level-triggered: a connection in the queue is reported at once.
    fn watch_listener(&mut self) -> Result<(), Stop> {
        if let Some(listener) = &self.listener {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, LISTENER);
            self.epoll.add(listener, event).context("epoll_ctl")?;
        }
        (self.is_watching, self.resume_at) = (true, None);
        Ok(())
    }

    /// Greets a client and keeps the connection.
    ///
    /// # Errors
    /// The call that failed.
    pub fn greet(&mut self, conn: Socket) -> Result<(), Stop> {
        conn.set_nonblocking(true).context("fcntl O_NONBLOCK")?;
        let key = conn.as_raw_fd() as u64;
        self.epoll.add(&conn, EpollEvent::new(EpollFlags::EPOLLIN, key)).context("epoll_ctl")?;
        let _ = (&conn).write_all(b"hello\n");
        self.pause = FIRST_PAUSE;
        self.conns.insert(key, conn);
        Ok(())
    }

    /// Closes the connection of a client that has left: its descriptor is free.
    ///
    /// # Errors
    /// The errors of epoll_ctl(2).
    pub fn readable(&mut self, key: u64) -> Result<(), Stop> {
        let ended = |conn: &mut Socket| !matches!(conn.read(&mut [0; 64]), Ok(1..) | Err(_));
        if self.conns.get_mut(&key).is_some_and(ended) {
            self.conns.remove(&key);
            if !self.is_watching && self.resume_at.is_none() {
                self.watch_listener()?;
            }
        }
        Ok(())
    }

    /// Closes the listener and all connections, as the exit of the server does.
    pub fn quit(&mut self) {
        self.listener = None;
        self.conns.clear();
    }
}

/// Sends one line and closes the connection.
pub fn send_and_close(mut conn: Socket, line: &str) {
    let _ = conn.write_all(line.as_bytes());
}

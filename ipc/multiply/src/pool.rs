//! A pool of threads: clients wait in a queue for a worker, up to a limit. One thread more rejects
//! the clients over the limit. server06a-queue shows such a queue made by hand.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use anyhow::Context;
use common::report::Failed;
use lifecycle::shutdown;
use nix::sys::socket::{self, Shutdown};
use socket2::{SockAddr, Socket};

/// Clients that wait to be rejected. One more is closed without an error line.
const REJECTED: usize = 8;
/// A signal does not end a wait for a condition variable, so the shutdown timeout is checked in
/// this interval.
const INTERVAL: Duration = Duration::from_millis(20);

/// What to do with a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Serve it.
    Serve,
    /// Send `ERR busy`.
    Reject,
}

/// The queues of the workers.
#[derive(Debug)]
pub struct Pool {
    max_conns: usize,
    served: SyncSender<Client>,
    rejected: SyncSender<Client>,
    table: Arc<Table>,
}

impl Pool {
    /// Starts the workers. `serve` is one client from the accept to the close, with blocking calls.
    ///
    /// # Errors
    /// The kernel has no thread to give.
    pub fn start<S>(workers: u16, max_conns: u16, serve: S) -> Result<Self, Failed>
    where
        S: Fn(&mut Socket, &SockAddr, Action) + Send + Sync + 'static,
    {
        let (served, clients) = sync_channel(max_conns.into());
        let (rejected, clients_over_limit) = sync_channel(REJECTED);
        let (clients, over_limit) = (Arc::new(Mutex::new(clients)), Mutex::new(clients_over_limit));
        let serve = Arc::new(serve);
        let shared = Arc::clone(&serve);
        // Not thread::spawn, which panics if the kernel cannot create a thread.
        let reject = move || work(&over_limit, Action::Reject, &*shared);
        Builder::new().spawn(reject).context("clone")?;
        for _ in 0..workers {
            let (queue, serve) = (Arc::clone(&clients), Arc::clone(&serve));
            let worker = move || work(&queue, Action::Serve, &*serve);
            Builder::new().spawn(worker).context("clone")?;
        }
        Ok(Pool { max_conns: max_conns.into(), served, rejected, table: Arc::default() })
    }

    /// Puts a client into the queue. It does not block: the queue has room for all clients up to
    /// the limit.
    pub fn add(&self, conn: Socket, peer: SockAddr) {
        let entry = Entry::new(&self.table, &conn, self.max_conns);
        let queue = if entry.is_some() { &self.served } else { &self.rejected };
        let _ = queue.try_send(Client { _entry: entry, conn, peer });
    }

    /// Ends all sessions after a shutdown has been requested. First it ends reading: what has been
    /// received is still answered. When the shutdown timeout has passed, it ends writing too.
    pub fn end(self) {
        let mut open = lock(&self.table.open);
        shut_down(&open, Shutdown::Read);
        while !open.is_empty() && !shutdown::timeout_has_passed() {
            open = self.table.wait(open);
        }
        shut_down(&open, Shutdown::Both);
        // The workers get a moment for their log lines. The end of the process ends the others.
        if !open.is_empty() {
            drop(self.table.wait(open));
        }
    }
}

/// The life of a thread: one client at a time.
fn work(
    queue: &Mutex<Receiver<Client>>,
    action: Action,
    serve: &impl Fn(&mut Socket, &SockAddr, Action),
) {
    loop {
        // One idle worker sleeps in recv and holds the lock. The other idle workers wait for the
        // lock.
        let received = lock(queue).recv();
        let Ok(mut client) = received else { return };
        // A panic ends this session, and not the thread.
        let _ = catch_unwind(AssertUnwindSafe(|| serve(&mut client.conn, &client.peer, action)));
    }
}

/// A client in a queue or with a worker. The fields are dropped in this order, also after a panic:
/// first the table forgets the number of the descriptor, then the descriptor is closed.
#[derive(Debug)]
struct Client {
    _entry: Option<Entry>,
    conn: Socket,
    peer: SockAddr,
}

/// The descriptors of the clients that are not rejected.
#[derive(Debug, Default)]
struct Table {
    open: Mutex<BTreeSet<RawFd>>,
    closed: Condvar,
}

impl Table {
    /// Releases the lock, sleeps until a client has left or the interval has passed, locks again.
    fn wait<'a>(&self, open: MutexGuard<'a, BTreeSet<RawFd>>) -> MutexGuard<'a, BTreeSet<RawFd>> {
        self.closed.wait_timeout(open, INTERVAL).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// One descriptor in the table.
#[derive(Debug)]
struct Entry(Arc<Table>, RawFd);

impl Entry {
    /// None: the table has `most` entries already.
    fn new(table: &Arc<Table>, conn: &Socket, most: usize) -> Option<Self> {
        let mut open = lock(&table.open);
        let has_room = open.len() < most;
        (has_room && open.insert(conn.as_raw_fd()))
            .then(|| Entry(Arc::clone(table), conn.as_raw_fd()))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.0.open).remove(&self.1);
        self.0.closed.notify_all();
    }
}

/// While the table is locked no worker closes a connection, so each number is one of ours.
fn shut_down(open: &BTreeSet<RawFd>, how: Shutdown) {
    for fd in open {
        let _ = socket::shutdown(*fd, how);
    }
}

/// A thread that panicked with the lock held has left the data whole: each change is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

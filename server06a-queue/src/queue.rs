//! A bounded queue for the hand-over from the acceptor to the workers.

use std::collections::VecDeque;

use parking_lot::{Condvar, Mutex};
use socket2::{SockAddr, Socket};

/// The state, the lock that protects it, and the two conditions that threads wait for.
#[derive(Default)]
pub struct Queue {
    limit: usize,
    state: Mutex<State>,
    not_empty: Condvar,
    not_full: Condvar,
}

#[derive(Default)]
struct State {
    clients: VecDeque<(Socket, SockAddr)>,
    is_closed: bool,
}

impl Queue {
    /// An empty queue for at most `limit` clients.
    pub fn new(limit: u16) -> Self {
        Queue { limit: limit.into(), ..Queue::default() }
    }

    /// Appends a client. Sleeps while the queue is full: this stops the acceptor (back-pressure).
    pub fn push(&self, client: (Socket, SockAddr)) {
        let mut state = self.state.lock();
        // Releases the lock and sleeps in one step, so no notification is lost. Takes the lock
        // again before it returns.
        self.not_full.wait_while(&mut state, |state| state.clients.len() == self.limit);
        state.clients.push_back(client);
        // One client needs one worker: notify_all would also wake the other workers.
        self.not_empty.notify_one();
    }

    /// Removes the first client. Sleeps while the queue is empty. None: it is empty and closed.
    pub fn pop(&self) -> Option<(Socket, SockAddr)> {
        let mut state = self.state.lock();
        // wait_while is a loop: it checks the condition after each wake-up, because another worker
        // may have taken the client before this worker has the lock again.
        self.not_empty.wait_while(&mut state, |state| state.clients.is_empty() && !state.is_closed);
        self.not_full.notify_one();
        state.clients.pop_front()
    }

    /// Lets the workers end when the queue is empty. Without this call they would sleep forever.
    pub fn close(&self) {
        self.state.lock().is_closed = true;
        self.not_empty.notify_all();
    }
}

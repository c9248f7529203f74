//! A bounded queue between threads.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A lock, and two conditions to wait for.
pub struct Queue<T> {
    most: usize,
    line: Mutex<Line<T>>,
    not_empty: Condvar,
    not_full: Condvar,
}

struct Line<T> {
    waiting: VecDeque<T>,
    closed: bool,
}

impl<T> Queue<T> {
    pub fn new(most: usize) -> Self {
        Queue {
            most,
            line: Mutex::new(Line { waiting: VecDeque::new(), closed: false }),
            not_empty: Condvar::new(),
            not_full: Condvar::new(),
        }
    }

    /// Appends a client, or gives it back where there has been no room for so long.
    pub fn push(&self, client: T, patience: Duration) -> Option<T> {
        let is_full = |line: &mut Line<T>| line.waiting.len() >= self.most;
        let waited = self.not_full.wait_timeout_while(lock(&self.line), patience, is_full);
        let (mut line, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return Some(client);
        }
        line.waiting.push_back(client);
        // One client, one worker: the others sleep on.
        self.not_empty.notify_one();
        None
    }

    /// Takes the first client; waits for one, or for the end.
    pub fn pop(&self) -> Option<T> {
        let mut line = lock(&self.line);
        // A loop: a sleeper may wake without a reason, or find that another worker was quicker.
        loop {
            if let Some(client) = line.waiting.pop_front() {
                self.not_full.notify_one();
                return Some(client);
            }
            if line.closed {
                return None;
            }
            // Gives the lock away and sleeps in one step: no push can slip in between.
            line = self.not_empty.wait(line).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// No more will come: who waits in `pop` is told, when the queue is empty.
    pub fn close(&self) {
        lock(&self.line).closed = true;
        self.not_empty.notify_all();
    }
}

/// A panic that held the lock has left what it guards whole: each change is one step.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

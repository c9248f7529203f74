//! A counting semaphore that limits the number of threads.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

/// A fixed number of permits. A thread holds one permit while it runs.
pub struct Semaphore(Arc<State>);

struct State {
    permits: usize,
    free: Mutex<usize>,
    released: Condvar,
}

/// One permit. Dropping it releases it.
pub struct Permit(Arc<State>);

impl Semaphore {
    /// Creates a semaphore with all permits free.
    pub fn new(permits: usize) -> Self {
        Semaphore(Arc::new(State { permits, free: Mutex::new(permits), released: Condvar::new() }))
    }

    /// Takes a permit. Sleeps until one is free.
    pub fn acquire(&self) -> Permit {
        let mut free = self.0.free.lock();
        self.0.released.wait_while(&mut free, |free| *free == 0);
        *free -= 1;
        Permit(Arc::clone(&self.0))
    }

    /// Sleeps until all permits are free.
    pub fn wait_for_all(&self) {
        self.0.released.wait_while(&mut self.0.free.lock(), |free| *free < self.0.permits);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        self.0.released.notify_all();
    }
}

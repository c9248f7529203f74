//! A counting semaphore that limits the number of threads.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

/// A fixed number of permits. A thread holds one permit while it runs.
#[derive(Debug)]
pub struct Semaphore {
    permits: usize,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    free: Mutex<usize>,
    released: Condvar,
}

/// One permit. Dropping it releases it.
#[derive(Debug)]
pub struct Permit(Arc<State>);

impl Semaphore {
    /// Creates a semaphore with all permits free.
    pub fn new(permits: usize) -> Self {
        Semaphore { permits, state: Arc::new(State { free: Mutex::new(permits), released: Condvar::new() }) }
    }

    /// Takes a permit. Sleeps until one is free.
    pub fn acquire(&self) -> Permit {
        let mut free = self.state.free.lock();
        self.state.released.wait_while(&mut free, |free| *free == 0);
        *free -= 1;
        Permit(Arc::clone(&self.state))
    }

    /// Sleeps until all permits are free.
    pub fn wait_for_all(&self) {
        self.state.released.wait_while(&mut self.state.free.lock(), |free| *free < self.permits);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        self.0.released.notify_all();
    }
}

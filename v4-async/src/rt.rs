//! What `async` needs in order to run: an executor that polls tasks, a timer, and a reactor that
//! waits in epoll.
//!
//! One round trip, from a system call to its result. The executor polls a task. The task's future
//! reaches [`AsyncFd::async_io`], and the system call fails with EAGAIN. The future stores its
//! waker with the descriptor, and returns `Pending`. If no other task is ready, the executor
//! sleeps in epoll_wait. The kernel reports the descriptor, and the reactor calls the waker, which
//! puts the task into the ready queue. The executor polls the task again, and this time the system
//! call succeeds.
//!
//! Everything runs on one thread, and events are taken in epoll_wait only. Therefore no event is
//! lost between a call that fails with EAGAIN and the storing of the waker.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, atomic::AtomicBool, atomic::AtomicU64, atomic::Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Token, unix::SourceFd};
use parking_lot::Mutex;

use crate::trace::{self, Step};

/// A number for a task, a timer entry or a descriptor. No number is used twice.
fn next_id() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, SeqCst) + 1
}

// ---------------------------------------------------------------- Task

type ReadyQueue = Mutex<VecDeque<u64>>;

/// A future that the executor runs to its end. tokio calls this a task too; `tokio::spawn` makes
/// it.
struct Task {
    future: RefCell<Pin<Box<dyn Future<Output = ()>>>>,
    waker: Arc<TaskWaker>,
}

// ---------------------------------------------------------------- Waker

/// What a [`Waker`] contains. It puts its task into the ready queue, unless the task is there
/// already: ten wakes cause one poll. tokio calls this the task's `Header`, and the queue its run
/// queue. The standard library requires that a waker works on any thread, hence the atomic and the
/// mutex.
struct TaskWaker {
    task: u64,
    is_queued: AtomicBool,
    ready: Arc<ReadyQueue>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        if !self.is_queued.swap(true, SeqCst) {
            trace::step(Step::Wake { task: self.task });
            self.ready.lock().push_back(self.task);
        }
    }
}

// ---------------------------------------------------------------- Executor

/// Polls the tasks that are ready, and sleeps in the reactor while no task is ready. tokio calls
/// this the `current_thread` scheduler. Its other scheduler has several threads, which steal tasks
/// from each other.
pub struct Executor {
    ready: Arc<ReadyQueue>,
    tasks: RefCell<HashMap<u64, Rc<Task>>>,
    timer: Timer,
    reactor: Reactor,
}

impl Executor {
    /// An executor that lives as long as the process, so that every task can use it.
    pub fn new() -> io::Result<&'static Executor> {
        let reactor =
            Reactor { poll: RefCell::new(mio::Poll::new()?), sources: RefCell::default() };
        let (ready, tasks, timer) = (Arc::default(), RefCell::default(), Timer::default());
        Ok(Box::leak(Box::new(Executor { ready, tasks, timer, reactor })))
    }

    /// Makes a task of a future. It is polled for the first time in the next round.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        let (task, ready) = (next_id(), Arc::clone(&self.ready));
        trace::step(Step::Spawn { task });
        let waker = Arc::new(TaskWaker { task, is_queued: AtomicBool::new(false), ready });
        Arc::clone(&waker).wake();
        let task_state = Task { future: RefCell::new(Box::pin(future)), waker };
        self.tasks.borrow_mut().insert(task, Rc::new(task_state));
    }

    /// Runs all tasks until this future is done. Then the other tasks are dropped, with everything
    /// that they own.
    pub fn block_on<T: 'static>(&self, main: impl Future<Output = T> + 'static) -> io::Result<T> {
        let result = Rc::new(Cell::new(None));
        let slot = Rc::clone(&result);
        self.spawn(async move { slot.set(Some(main.await)) });
        loop {
            // epoll_wait costs time, and without it no new event is seen: 8 rounds, then one call.
            // tokio calls this number the `event_interval`, and counts polls.
            for _ in 0..8 {
                let round = std::mem::take(&mut *self.ready.lock());
                round.into_iter().for_each(|task| self.poll(task));
            }
            if let Some(value) = result.take() {
                drop(self.tasks.take());
                return Ok(value);
            }
            let is_idle = self.ready.lock().is_empty();
            self.reactor.wait(if is_idle { self.timeout() } else { Some(Duration::ZERO) })?;
            while self.timeout() == Some(Duration::ZERO) {
                self.timer.borrow_mut().pop_first().into_iter().for_each(|(_, waker)| waker.wake());
            }
        }
    }

    /// Polls one task once.
    fn poll(&self, id: u64) {
        let Some(task) = self.tasks.borrow().get(&id).cloned() else { return };
        // Before the poll: a wake during the poll must queue the task again.
        task.waker.is_queued.store(false, SeqCst);
        trace::step(Step::Poll { task: id });
        let waker = Waker::from(Arc::clone(&task.waker));
        let mut context = Context::from_waker(&waker);
        let is_done = task.future.borrow_mut().as_mut().poll(&mut context).is_ready();
        trace::step(if is_done { Step::Done { task: id } } else { Step::Pending { task: id } });
        // The end of this function drops the task, when the map is not borrowed any more.
        let _ended = is_done.then(|| self.tasks.borrow_mut().remove(&id));
    }
}

/// Moves the calling task to the end of the ready queue: the other ready tasks run first. tokio
/// calls this `task::yield_now`.
pub async fn yield_now() {
    let mut has_yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        trace::step(Step::Yield { task: trace::current() });
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

// ---------------------------------------------------------------- Timer

/// Wakers, sorted by the time at which they are called. tokio calls this the time driver, and keeps
/// the wakers in a timer wheel.
type Timer = RefCell<BTreeMap<(Instant, u64), Waker>>;

/// An entry in the timer. Dropping it removes it. tokio calls this `Sleep`.
pub struct Entry<'a>(&'a Timer, (Instant, u64));

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.0.borrow_mut().remove(&self.1);
    }
}

impl Executor {
    /// The output of the future, or None if the future is not done at `at`. Then the future is
    /// dropped, which cancels it. tokio calls this `time::timeout_at`. The caller keeps the entry:
    /// if its task waits until the same time again, the timer does not change.
    pub async fn timeout_at<'a, F: Future>(
        &'a self,
        entry: &mut Option<Entry<'a>>,
        at: Instant,
        future: F,
    ) -> Option<F::Output> {
        let mut future = pin!(future);
        poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending if Instant::now() >= at => Poll::Ready(None),
            Poll::Pending => {
                if entry.as_ref().is_none_or(|entry| entry.1.0 != at) {
                    let Entry(timer, key) = entry.insert(Entry(&self.timer, (at, next_id())));
                    timer.borrow_mut().insert(*key, context.waker().clone());
                }
                Poll::Pending
            }
        })
        .await
    }

    /// The time until the first waker is due.
    fn timeout(&self) -> Option<Duration> {
        self.timer.borrow().keys().next().map(|(t, _)| t.saturating_duration_since(Instant::now()))
    }
}

// ---------------------------------------------------------------- Reactor

/// Waits for all descriptors in one epoll_wait, and wakes the tasks of those that are ready. tokio
/// calls this the I/O driver.
struct Reactor {
    poll: RefCell<mio::Poll>,
    sources: RefCell<HashMap<Token, Rc<Source>>>,
}

/// What the reactor knows about one descriptor. tokio calls this `ScheduledIo`.
#[derive(Default)]
struct Source {
    /// The task that waits until it can read. An event for the other task must not wake it.
    reader: Cell<Option<Waker>>,
    /// The task that waits until it can write.
    writer: Cell<Option<Waker>>,
    /// There is nothing to read before the next event.
    is_empty: Cell<bool>,
    /// A short read does not mean that the socket is empty, see [`AsyncFd::short_read`].
    is_special: Cell<bool>,
}

impl Reactor {
    /// Sleeps until a descriptor is ready, or until the timeout is over.
    fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        trace::step(Step::Sleep { ms: timeout.map(|time| time.as_millis()) });
        let mut events = Events::with_capacity(256);
        let polled = self.poll.borrow_mut().poll(&mut events, timeout);
        polled.or_else(|e| if e.kind() == ErrorKind::Interrupted { Ok(()) } else { Err(e) })?;
        for event in &events {
            let Some(source) = self.sources.borrow().get(&event.token()).cloned() else { continue };
            let is_special = event.is_error() || event.is_read_closed() || event.is_priority();
            if is_special || event.is_readable() {
                source.is_special.set(is_special);
                source.is_empty.set(false);
                source.reader.take().into_iter().for_each(Waker::wake);
            }
            if is_special || event.is_writable() {
                source.writer.take().into_iter().for_each(Waker::wake);
            }
        }
        Ok(())
    }
}

// ---------------------------------------------------------------- AsyncFd

/// A descriptor whose system calls a task can await: one task for reading and one for writing.
/// tokio calls this `AsyncFd` too, and each socket of tokio contains a part that does the same.
pub struct AsyncFd<T: AsFd> {
    pub io: T,
    reactor: &'static Reactor,
    token: Token,
    source: Rc<Source>,
}

impl<T: AsFd> AsyncFd<T> {
    /// Adds the descriptor to epoll's interest list: edge-triggered and for both directions, so
    /// that nothing has to be changed later.
    pub fn new(executor: &'static Executor, io: T) -> io::Result<Self> {
        socket2::SockRef::from(&io).set_nonblocking(true)?;
        let (fd, reactor) = (io.as_fd().as_raw_fd(), &executor.reactor);
        let (token, source) = (Token(next_id() as usize), Rc::<Source>::default());
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        reactor.poll.borrow().registry().register(&mut SourceFd(&fd), token, interest)?;
        reactor.sources.borrow_mut().insert(token, Rc::clone(&source));
        Ok(AsyncFd { io, reactor, token, source })
    }

    /// Makes a system call as soon as it does not fail with EAGAIN. tokio calls this
    /// `AsyncFd::async_io`.
    pub async fn async_io<R, F>(&self, interest: Interest, mut call: F) -> io::Result<R>
    where
        F: FnMut(&T) -> io::Result<R>,
    {
        let (source, reads) = (&self.source, interest.is_readable());
        poll_fn(|context| {
            while !(reads && source.is_empty.get()) {
                match call(&self.io) {
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    outcome => return Poll::Ready(outcome),
                }
            }
            trace::step(Step::Park { task: trace::current(), fd: self.io.as_fd().as_raw_fd() });
            let waker = if reads { &source.reader } else { &source.writer };
            waker.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// After a read that did not fill its buffer the socket is empty (epoll(7)). So the next read
    /// waits for an event first, and the call that would fail with EAGAIN is saved. Two cases are
    /// special: the end of file may be reported already, and recv stops before an urgent byte.
    /// tokio calls this `clear_ready`.
    pub fn short_read(&self, is_short: bool) {
        self.source.is_empty.set(is_short && !self.source.is_special.get());
    }
}

impl<T: AsFd> Drop for AsyncFd<T> {
    /// The close of the descriptor, which follows, also removes it from epoll's interest list.
    fn drop(&mut self) {
        self.reactor.sources.borrow_mut().remove(&self.token);
    }
}

// ---------------------------------------------------------------- Notify

/// Wakes all tasks that wait for it: a condition variable for tasks. If no task waits, a
/// notification has no effect, so a task checks its condition first. tokio calls this `Notify` too,
/// and `notify_all` is its `notify_waiters`.
#[derive(Default)]
pub struct Notify {
    count: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Notify {
    pub fn notify_all(&self) {
        self.count.set(self.count.get() + 1);
        self.waiting.borrow_mut().drain(..).for_each(Waker::wake);
    }

    /// Waits for the next notification.
    pub async fn notified(&self) {
        let count = self.count.get();
        poll_fn(|context| {
            if self.count.get() != count {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
#[path = "rt/tests.rs"]
mod tests;

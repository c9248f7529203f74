//! What `async` needs in order to run: an executor that polls tasks, a timer, and a reactor that waits
//! in epoll.
//!
//! One round trip, from a system call to its result. The executor polls a task. The task's future
//! reaches [`AsyncFd::read`], and the system call fails with EAGAIN. The future stores its waker with
//! the descriptor, and returns `Pending`. If no other task is ready, the executor sleeps in epoll_wait.
//! The kernel reports the descriptor, and the reactor calls the waker, which puts the task into the
//! ready queue. The executor polls the task again, and this time the system call succeeds.
//!
//! Everything runs on one thread, and events are taken in epoll_wait only. Therefore no event is lost
//! between a call that fails with EAGAIN and the storing of the waker.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::{Future, pending, poll_fn};
use std::io::{self, ErrorKind};
use std::mem;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Token};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use parking_lot::Mutex;

use crate::trace::{self, Step};

/// A number for a task, a timer entry or a descriptor. No number is used twice.
fn next_id() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, SeqCst) + 1
}

// ---------------------------------------------------------------- Task

type TaskId = u64;
type ReadyQueue = Mutex<VecDeque<TaskId>>;

/// A future that the executor runs to its end. tokio calls this a task too; `tokio::spawn` makes it.
struct Task {
    future: RefCell<Pin<Box<dyn Future<Output = ()>>>>,
    waker: Arc<TaskWaker>,
}

// ---------------------------------------------------------------- Waker

/// What a [`Waker`] contains. It puts its task into the ready queue, unless the task is there already:
/// ten wakes cause one poll. tokio calls this the task's `Header`, and the queue its run queue. The
/// standard library requires that a waker works on any thread, hence the atomic and the mutex.
struct TaskWaker {
    task: TaskId,
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

/// How often the executor empties the ready queue between two calls of epoll_wait. A call costs time,
/// and without a call no new event is seen. tokio calls this the `event_interval`; it is 61 polls.
const ROUNDS: u32 = 8;

/// Polls the tasks that are ready, and sleeps in the reactor while no task is ready. tokio calls this
/// the `current_thread` scheduler. Its other scheduler has several threads, which steal tasks from each
/// other.
pub struct Executor {
    ready: Arc<ReadyQueue>,
    tasks: RefCell<HashMap<TaskId, Rc<Task>>>,
    timer: Timer,
    reactor: Reactor,
}

impl Executor {
    /// An executor that lives as long as the process, so that every task can use it.
    pub fn new() -> io::Result<&'static Executor> {
        let (ready, tasks, timer) = (Arc::default(), RefCell::default(), Timer::default());
        Ok(Box::leak(Box::new(Executor { ready, tasks, timer, reactor: Reactor::new()? })))
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

    /// Runs all tasks until this future is done. Then the other tasks are dropped, with everything that
    /// they own.
    pub fn block_on<T: 'static>(&self, main: impl Future<Output = T> + 'static) -> io::Result<T> {
        let result = Rc::new(Cell::new(None));
        let slot = Rc::clone(&result);
        self.spawn(async move { slot.set(Some(main.await)) });
        loop {
            for _ in 0..ROUNDS {
                let round = mem::take(&mut *self.ready.lock());
                round.into_iter().for_each(|task| self.poll(task));
            }
            if let Some(value) = result.take() {
                drop(self.tasks.take());
                return Ok(value);
            }
            let is_idle = self.ready.lock().is_empty();
            self.reactor.wait(if is_idle { self.timer.timeout() } else { Some(Duration::ZERO) })?;
            self.timer.wake_expired();
        }
    }

    /// Polls one task once.
    fn poll(&self, id: TaskId) {
        let Some(task) = self.tasks.borrow().get(&id).cloned() else { return };
        // Before the poll: a wake during the poll must queue the task again.
        task.waker.is_queued.store(false, SeqCst);
        trace::step(Step::Poll { task: id });
        let waker = Waker::from(Arc::clone(&task.waker));
        match task.future.borrow_mut().as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => trace::step(Step::Pending { task: id }),
            Poll::Ready(()) => {
                trace::step(Step::Done { task: id });
                self.tasks.borrow_mut().remove(&id);
            }
        }
    }

    /// A timer for the calling task.
    pub fn sleep(&'static self) -> Sleep {
        Sleep { timer: &self.timer, entry: None }
    }

    /// Waits until this time. tokio calls this `time::sleep_until`.
    pub async fn sleep_until(&'static self, at: Instant) {
        self.sleep().timeout_at(at, pending::<()>()).await;
    }
}

/// Moves the calling task to the end of the ready queue: the other ready tasks run first. tokio calls
/// this `task::yield_now`.
pub async fn yield_now() {
    let mut has_yielded = false;
    poll_fn(|context| {
        if mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        trace::step(Step::Yield { task: trace::current() });
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

// ---------------------------------------------------------------- Timer

/// Wakers, sorted by the time at which they are called. tokio calls this the time driver, and keeps the
/// wakers in a timer wheel.
#[derive(Default)]
struct Timer {
    wakers: RefCell<BTreeMap<(Instant, u64), Waker>>,
}

impl Timer {
    /// The time until the first waker is due.
    fn timeout(&self) -> Option<Duration> {
        let first = self.wakers.borrow().keys().next().map(|(at, _)| *at);
        first.map(|at| at.saturating_duration_since(Instant::now()))
    }

    fn wake_expired(&self) {
        while self.timeout() == Some(Duration::ZERO) {
            let first = self.wakers.borrow_mut().pop_first();
            first.into_iter().for_each(|(_, waker)| waker.wake());
        }
    }
}

/// An entry in the timer. tokio calls this `time::Sleep`. The task uses it again for its next wait: if
/// the time is the same, the entry stays where it is.
pub struct Sleep {
    timer: &'static Timer,
    entry: Option<(Instant, u64)>,
}

impl Sleep {
    /// The output of the future, or None if the future is not done at `at`. Then the future is dropped,
    /// which cancels it. tokio calls this `time::timeout_at`.
    pub async fn timeout_at<F: Future>(&mut self, at: Instant, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending if Instant::now() >= at => Poll::Ready(None),
            Poll::Pending => {
                if self.entry.is_none_or(|(old, _)| old != at) {
                    self.clear();
                    let entry = *self.entry.insert((at, next_id()));
                    self.timer.wakers.borrow_mut().insert(entry, context.waker().clone());
                }
                Poll::Pending
            }
        })
        .await
    }

    fn clear(&mut self) {
        self.entry.take().iter().for_each(|entry| _ = self.timer.wakers.borrow_mut().remove(entry));
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.clear();
    }
}

// ---------------------------------------------------------------- Reactor

/// Waits for all descriptors in one epoll_wait, and wakes the tasks of those that are ready. tokio calls
/// this the I/O driver.
struct Reactor {
    poll: RefCell<(mio::Poll, Events)>,
    sources: RefCell<HashMap<Token, Rc<Source>>>,
}

/// What the reactor knows about one descriptor. tokio calls this `ScheduledIo`.
struct Source {
    read: Direction,
    write: Direction,
    /// A short read does not mean that the socket is empty, see [`AsyncFd::short_read`].
    is_special: Cell<bool>,
}

/// Reading or writing. Each has its own waker, because two tasks wait: an event for one of them must
/// not wake the other. With edge triggering the kernel reports once that a call may succeed, so
/// `is_ready` stays true until EAGAIN. It is true at first: the first call finds out.
struct Direction {
    is_ready: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Direction {
    fn new() -> Direction {
        Direction { is_ready: Cell::new(true), waker: Cell::default() }
    }

    fn wake(&self) {
        self.is_ready.set(true);
        self.waker.take().into_iter().for_each(Waker::wake);
    }
}

impl Reactor {
    fn new() -> io::Result<Reactor> {
        let poll = RefCell::new((mio::Poll::new()?, Events::with_capacity(256)));
        Ok(Reactor { poll, sources: RefCell::default() })
    }

    /// Sleeps until a descriptor is ready, or until the timeout is over.
    fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        trace::step(Step::Sleep { ms: timeout.map(|time| time.as_millis()) });
        let (poll, events) = &mut *self.poll.borrow_mut();
        match poll.poll(events, timeout) {
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(()),
            outcome => outcome?,
        }
        let sources = self.sources.borrow();
        for event in events.iter() {
            let Some(source) = sources.get(&event.token()) else { continue };
            let (is_error, is_eof) = (event.is_error(), event.is_read_closed());
            if is_error || is_eof || event.is_priority() {
                source.is_special.set(true);
            }
            if is_error || is_eof || event.is_readable() {
                source.read.wake();
            }
            if is_error || event.is_write_closed() || event.is_writable() {
                source.write.wake();
            }
        }
        Ok(())
    }
}

// ---------------------------------------------------------------- AsyncFd

/// A descriptor whose system calls a task can await: one task for reading and one for writing. tokio
/// calls this `AsyncFd` too, and each socket of tokio contains a part that does the same.
pub struct AsyncFd<T: AsFd> {
    pub io: T,
    reactor: &'static Reactor,
    token: Token,
    source: Rc<Source>,
}

impl<T: AsFd> AsyncFd<T> {
    /// Adds the descriptor to epoll's interest list, edge-triggered and for both directions, so that
    /// nothing has to be changed later.
    pub fn new(executor: &'static Executor, io: T) -> io::Result<Self> {
        fcntl(&io, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let (reactor, token) = (&executor.reactor, Token(next_id() as usize));
        let (read, write) = (Direction::new(), Direction::new());
        let source = Rc::new(Source { read, write, is_special: Cell::new(false) });
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        let fd = io.as_fd().as_raw_fd();
        reactor.poll.borrow().0.registry().register(&mut SourceFd(&fd), token, interest)?;
        reactor.sources.borrow_mut().insert(token, Rc::clone(&source));
        Ok(AsyncFd { io, reactor, token, source })
    }

    /// Makes a call that reads, as soon as it does not fail with EAGAIN. tokio calls this
    /// `AsyncFd::async_io`, with `Interest::READABLE`.
    pub async fn read<R>(&self, call: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        self.retry(&self.source.read, call).await
    }

    /// The same for a call that writes.
    pub async fn write<R>(&self, call: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        self.retry(&self.source.write, call).await
    }

    async fn retry<R>(
        &self,
        direction: &Direction,
        mut call: impl FnMut(&T) -> io::Result<R>,
    ) -> io::Result<R> {
        poll_fn(|context| {
            while direction.is_ready.get() {
                match call(&self.io) {
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) if e.kind() == ErrorKind::WouldBlock => direction.is_ready.set(false),
                    outcome => return Poll::Ready(outcome),
                }
            }
            trace::step(Step::Park { task: trace::current(), fd: self.io.as_fd().as_raw_fd() });
            direction.waker.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// After a read that did not fill its buffer the socket is empty (epoll(7)). So the next read waits
    /// for an event first, and the call that would fail with EAGAIN is saved. Two cases are special: the
    /// end of file, which may be reported already, and an urgent byte, before which recv stops. tokio
    /// calls this `clear_ready`.
    pub fn short_read(&self, is_short: bool) {
        self.source.read.is_ready.set(!is_short || self.source.is_special.get());
    }
}

impl<T: AsFd> Drop for AsyncFd<T> {
    fn drop(&mut self) {
        self.reactor.sources.borrow_mut().remove(&self.token);
        // Before the close: epoll finds the entry by the number, and the next descriptor may get it.
        let fd = self.io.as_fd().as_raw_fd();
        let _ = self.reactor.poll.borrow().0.registry().deregister(&mut SourceFd(&fd));
    }
}

// ---------------------------------------------------------------- Notify

/// Wakes all tasks that wait for it: a condition variable for tasks. If no task waits, a notification
/// has no effect, so a task checks its condition first. tokio calls this `Notify` too, and `notify_all`
/// is its `notify_waiters`.
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

//! What `async` needs in order to run: an executor that polls tasks, a timer, and a reactor that waits in epoll.
//!
//! One round trip, from a system call to its result. The executor polls a task. The task's future reaches
//! [`AsyncFd::async_io`], and the system call fails with EAGAIN. The future stores its waker in the descriptor's [`Source`]
//! and returns `Pending`. If no other task is ready, the executor sleeps in epoll_wait. The kernel reports the descriptor,
//! and the reactor calls the waker, which puts the task into the ready queue. The executor polls the task again, and this
//! time the system call succeeds.
//!
//! Everything runs on one thread. Therefore no event is lost between a call that fails with EAGAIN and the storing of the
//! waker: events are taken in epoll_wait only.

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

pub use mio::Interest;
use mio::unix::SourceFd;
use mio::{Events, Token};
use parking_lot::Mutex;

use crate::trace::{self, Step};

/// How often the executor empties the ready queue between two calls of epoll_wait. Each call costs time, but an event has
/// to wait for the next one.
const ROUNDS: u32 = 8;
/// Events that one epoll_wait returns at most. The next call returns the others.
const EVENTS: usize = 256;

/// A number for a task, a timer or a descriptor. No number is used twice.
fn next_id() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, SeqCst) + 1
}

// ---------------------------------------------------------------- Task

type TaskId = u64;
type ReadyQueue = Mutex<VecDeque<TaskId>>;

/// A future that the executor runs to its end, and its waker. tokio calls this a task too, and `tokio::spawn` makes it.
struct Task {
    future: RefCell<Pin<Box<dyn Future<Output = ()>>>>,
    inner: Arc<TaskWaker>,
    waker: Waker,
}

// ---------------------------------------------------------------- Waker

/// What is behind a [`Waker`]: it puts its task into the ready queue, unless the task is there already. tokio calls this the
/// task's `Header`, and its ready queue the run queue. A waker may be sent to another thread, hence the atomic and the mutex.
struct TaskWaker {
    task: TaskId,
    is_queued: AtomicBool,
    ready: Arc<ReadyQueue>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_queued.swap(true, SeqCst) {
            trace::step(Step::Wake { task: self.task });
            self.ready.lock().push_back(self.task);
        }
    }
}

// ---------------------------------------------------------------- Executor

/// Polls the tasks that are ready, and sleeps in the reactor while no task is. tokio calls this the `current_thread`
/// scheduler; its default scheduler has several threads that steal tasks from each other.
pub struct Executor {
    ready: Arc<ReadyQueue>,
    tasks: RefCell<HashMap<TaskId, Rc<Task>>>,
    reactor: Reactor,
    timer: Timer,
}

impl Executor {
    /// An executor that lives as long as the process, so that every task can use it.
    pub fn new() -> io::Result<&'static Executor> {
        let (ready, tasks, timer) = (Arc::default(), RefCell::default(), Timer::default());
        Ok(Box::leak(Box::new(Executor { ready, tasks, reactor: Reactor::new()?, timer })))
    }

    /// Makes a task of a future. The task is polled for the first time in the next round.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        let (task, ready) = (next_id(), Arc::clone(&self.ready));
        trace::step(Step::Spawn { task });
        let inner = Arc::new(TaskWaker { task, is_queued: AtomicBool::new(false), ready });
        let (future, waker) =
            (RefCell::new(Box::pin(future) as _), Waker::from(Arc::clone(&inner)));
        inner.wake_by_ref();
        self.tasks.borrow_mut().insert(task, Rc::new(Task { future, inner, waker }));
    }

    /// Runs all tasks until this future is done. Then the other tasks are dropped, with everything that they own.
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
        task.inner.is_queued.store(false, SeqCst);
        trace::step(Step::Poll { task: id });
        let outcome = task.future.borrow_mut().as_mut().poll(&mut Context::from_waker(&task.waker));
        if outcome.is_ready() {
            trace::step(Step::Done { task: id });
            self.tasks.borrow_mut().remove(&id);
        } else {
            trace::step(Step::Pending { task: id });
        }
    }

    /// A timer for one task. It can be used again and again.
    pub fn sleep(&'static self) -> Sleep {
        Sleep { timer: &self.timer, id: next_id(), at: Instant::now(), entry: None }
    }

    /// Ends at this time.
    pub async fn sleep_until(&'static self, at: Instant) {
        self.sleep().timeout_at(at, pending::<()>()).await;
    }
}

/// Moves the current task to the end of the ready queue, so that the other ready tasks run first. tokio calls this
/// `task::yield_now`.
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

/// Wakers, sorted by the time at which they are called. tokio calls this the time driver; it keeps them in a timer wheel.
#[derive(Default)]
struct Timer {
    wakers: RefCell<BTreeMap<(Instant, u64), Waker>>,
}

impl Timer {
    /// The time until the first waker is due.
    fn timeout(&self) -> Option<Duration> {
        self.wakers
            .borrow()
            .keys()
            .next()
            .map(|(at, _)| at.saturating_duration_since(Instant::now()))
    }

    fn wake_expired(&self) {
        if self.timeout() == Some(Duration::ZERO) {
            let later = self.wakers.borrow_mut().split_off(&(Instant::now(), u64::MAX));
            self.wakers.replace(later).into_values().for_each(Waker::wake);
        }
    }
}

/// A future that is done at a time. tokio calls this `time::Sleep`. An entry of the timer costs more than a delivery, so the
/// entry stays while the task waits for the same time again.
pub struct Sleep {
    timer: &'static Timer,
    id: u64,
    at: Instant,
    /// The time of its entry in the timer.
    entry: Option<Instant>,
}

impl Sleep {
    /// The output of the future, or None if that takes longer than until `at`. The future is dropped then: dropping a future
    /// cancels it. tokio calls this `time::timeout_at`.
    pub async fn timeout_at<F: Future>(&mut self, at: Instant, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        self.at = at;
        poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending => Pin::new(&mut *self).poll(context).map(|()| None),
        })
        .await
    }

    fn set_entry(&mut self, entry: Option<(Instant, Waker)>) {
        let mut wakers = self.timer.wakers.borrow_mut();
        self.entry.iter().for_each(|old| _ = wakers.remove(&(*old, self.id)));
        self.entry = entry.map(|(at, waker)| {
            wakers.insert((at, self.id), waker);
            at
        });
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<()> {
        if Instant::now() >= self.at {
            return Poll::Ready(());
        }
        if self.entry != Some(self.at) {
            let entry = (self.at, context.waker().clone());
            self.set_entry(Some(entry));
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.set_entry(None);
    }
}

// ---------------------------------------------------------------- Reactor

/// Waits for all descriptors in one epoll_wait, and wakes the tasks of those that are ready. tokio calls this the I/O driver.
struct Reactor {
    poll: RefCell<(mio::Poll, Events)>,
    sources: RefCell<HashMap<Token, Rc<Source>>>,
}

/// What the reactor knows about one descriptor. tokio calls this `ScheduledIo`.
#[derive(Default)]
struct Source {
    /// The task that waits until the descriptor is readable, and the task that waits until it is writable. They are
    /// different tasks: an event for one must not wake the other.
    wakers: [Cell<Option<Waker>>; 2],
    /// The next call may succeed. With edge triggering the kernel reports this once, and it stays true until EAGAIN.
    is_ready: [Cell<bool>; 2],
    /// A short read does not prove that the socket is empty, see [`AsyncFd::clear_readable`].
    is_special: Cell<bool>,
}

impl Reactor {
    fn new() -> io::Result<Reactor> {
        let poll = RefCell::new((mio::Poll::new()?, Events::with_capacity(EVENTS)));
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
        for event in &*events {
            let sources = self.sources.borrow();
            let Some(source) = sources.get(&event.token()) else { continue };
            let is_broken = event.is_error();
            if event.is_read_closed() || event.is_priority() || is_broken {
                source.is_special.set(true);
            }
            let readable = event.is_readable() || event.is_read_closed() || is_broken;
            let writable = event.is_writable() || event.is_write_closed() || is_broken;
            for ((ready, is_ready), waker) in
                [readable, writable].iter().zip(&source.is_ready).zip(&source.wakers)
            {
                if *ready {
                    is_ready.set(true);
                    waker.take().into_iter().for_each(Waker::wake);
                }
            }
        }
        Ok(())
    }
}

// ---------------------------------------------------------------- AsyncFd

/// A descriptor in non-blocking mode, whose system calls a task can await. tokio calls this `AsyncFd` too; `TcpStream` and
/// the other sockets of tokio contain one.
pub struct AsyncFd<T: AsFd> {
    pub io: T,
    reactor: &'static Reactor,
    token: Token,
    source: Rc<Source>,
}

impl<T: AsFd> AsyncFd<T> {
    /// Adds the descriptor to the interest list of epoll, edge-triggered and for both directions, so that nothing has to be
    /// changed later.
    pub fn new(executor: &'static Executor, io: T) -> io::Result<Self> {
        let (reactor, token, source) =
            (&executor.reactor, Token(next_id() as usize), Rc::new(Source::default()));
        source.is_ready.iter().for_each(|is_ready| is_ready.set(true)); // the first call finds out
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        reactor.poll.borrow().0.registry().register(
            &mut SourceFd(&io.as_fd().as_raw_fd()),
            token,
            interest,
        )?;
        reactor.sources.borrow_mut().insert(token, Rc::clone(&source));
        Ok(AsyncFd { io, reactor, token, source })
    }

    /// Makes a system call as soon as it does not fail with EAGAIN. tokio calls this `AsyncFd::async_io`.
    pub async fn async_io<R>(
        &self,
        interest: Interest,
        mut call: impl FnMut(&T) -> io::Result<R>,
    ) -> io::Result<R> {
        let [read, write] = &self.source.is_ready;
        let [reader, writer] = &self.source.wakers;
        let (is_ready, waker) =
            if interest.is_readable() { (read, reader) } else { (write, writer) };
        poll_fn(|context| {
            while is_ready.get() {
                match call(&self.io) {
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) if e.kind() == ErrorKind::WouldBlock => is_ready.set(false),
                    outcome => return Poll::Ready(outcome),
                }
            }
            trace::step(Step::Park { task: trace::current(), fd: self.io.as_fd().as_raw_fd() });
            waker.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// The last read returned fewer bytes than the buffer can hold: the socket is empty, and the read that would fail with
    /// EAGAIN is saved (epoll(7), question 9). Two cases are different. The end of file may be reported already, and recv stops
    /// before an urgent byte. In these cases the next read finds out. tokio calls this `clear_ready`.
    pub fn clear_readable(&self) {
        let [is_ready, _] = &self.source.is_ready;
        is_ready.set(self.source.is_special.get());
    }
}

impl<T: AsFd> Drop for AsyncFd<T> {
    fn drop(&mut self) {
        self.reactor.sources.borrow_mut().remove(&self.token);
        // Before the close: epoll finds the entry by the descriptor number, and the next descriptor may get that number.
        let _ = self
            .reactor
            .poll
            .borrow()
            .0
            .registry()
            .deregister(&mut SourceFd(&self.io.as_fd().as_raw_fd()));
    }
}

// ---------------------------------------------------------------- Notify

/// Wakes all tasks that wait for it: a condition variable for tasks. A notification that no task waits for has no effect, so
/// a task checks its condition first. tokio calls this `Notify`, with `notify_waiters`.
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
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
#[path = "rt/tests.rs"]
mod tests;

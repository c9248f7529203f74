//! What `async` needs in order to run: an executor with its tasks and wakers, a reactor (epoll, through mio), a timer.
//!
//! One walk, from a call to its answer. The executor polls a task; its future comes to [`AsyncFd::when_ready`], and the system
//! call says EAGAIN. The future leaves its waker with the reactor, *parks*, and returns `Pending`. No task is ready any
//! more: the executor sleeps in epoll_wait. The kernel reports the descriptor; the reactor calls the waker, which puts
//! the task into the ready queue. The executor polls it again, and this time the system call succeeds.
//!
//! All of it runs on one thread: between a call that says EAGAIN and the parking of its waker nothing can happen.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::mem;
use std::os::fd::AsRawFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Token};
use parking_lot::Mutex;

use crate::trace::{self, Step};

/// Rounds of ready tasks between two looks at the kernel: a look costs a system call, and what comes meanwhile waits.
const ROUNDS: u32 = 8;
/// Events that one epoll_wait brings; the others come with the next.
const EVENTS: usize = 256;

/// A number for a task, a timer or a descriptor. None is used twice.
fn next_id() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, SeqCst) + 1
}

// ---------------------------------------------------------------- Task

type TaskId = u64;
type ReadyQueue = Mutex<VecDeque<TaskId>>;

/// A future on its way.
struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    waker: Arc<TaskWaker>,
}

/// What a waker does: it puts its task into the ready queue, unless it is there already.
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

/// Polls the tasks that are ready, and sleeps in the reactor while none is.
pub struct Executor {
    ready: Arc<ReadyQueue>,
    tasks: RefCell<HashMap<TaskId, Task>>,
    reactor: Reactor,
    timer: Timer,
}

impl Executor {
    /// An executor that lives as long as the process, so that every task may hold it.
    pub fn new() -> io::Result<&'static Executor> {
        Ok(Box::leak(Box::new(Executor {
            ready: Arc::default(),
            tasks: RefCell::default(),
            reactor: Reactor { poll: RefCell::new(mio::Poll::new()?), parked: RefCell::default() },
            timer: Timer::default(),
        })))
    }

    /// Makes a task of a future. It is polled in the next round.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        let task = next_id();
        trace::step(Step::Spawn { task });
        let waker = Arc::new(TaskWaker { task, is_queued: AtomicBool::new(false), ready: Arc::clone(&self.ready) });
        self.tasks.borrow_mut().insert(task, Task { future: Box::pin(future), waker: Arc::clone(&waker) });
        waker.wake();
    }

    /// Runs all tasks until this one is done. The others are dropped then, with all that they hold.
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

    /// Polls one task once. Out of the map meanwhile: it may spawn others.
    fn poll(&self, id: TaskId) {
        let Some(mut task) = self.tasks.borrow_mut().remove(&id) else { return };
        // Before the poll: what wakes it during the poll must queue it again.
        task.waker.is_queued.store(false, SeqCst);
        trace::step(Step::Poll { task: id });
        let waker = Waker::from(Arc::clone(&task.waker));
        match task.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(()) => trace::step(Step::Done { task: id }),
            Poll::Pending => {
                trace::step(Step::Pending { task: id });
                self.tasks.borrow_mut().insert(id, task);
            }
        }
    }

    /// Lets time pass.
    pub fn sleep_until(&'static self, at: Instant) -> Sleep {
        Sleep { timer: &self.timer, at, id: next_id() }
    }

    /// What the future comes to, or None at that time. Dropping a future is how it is canceled.
    pub async fn timeout_at<F: Future>(&'static self, at: Instant, future: F) -> Option<F::Output> {
        let (mut future, mut sleep) = (pin!(future), self.sleep_until(at));
        poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending => Pin::new(&mut sleep).poll(context).map(|()| None),
        })
        .await
    }
}

/// Goes to the end of the ready queue: the others first.
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

/// Wakers by the time at which they are called.
#[derive(Default)]
struct Timer {
    wakers: RefCell<BTreeMap<(Instant, u64), Waker>>,
}

impl Timer {
    /// Until the first of them.
    fn timeout(&self) -> Option<Duration> {
        self.wakers.borrow().keys().next().map(|(at, _)| at.saturating_duration_since(Instant::now()))
    }

    fn wake_expired(&self) {
        let later = self.wakers.borrow_mut().split_off(&(Instant::now(), u64::MAX));
        self.wakers.replace(later).into_values().for_each(Waker::wake);
    }
}

/// A future that is done at that time. Its waker leaves the timer with it.
pub struct Sleep {
    timer: &'static Timer,
    at: Instant,
    id: u64,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context) -> Poll<()> {
        if Instant::now() >= self.at {
            return Poll::Ready(());
        }
        self.timer.wakers.borrow_mut().insert((self.at, self.id), context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.timer.wakers.borrow_mut().remove(&(self.at, self.id));
    }
}

// ---------------------------------------------------------------- Reactor

/// Wakes the tasks whose descriptors are ready.
struct Reactor {
    poll: RefCell<mio::Poll>,
    parked: RefCell<HashMap<Token, Vec<Waker>>>,
}

impl Reactor {
    /// Sleeps until a descriptor is ready, or the time is over.
    fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        trace::step(Step::Sleep { ms: timeout.map(|time| time.as_millis()) });
        let mut events = Events::with_capacity(EVENTS);
        match self.poll.borrow_mut().poll(&mut events, timeout) {
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(()),
            outcome => outcome?,
        }
        for event in &events {
            let parked = self.parked.borrow_mut().remove(&event.token());
            parked.into_iter().flatten().for_each(Waker::wake);
        }
        Ok(())
    }
}

/// A descriptor in non-blocking mode whose calls can be awaited.
pub struct AsyncFd<T: AsRawFd> {
    pub io: T,
    reactor: &'static Reactor,
    token: Token,
}

impl<T: AsRawFd> AsyncFd<T> {
    /// Puts it on the interest list, once and for both directions: edge-triggered, nothing has to be changed later.
    pub fn new(executor: &'static Executor, io: T) -> io::Result<Self> {
        let (reactor, token) = (&executor.reactor, Token(next_id() as usize));
        let both = Interest::READABLE | Interest::WRITABLE;
        reactor.poll.borrow().registry().register(&mut SourceFd(&io.as_raw_fd()), token, both)?;
        Ok(AsyncFd { io, reactor, token })
    }

    /// Makes a system call as soon as it does not say EAGAIN. Whatever the kernel reports of the descriptor wakes both
    /// who reads and who writes: the wrong one tries in vain, and parks again.
    pub async fn when_ready<R>(&self, mut call: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        poll_fn(|context| {
            let outcome = call(&self.io);
            match &outcome {
                Err(e) if e.kind() == ErrorKind::Interrupted => context.waker().wake_by_ref(),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    trace::step(Step::Park { task: trace::current(), fd: self.io.as_raw_fd() });
                    self.reactor.parked.borrow_mut().entry(self.token).or_default().push(context.waker().clone());
                }
                _ => return Poll::Ready(outcome),
            }
            Poll::Pending
        })
        .await
    }
}

impl<T: AsRawFd> Drop for AsyncFd<T> {
    fn drop(&mut self) {
        self.reactor.parked.borrow_mut().remove(&self.token);
        // Before the close: by its number, which the next descriptor may get.
        let _ = self.reactor.poll.borrow().registry().deregister(&mut SourceFd(&self.io.as_raw_fd()));
    }
}

// ---------------------------------------------------------------- Notify

/// Wakes all tasks that wait for it: a condition variable for tasks. Who waits looks first whether it has to.
#[derive(Default)]
pub struct Notify {
    round: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Notify {
    pub fn notify_all(&self) {
        self.round.set(self.round.get() + 1);
        self.waiting.take().into_iter().for_each(Waker::wake);
    }

    /// Waits for the next notice.
    pub async fn notified(&self) {
        let round = self.round.get();
        poll_fn(|context| {
            if self.round.get() != round {
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

//! What `async` needs in order to run: an executor (the ready queue), a reactor (epoll, through mio) and a timer.
//!
//! One walk, from a call to its answer. `run` polls a task; its future comes to `Sock::retry`, and the system call says
//! EAGAIN. The future leaves its waker with the socket, *parks*, and returns `Pending`. No task is ready any more: `run`
//! sleeps in epoll_wait. The kernel reports the socket; the reactor calls the waker, which puts the task's number into
//! the ready queue. `run` takes it out and polls the task again, and this time the system call succeeds.
//!
//! Tasks and reactor live on one thread: between a call that says EAGAIN and the parking of its waker nothing can happen.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Registry, Token};

use crate::trace::{By, Step, Trace};

/// System calls that a task may make in one turn. One that never finds EAGAIN would never stop: its neighbors would
/// starve, and what it says to them would pile up in their queues.
const BUDGET: u32 = 8;
/// Batches of ready tasks between two looks at the kernel: a look costs a system call, and what comes meanwhile waits.
const BATCHES: u32 = 8;
/// Events that one epoll_wait brings; the others come with the next.
const EVENTS: usize = 256;
/// The eventfd by which another thread wakes the loop.
const ALARM: Token = Token(usize::MAX);

/// The ready queue: the numbers of the tasks to be polled. The only thing here that other threads may touch.
struct Ready {
    queue: Mutex<VecDeque<u64>>,
    /// True from before the last look at the queue to the end of the sleep.
    asleep: AtomicBool,
    alarm: mio::Waker,
}

impl Ready {
    fn queue(&self) -> MutexGuard<'_, VecDeque<u64>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a waker is: *put my number into the ready queue*.
struct Ticket {
    task: u64,
    /// It is in the queue already: ten events for one task are one poll.
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for Ticket {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, SeqCst) {
            return;
        }
        self.ready.queue().push_back(self.task);
        // Only another thread can find the loop asleep. Either it sees this flag, or the loop sees its number.
        if self.ready.asleep.load(SeqCst) {
            let _ = self.ready.alarm.wake();
        }
    }
}

/// A future on its way, and its ticket.
struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    ticket: Arc<Ticket>,
}

/// A task that waits, and for whom to call when it need not any longer.
struct Waiter {
    task: u64,
    waker: Waker,
}

/// One direction of a descriptor.
struct Side {
    /// The next call may succeed. Edge-triggered, the kernel says so once; it is true until a call has said EAGAIN.
    is_ready: Cell<bool>,
    /// The end has been reported: no further event will come, so what is left must be found by calling.
    is_over: Cell<bool>,
    waiter: RefCell<Option<Waiter>>,
}

/// All that runs on one thread: tasks, descriptors, timers.
pub struct Runtime {
    ready: Arc<Ready>,
    tasks: RefCell<HashMap<u64, Task>>,
    /// The last number given to a task, a timer or a descriptor. None is used twice.
    numbers: Cell<u64>,
    /// The task being polled.
    current: Cell<u64>,
    /// What is left of its turn.
    budget: Cell<u32>,
    poll: RefCell<mio::Poll>,
    registry: Registry,
    socks: RefCell<HashMap<Token, Rc<[Side; 2]>>>,
    timers: RefCell<BTreeMap<(Instant, u64), Waiter>>,
    trace: Trace,
}

impl Runtime {
    /// A runtime without tasks.
    ///
    /// # Errors
    /// No descriptor for epoll or eventfd.
    pub fn new(trace: Trace) -> io::Result<Rc<Runtime>> {
        let poll = mio::Poll::new()?;
        let registry = poll.registry().try_clone()?;
        let alarm = mio::Waker::new(&registry, ALARM)?;
        Ok(Rc::new(Runtime {
            ready: Arc::new(Ready { queue: Mutex::default(), asleep: AtomicBool::new(false), alarm }),
            tasks: RefCell::default(),
            numbers: Cell::new(0),
            current: Cell::new(0),
            budget: Cell::new(BUDGET),
            poll: RefCell::new(poll),
            registry,
            socks: RefCell::default(),
            timers: RefCell::default(),
            trace,
        }))
    }

    fn number(&self) -> u64 {
        self.numbers.set(self.numbers.get() + 1);
        self.numbers.get()
    }

    /// Makes a task of a future. It is polled in the next round.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        let task = self.number();
        let ticket = Arc::new(Ticket { task, queued: AtomicBool::new(false), ready: Arc::clone(&self.ready) });
        self.trace.step(Step::Spawn { task, by: self.current.get() });
        ticket.wake_by_ref();
        self.tasks.borrow_mut().insert(task, Task { future: Box::pin(future), ticket });
    }

    /// Runs all tasks until this one is done. The others are dropped then, with all that they hold.
    ///
    /// # Errors
    /// Those of epoll_wait.
    pub fn run<T: 'static>(&self, main: impl Future<Output = T> + 'static) -> io::Result<T> {
        let result = Rc::new(Cell::new(None));
        let slot = Rc::clone(&result);
        self.spawn(async move { slot.set(Some(main.await)) });
        let mut events = Events::with_capacity(EVENTS);
        loop {
            for _ in 0..BATCHES {
                let batch = std::mem::take(&mut *self.ready.queue());
                batch.into_iter().for_each(|task| self.turn(task));
            }
            if let Some(value) = result.take() {
                drop(self.tasks.take());
                return Ok(value);
            }
            self.sleep(&mut events)?;
        }
    }

    /// The executor: polls one task once.
    fn turn(&self, number: u64) {
        // Out of the map while it runs: it may spawn others.
        let Some(mut task) = self.tasks.borrow_mut().remove(&number) else { return };
        // Before the poll: what wakes it during the poll must queue it again.
        task.ticket.queued.store(false, SeqCst);
        self.budget.set(BUDGET);
        self.current.set(number);
        self.trace.step(Step::Poll { task: number });
        let waker = Waker::from(Arc::clone(&task.ticket));
        match task.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(()) => self.trace.step(Step::Done { task: number }),
            Poll::Pending => {
                self.trace.step(Step::Pending { task: number });
                self.tasks.borrow_mut().insert(number, task);
            }
        }
        self.current.set(0);
    }

    /// The reactor: sleeps until an event or a timer if no task is ready, and wakes whoever waited for what has happened.
    fn sleep(&self, events: &mut Events) -> io::Result<()> {
        self.ready.asleep.store(true, SeqCst);
        let is_idle = self.ready.queue().is_empty();
        let first = self.timers.borrow().keys().next().map(|(at, _)| at.saturating_duration_since(Instant::now()));
        let patience = if is_idle { first } else { Some(Duration::ZERO) };
        if is_idle {
            self.trace.step(Step::Sleep { ms: patience.map(|time| time.as_millis()) });
        }
        let outcome = self.poll.borrow_mut().poll(events, patience);
        self.ready.asleep.store(false, SeqCst);
        match outcome {
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        for event in events.iter() {
            let sides = self.socks.borrow().get(&event.token()).map(Rc::clone);
            let Some([read, write]) = sides.as_deref() else { continue };
            let (by, is_broken) = (By::Sock(event.token().0), event.is_error());
            if event.is_readable() || event.is_read_closed() || is_broken {
                read.is_over.set(read.is_over.get() || event.is_read_closed() || is_broken);
                read.is_ready.set(true);
                self.wake(&read.waiter, by);
            }
            if event.is_writable() || event.is_write_closed() || is_broken {
                write.is_ready.set(true);
                self.wake(&write.waiter, by);
            }
        }
        let later = self.timers.borrow_mut().split_off(&(Instant::now(), u64::MAX));
        let due = self.timers.replace(later);
        due.into_values().for_each(|waiter| self.wake(&RefCell::new(Some(waiter)), By::Timer));
        Ok(())
    }

    fn wake(&self, waiter: &RefCell<Option<Waiter>>, by: By) {
        if let Some(Waiter { task, waker }) = waiter.take() {
            self.trace.step(Step::Wake { task, by });
            waker.wake();
        }
    }

    fn waiter(&self, context: &Context) -> Waiter {
        Waiter { task: self.current.get(), waker: context.waker().clone() }
    }

    /// What the future comes to, or None at that time. Dropping a future is how it is canceled.
    pub async fn until<F: Future>(&self, at: Instant, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let timer = Timer { rt: self, key: (at, self.number()) };
        poll_fn(|context| {
            if let Poll::Ready(value) = future.as_mut().poll(context) {
                return Poll::Ready(Some(value));
            }
            if Instant::now() >= at {
                return Poll::Ready(None);
            }
            self.timers.borrow_mut().insert(timer.key, self.waiter(context));
            Poll::Pending
        })
        .await
    }

    /// Lets time pass.
    pub async fn sleep_until(&self, at: Instant) {
        self.until(at, std::future::pending::<()>()).await;
    }
}

/// An entry of the timers that leaves with the future that needs it.
struct Timer<'a> {
    rt: &'a Runtime,
    key: (Instant, u64),
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        self.rt.timers.borrow_mut().remove(&self.key);
    }
}

/// A descriptor in non-blocking mode whose calls can be awaited: by one task for input and one for output.
pub struct Sock<T: AsRawFd> {
    pub io: T,
    rt: Rc<Runtime>,
    token: Token,
    sides: Rc<[Side; 2]>,
}

impl<T: AsRawFd> Sock<T> {
    /// Puts it on the interest list, once and for both directions: edge-triggered, nothing has to be changed later.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn new(rt: &Rc<Runtime>, io: T) -> io::Result<Self> {
        let token = Token(rt.number() as usize);
        rt.registry.register(&mut SourceFd(&io.as_raw_fd()), token, Interest::READABLE | Interest::WRITABLE)?;
        let side = || Side { is_ready: Cell::new(true), is_over: Cell::new(false), waiter: RefCell::default() };
        let sides = Rc::new([side(), side()]);
        rt.socks.borrow_mut().insert(token, Rc::clone(&sides));
        Ok(Sock { io, rt: Rc::clone(rt), token, sides })
    }

    /// Makes a call that takes something out, as soon as that is possible.
    pub async fn input<R>(&self, call: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        let [read, _] = &*self.sides;
        self.retry(read, call).await
    }

    /// Makes a call that puts something in, as soon as that is possible.
    pub async fn output<R>(&self, call: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        let [_, write] = &*self.sides;
        self.retry(write, call).await
    }

    /// The last input was less than there was room for: nothing is left, and the call that would say EAGAIN is saved.
    /// What comes from now on makes a new edge.
    pub fn input_drained(&self) {
        let [read, _] = &*self.sides;
        read.is_ready.set(read.is_over.get());
    }

    async fn retry<R>(&self, side: &Side, mut call: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        poll_fn(|context| {
            while side.is_ready.get() {
                if self.rt.budget.get() == 0 {
                    // The others first. Awake, at the end of the queue, and not parked.
                    self.rt.trace.step(Step::Yield { task: self.rt.current.get() });
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                self.rt.budget.set(self.rt.budget.get() - 1);
                match call(&self.io) {
                    Err(e) if e.kind() == ErrorKind::WouldBlock => side.is_ready.set(false),
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    outcome => return Poll::Ready(outcome),
                }
            }
            self.rt.trace.step(Step::Park { task: self.rt.current.get(), sock: self.token.0 });
            side.waiter.replace(Some(self.rt.waiter(context)));
            Poll::Pending
        })
        .await
    }
}

impl<T: AsRawFd> Drop for Sock<T> {
    fn drop(&mut self) {
        self.rt.socks.borrow_mut().remove(&self.token);
        // Before the close: by its number, which the next descriptor may get.
        let _ = self.rt.registry.deregister(&mut SourceFd(&self.io.as_raw_fd()));
    }
}

/// A bell between two tasks. A ring that nobody waited for is not lost; ten of them are one.
pub struct Bell {
    rt: Rc<Runtime>,
    rung: Cell<bool>,
    waiter: RefCell<Option<Waiter>>,
}

impl Bell {
    pub fn new(rt: &Rc<Runtime>) -> Bell {
        Bell { rt: Rc::clone(rt), rung: Cell::new(false), waiter: RefCell::default() }
    }

    pub fn ring(&self) {
        self.rung.set(true);
        self.rt.wake(&self.waiter, By::Task(self.rt.current.get()));
    }

    /// Waits for the next ring, or takes the one that was.
    pub async fn rung(&self) {
        poll_fn(|context| {
            if self.rung.take() {
                return Poll::Ready(());
            }
            self.waiter.replace(Some(self.rt.waiter(context)));
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
#[path = "rt/tests.rs"]
mod tests;

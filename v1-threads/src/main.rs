//! Chat with threads: a reader and a writer thread per client, the room behind a mutex.
//!
//! Run: cargo run -p v1-threads
//! Try: cargo run -p chat -- -i localhost -p 2000 --nick alice
//! Prev: v0-processes
//! Next: v2-select
//! Diff base: none
//! Overload: refuse (beyond --max-conns a client is told `! server-full`, by its own threads)
//! Slow reader: kick (beyond --outbox, or after --write-timeout without progress; --slow shows what else there is)

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read};
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Shutdown};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use chat::history::Log as History;
use chat::{ConnId, Event, Fit, Hub, Input, Limits, Next, Out, Outbox, Send, Slow, To, Why};
use clap::Parser;
use common::cli::Listen;
use common::report::{Failed, Log};
use common::sock::{Backoff, listen};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use socket2::{Socket, TcpKeepalive};

const BACKLOG: i32 = 1024;
/// Bytes of address space; memory is what a thread touches of it. glibc keeps 40 MiB of dead threads' stacks for the next
/// ones, with the last 16 KiB of each still in memory: of large stacks that is less than of small ones.
const STACK: usize = 1024 * 1024;
/// Clients that are on their way out, or only there to be told why not.
const DEAD_ENDS: usize = 32;
/// Records that may wait for a disk that is stuck.
const LOG_MOST: usize = 10_000;
/// A signal does not end a wait on a condition variable: so often it is looked for meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// Chat: a reader and a writer thread per client, the room behind a mutex
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    limits: Limits,
    /// What happens to a reader that is slower than the room
    #[arg(long, value_enum, default_value_t)]
    slow: Slow,
    #[command(flatten)]
    report: Log,
}

/// What all threads share. No system call is made while `room` is locked: whoever waits there waits for memory only.
struct Server {
    args: Args,
    room: Mutex<Room>,
    /// Somebody has gone.
    gone: Condvar,
    /// There is something to write to the chat log, or the end has come.
    said: Condvar,
}

struct Room {
    hub: Hub,
    clients: BTreeMap<ConnId, Arc<Client>>,
    /// Clients that have threads, those included that the hub has forgotten.
    alive: usize,
    records: Vec<Arc<[u8]>>,
    over: bool,
}

/// One client, shared by its two threads and by all who send to it. The last one closes the socket.
struct Client {
    id: ConnId,
    conn: Socket,
    outbox: Mutex<Outbox>,
    /// The outbox is not what it was.
    changed: Condvar,
}

/// The listener.
static STOP_FD: AtomicI32 = AtomicI32::new(-1);
static STOPS: AtomicU32 = AtomicU32::new(0);

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        on_signal(signal, stop)?;
    }
    let mut hub = Hub::new(&args.limits, Instant::now(), SystemTime::now());
    let history = match args.limits.no_log {
        true => None,
        false => {
            let path = &args.limits.log;
            let opened = History::open(path, args.limits.history).with_context(|| format!("open {}", path.display()));
            let (history, said) = opened?;
            hub.recall(said);
            Some(history)
        }
    };

    let listener = listen(&args.listen, BACKLOG)?;
    STOP_FD.store(listener.as_raw_fd(), SeqCst);
    // Accepted sockets inherit these. A member whose cable was cut is found out by them, and by nothing else.
    let (time, interval, retries) = chat::cli::KEEPALIVE;
    let keepalive = TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries);
    listener.set_tcp_keepalive(&keepalive).context("setsockopt SO_KEEPALIVE")?;
    listener.set_tcp_user_timeout(Some(chat::cli::USER_TIMEOUT)).context("setsockopt TCP_USER_TIMEOUT")?;

    let room = Room { hub, clients: BTreeMap::new(), alive: 0, records: Vec::new(), over: false };
    let server = Arc::new(Server { args, room: Mutex::new(room), gone: Condvar::new(), said: Condvar::new() });
    let scribe = Arc::clone(&server);
    let scribe = Builder::new().stack_size(STACK).spawn(move || scribe.write_log(history)).context("clone")?;

    server.accept(&listener)?;
    server.close();
    let _ = scribe.join();
    server.args.report.cpu_time();
    Ok(())
}

/// Installs a handler without SA_RESTART, so that a sleeping accept returns EINTR.
fn on_signal(signal: Signal, handler: extern "C" fn(libc::c_int)) -> Result<(), Failed> {
    let action = SigAction::new(SigHandler::Handler(handler), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler makes async-signal-safe calls only.
    unsafe { sigaction(signal, &action) }.with_context(|| format!("sigaction {signal}"))?;
    Ok(())
}

/// One call ends the accepting, whichever thread runs the handler.
extern "C" fn stop(_: libc::c_int) {
    let errno = Errno::last_raw();
    STOPS.fetch_add(1, SeqCst);
    // SAFETY: shutdown is async-signal-safe; a stale descriptor number makes it fail, no more.
    unsafe { libc::shutdown(STOP_FD.load(SeqCst), libc::SHUT_RD) };
    Errno::set_raw(errno);
}

/// A thread that panicked with a lock in its hand has harmed one client at most: the hub and the outboxes change in
/// single calls that do not panic half-way. The room goes on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    fn accept(self: &Arc<Self>, listener: &Socket) -> Result<(), Failed> {
        let mut backoff = Backoff::default();
        let mut id = 0;
        while STOPS.load(SeqCst) == 0 {
            let (conn, peer) = match listener.accept() {
                Ok(accepted) => accepted,
                // The handler has shut the listener down: EINVAL now and ever after.
                Err(_) if STOPS.load(SeqCst) > 0 => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => {
                    backoff.accept_failed(&e, &self.args.report)?;
                    continue;
                }
            };
            id += 1;
            let address = peer.as_socket().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip());
            self.args.report.info(&format!("client {id}: {address} connected"));
            let outbox = Mutex::new(Outbox::new(&self.args.limits, self.args.slow));
            let client = Arc::new(Client { id, conn, outbox, changed: Condvar::new() });
            let Some(place) = self.wait_for_place() else { break };
            let place = Arc::new(place);
            // Two threads, each with the client in its hand: who reads never waits for who writes. Not thread::spawn,
            // which panics where the kernel has no thread to give; the guest then leaves as if it had gone.
            let guest = Guest { server: Arc::clone(self), client: Arc::clone(&client), place: Arc::clone(&place) };
            let writer = Builder::new().stack_size(STACK).spawn({
                let (client, place) = (Arc::clone(&client), place);
                move || place.0.write_to(&client)
            });
            let reader = Builder::new().stack_size(STACK).spawn(move || guest.server.read_from(&guest.client, address));
            if let Err(e) = writer.and(reader) {
                self.args.report.repeated("WARN", &format!("clone: {e}"));
                let _ = client.conn.send(b"! server-full no thread to be had\n");
                let _ = client.conn.shutdown(Shutdown::Both);
            }
        }
        Ok(())
    }

    /// A place, when there is one; None once a stop has come. Meanwhile the kernel's backlog holds the clients.
    fn wait_for_place(self: &Arc<Self>) -> Option<Place> {
        let mut room = lock(&self.room);
        let places = self.args.limits.max_conns as usize + DEAD_ENDS;
        while room.alive >= places && STOPS.load(SeqCst) == 0 {
            room = self.gone.wait_timeout(room, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        room.alive += 1;
        drop(room);
        Some(Place(Arc::clone(self))).filter(|_| STOPS.load(SeqCst) == 0)
    }

    /// The reader's whole life. A thread per client may block in recv, and sleep where its client is too fast.
    fn read_from(&self, client: &Arc<Client>, address: IpAddr) {
        lock(&self.room).clients.insert(client.id, Arc::clone(client));
        let mut armed = None;
        let mut input = Input::new(&self.args.limits, Instant::now());
        let mut deadline = self.tell(client.id, Event::Connected(address));
        let mut buffer = [0; 4096];
        // None: the hub has forgotten it, and the writer sees to the end.
        while let Some(end) = deadline {
            let now = Instant::now();
            match input.next(now) {
                _ if end <= now => deadline = self.tell(client.id, Event::Tick),
                Next::Tell(event) => deadline = self.tell(client.id, event),
                Next::Wait(until) => thread::sleep(until.saturating_duration_since(now)),
                Next::Read => {
                    arm(&client.conn, &mut armed, end - now);
                    match (&client.conn).read(&mut buffer) {
                        Ok(0) => deadline = self.tell(client.id, Event::Gone(Why::Closed)),
                        Ok(n) => input.feed(buffer.get(..n).unwrap_or_default()),
                        // A signal, or the time is over: the loop asks the clock.
                        Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => armed = None,
                        Err(_) => deadline = self.tell(client.id, Event::Gone(Why::Lost)),
                    }
                }
            }
        }
        // Closing on unread bytes would be a reset, which can overtake the last words. The writer ends this.
        let _ = client.conn.set_read_timeout(None);
        while !matches!((&client.conn).read(&mut buffer).map(|n| client.drained(n)), Ok(Send::Close) | Err(_)) {}
    }

    /// The writer's whole life. It sleeps until its client's outbox changes, takes a batch, and sends it unlocked: only
    /// this thread waits for a slow reader.
    fn write_to(&self, client: &Client) {
        let _ = client.conn.set_write_timeout(Some(self.args.limits.write_timeout()));
        let mut outbox = lock(&client.outbox);
        loop {
            if outbox.expire(Instant::now()) {
                drop(outbox);
                self.tell(client.id, Event::TooSlow);
                outbox = lock(&client.outbox);
            }
            match outbox.next() {
                Send::Nothing | Send::Drain => outbox = client.wait(outbox),
                Send::Write => {
                    let connected;
                    (outbox, connected) = client.send(outbox);
                    if !connected {
                        break;
                    }
                }
                Send::HangUp => {
                    let _ = client.conn.shutdown(Shutdown::Write);
                    outbox.hung_up(Instant::now());
                }
                Send::Close => break,
            }
        }
        // Wakes the reader with an end of file.
        outbox.lost();
        let _ = client.conn.shutdown(Shutdown::Both);
        if self.args.slow == Slow::Grow {
            // glibc keeps what the threads have freed between them; a queue without bound leaves much of that.
            // SAFETY: it only gives unused pages back to the kernel.
            unsafe { libc::malloc_trim(0) };
        }
    }

    /// Tells the hub, and queues what it says. Returns the client's deadline, or None if the hub knows it no more.
    fn tell(&self, id: ConnId, event: Event) -> Option<Instant> {
        let mut touched = BTreeMap::new();
        let mut room = lock(&self.room);
        let mut events = VecDeque::from([(id, event)]);
        // A line can overflow an outbox, and the news of that another one.
        while let Some((id, event)) = events.pop_front() {
            let outs = room.hub.handle(id, event, Instant::now());
            let slow = room.deliver(&outs, &mut touched);
            events.extend(slow.into_iter().map(|id| (id, Event::TooSlow)));
        }
        let deadline = room.hub.deadline_of(id);
        let said = !room.records.is_empty();
        drop(room);
        // Waking a thread is a system call: not under the lock.
        if said {
            self.said.notify_one();
        }
        touched.values().for_each(|client| client.changed.notify_all());
        if self.args.slow == Slow::Block {
            touched.values().for_each(|client| client.wait_for_room());
        }
        deadline
    }

    /// The end: last words for all, and the grace to send them.
    fn close(&self) {
        let end = Instant::now() + self.args.limits.grace();
        let mut touched = BTreeMap::new();
        let mut room = lock(&self.room);
        let outs = room.hub.shut_down();
        room.deliver(&outs, &mut touched);
        touched.values().for_each(|client| client.changed.notify_all());
        while room.alive > 0 && Instant::now() < end && STOPS.load(SeqCst) < 2 {
            room = self.gone.wait_timeout(room, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        room.over = true;
        self.said.notify_one();
    }

    /// One thread writes the chat log, in the hub's order: nobody in the room waits for the disk.
    fn write_log(&self, mut history: Option<History>) {
        let mut room = lock(&self.room);
        while !room.over || !room.records.is_empty() {
            let records = mem::take(&mut room.records);
            if records.is_empty() {
                room = self.said.wait(room).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            drop(room);
            for record in records {
                if let Some(Err(e)) = history.as_mut().map(|history| history.append(&record)) {
                    let path = self.args.limits.log.display();
                    self.args.report.repeated("WARN", &format!("write {path}: {e}"));
                }
            }
            room = lock(&self.room);
        }
    }
}

impl Room {
    /// Queues what the hub said; returns who is too slow for it. What is queued is memory: nobody waits in here.
    fn deliver(&mut self, outs: &[Out], touched: &mut BTreeMap<ConnId, Arc<Client>>) -> Vec<ConnId> {
        let now = Instant::now();
        let mut slow = Vec::new();
        for out in outs {
            if out.to == To::Log && self.records.len() < LOG_MOST {
                self.records.push(Arc::clone(&out.bytes));
            }
            for id in self.hub.receivers(out.to) {
                let Some(client) = self.clients.get(&id) else { continue };
                if lock(&client.outbox).push(out, now) == Fit::Overflow {
                    slow.push(id);
                }
                touched.entry(id).or_insert_with(|| Arc::clone(client));
            }
        }
        slow
    }
}

impl Client {
    /// Gives the outbox away, sleeps until it changes or a deadline comes, and takes it again.
    fn wait<'a>(&self, outbox: MutexGuard<'a, Outbox>) -> MutexGuard<'a, Outbox> {
        match outbox.deadline() {
            None => self.changed.wait(outbox).unwrap_or_else(PoisonError::into_inner),
            Some(end) => {
                let left = end.saturating_duration_since(Instant::now());
                self.changed.wait_timeout(outbox, left).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    /// Sends what waits, with the outbox unlocked: who says something meanwhile does not wait. False: nobody is there.
    fn send<'a>(&'a self, mut outbox: MutexGuard<'a, Outbox>) -> (MutexGuard<'a, Outbox>, bool) {
        let batch = outbox.batch();
        drop(outbox);
        let sent = match self.conn.send_vectored(&batch.slices()) {
            Ok(n) => Some(n),
            // A signal, or nothing left for the write timeout: the outbox's deadline has passed as well.
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => Some(0),
            Err(_) => None,
        };
        let mut outbox = lock(&self.outbox);
        outbox.consume(sent.unwrap_or(0), Instant::now());
        self.changed.notify_all();
        (outbox, sent.is_some())
    }

    /// `--slow block`: who speaks waits until the slowest has room, and so everybody waits.
    fn wait_for_room(&self) {
        let mut outbox = lock(&self.outbox);
        while outbox.is_over_mark() && !outbox.is_closing() {
            outbox = self.changed.wait(outbox).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn drained(&self, n: usize) -> Send {
        let mut outbox = lock(&self.outbox);
        outbox.drained(n);
        self.changed.notify_all();
        if n == 0 { Send::Close } else { outbox.next() }
    }
}

/// Bounds the next recv, where the bound in force is too long: a line costs no setsockopt.
fn arm(conn: &Socket, armed: &mut Option<Duration>, left: Duration) {
    if armed.is_none_or(|bound| bound > left + left / 64 + Duration::from_millis(1)) {
        let left = left.max(Duration::from_millis(1));
        let _ = conn.set_read_timeout(Some(left));
        *armed = Some(left);
    }
}

/// A client in its reader's hand. Dropped, also by a panic and where there was no thread, it leaves the room.
struct Guest {
    server: Arc<Server>,
    client: Arc<Client>,
    /// Given back last.
    #[expect(dead_code, reason = "it is held, and dropped")]
    place: Arc<Place>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.server.tell(self.client.id, Event::Gone(Why::Crashed));
        lock(&self.server.room).clients.remove(&self.client.id);
        let mut outbox = lock(&self.client.outbox);
        outbox.close(Instant::now());
        outbox.drained(0);
        self.client.changed.notify_all();
    }
}

/// Room for one client's threads. The last of the two gives it back.
struct Place(Arc<Server>);

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.0.room).alive -= 1;
        self.0.gone.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Arc<Server> {
        let args = Args::parse_from(["v1-threads", "--no-log"]);
        let hub = Hub::new(&args.limits, Instant::now(), SystemTime::now());
        let room = Room { hub, clients: BTreeMap::new(), alive: 0, records: Vec::new(), over: false };
        Arc::new(Server { args, room: Mutex::new(room), gone: Condvar::new(), said: Condvar::new() })
    }

    /// A client without a descriptor's other end: what it would be sent stays in its outbox.
    fn client(server: &Server, id: ConnId) -> Arc<Client> {
        let conn = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let outbox = Mutex::new(Outbox::new(&server.args.limits, server.args.slow));
        let client = Arc::new(Client { id, conn, outbox, changed: Condvar::new() });
        lock(&server.room).clients.insert(id, Arc::clone(&client));
        server.tell(id, Event::Connected(Ipv4Addr::LOCALHOST.into()));
        server.tell(id, Event::Line(format!("nick{id}")));
        client
    }

    fn waiting(client: &Client) -> String {
        lock(&client.outbox).slices().iter().map(|slice| String::from_utf8_lossy(slice).into_owned()).collect()
    }

    #[test]
    fn a_poisoned_room_goes_on() {
        let server = server();
        let (one, two) = (client(&server, 1), client(&server, 2));
        let place = Arc::new(Place(Arc::clone(&server)));
        lock(&server.room).alive = 1;
        let guest = Guest { server: Arc::clone(&server), client: Arc::clone(&one), place };
        let crash = thread::spawn(move || {
            let guest = guest;
            let _room = lock(&guest.server.room);
            panic!("on purpose");
        });
        assert!(crash.join().is_err() && server.room.is_poisoned());
        assert!(waiting(&two).ends_with("* nick1 left (crashed)\n"), "{}", waiting(&two));
        assert_eq!(lock(&server.room).alive, 0);
        assert_eq!(lock(&server.room).hub.len(), 1);
        assert!(lock(&one.outbox).is_closing());

        let three = client(&server, 3);
        server.tell(2, Event::Line("still here".into()));
        assert!(waiting(&three).ends_with("<nick2> still here\n"));
    }
}

//! Starvation in one event loop: one client sends without a pause, a quiet client sends one byte
//! every 2 ms. How long does the quiet client wait for each answer?
//!
//! Run: cargo run -p server02b-epoll --example starvation

use std::hint::black_box;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{Builder, Scope, ScopedJoinHandle, scope};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Socket, Type};

const FLOOD: u64 = 0;
const QUIET: u64 = 1;
const BLOCK: usize = 4 * 1024;
/// The run ends if an answer takes longer.
const MOST: Duration = Duration::from_secs(1);

/// How the loop reads from a client that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// Level-triggered, one block for each event: unread bytes are reported again.
    OneBlock,
    /// Edge-triggered, until EAGAIN: unread bytes would not be reported again.
    UntilEagain,
}

fn main() -> io::Result<()> {
    let mut out = io::stdout();
    let _ = writeln!(out, "{:26}{:>10}{:>10}", "reads", "median ms", "max ms");
    for (reads, name) in
        [(Reads::OneBlock, "one block for each event"), (Reads::UntilEagain, "until EAGAIN")]
    {
        let mut times = waits(reads, 50)?;
        times.sort();
        let ms = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1000.0);
        let _ = writeln!(
            out,
            "{name:26}{:>10.2}{:>10.2}",
            ms(times.get(times.len() / 2)),
            ms(times.last())
        );
    }
    Ok(())
}

/// How long the quiet client waited for each answer. The list is shorter if an answer took too
/// long.
///
/// # Errors
/// The errors of the socket calls and of thread creation.
pub fn waits(reads: Reads, questions: usize) -> io::Result<Vec<Duration>> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    listener.listen(2)?;
    let (flood, flooded) = pair(&listener)?;
    let (quiet, asked) = pair(&listener)?;
    quiet.set_read_timeout(Some(MOST))?;
    let stop = AtomicBool::new(false);
    scope(|scope| {
        let server = spawn(scope, || serve(reads, &flooded, &asked, &stop))?;
        let flooder = spawn(scope, || while (&flood).write_all(&[b'x'; 16 * BLOCK]).is_ok() {});
        let times = ask(&quiet, questions);
        // End both threads, also after an error: the loop reads the flag, the client gets EPIPE.
        stop.store(true, SeqCst);
        let _ = flood.shutdown(Shutdown::Both);
        let _ = quiet.shutdown(Shutdown::Both);
        let served = server.join();
        flooder?;
        served.unwrap_or_else(|_| Err(io::Error::other("the loop panicked")))?;
        times
    })
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    body: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().spawn_scoped(scope, body)
}

fn ask(quiet: &Socket, questions: usize) -> io::Result<Vec<Duration>> {
    let mut times = Vec::new();
    for _ in 0..questions {
        std::thread::sleep(Duration::from_millis(2)); // a pause between two requests
        let start = Instant::now();
        let mut conn = quiet;
        conn.write_all(b"?")?;
        let answered = conn.read_exact(&mut [0]);
        times.push(start.elapsed());
        match answered {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) => return Err(e),
        }
    }
    Ok(times)
}

/// The event loop. It treats both clients in the same way.
fn serve(reads: Reads, flooded: &Socket, asked: &Socket, stop: &AtomicBool) -> io::Result<()> {
    let edge = if reads == Reads::UntilEagain { EpollFlags::EPOLLET } else { EpollFlags::empty() };
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (conn, name) in [(flooded, FLOOD), (asked, QUIET)] {
        conn.set_nonblocking(true)?;
        epoll.add(conn, EpollEvent::new(EpollFlags::EPOLLIN | edge, name))?;
    }
    let mut events = [EpollEvent::empty(); 2];
    while !stop.load(SeqCst) {
        let n = epoll.wait(&mut events, EpollTimeout::from(100_u8))?;
        for event in events.iter().take(n) {
            let conn = if event.data() == FLOOD { flooded } else { asked };
            read(reads, conn, event.data() == QUIET, stop)?;
        }
    }
    Ok(())
}

/// Reads one block, or until EAGAIN. In the second case more bytes arrive in the meantime.
fn read(reads: Reads, mut conn: &Socket, answers: bool, stop: &AtomicBool) -> io::Result<()> {
    let mut buffer = [0; BLOCK];
    loop {
        match conn.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) if answers => conn.write_all(b"!")?,
            // A server works on the bytes that it reads, so the client sends faster than it reads.
            Ok(n) => work(buffer.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(e),
        }
        if reads == Reads::OneBlock || stop.load(SeqCst) {
            return Ok(());
        }
    }
}

/// The FNV-1a hash of the bytes. It takes some microseconds per block.
fn work(bytes: &[u8]) {
    let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    black_box(bytes.iter().fold(0xcbf2_9ce4_8422_2325, hash));
}

/// A connection: the socket of the client and the socket of the server.
fn pair(listener: &Socket) -> io::Result<(Socket, Socket)> {
    let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    client.connect(&listener.local_addr()?)?;
    Ok((client, listener.accept()?.0))
}

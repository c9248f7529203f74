//! One client that floods, one that asks now and then, one loop: how long does the quiet one wait?
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
/// A question that has waited so long ends the run.
const MOST: Duration = Duration::from_secs(1);

/// How the loop reads from a client that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// Level-triggered, one block for each event: what is left is reported again.
    OneBlock,
    /// Edge-triggered, until EAGAIN: what is left would not be reported again.
    UntilEagain,
}

fn main() -> io::Result<()> {
    let mut out = io::stdout();
    let _ = writeln!(out, "{:26}{:>10}{:>10}", "reads", "median ms", "most ms");
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

/// What each of the quiet client's questions waited for its answer. Fewer than asked for where one waited too long.
///
/// # Errors
/// No socket, no thread.
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
        // Both threads end, whatever has happened: the one sees the flag, the other a connection that is over.
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
        std::thread::sleep(Duration::from_millis(2)); // now and then
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

/// The loop. Both clients have the same rights in it.
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

/// One client's turn: a block, or all that there is, and more of it comes meanwhile.
fn read(reads: Reads, mut conn: &Socket, answers: bool, stop: &AtomicBool) -> io::Result<()> {
    let mut buffer = [0; BLOCK];
    loop {
        match conn.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) if answers => conn.write_all(b"!")?,
            // A server does something with what it reads, and so a client that floods is always ahead of it.
            Ok(n) => work(buffer.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(e),
        }
        if reads == Reads::OneBlock || stop.load(SeqCst) {
            return Ok(());
        }
    }
}

/// A hash of the bytes, FNV-1a: some microseconds for a block.
fn work(bytes: &[u8]) {
    let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    black_box(bytes.iter().fold(0xcbf2_9ce4_8422_2325, hash));
}

/// A client's end of a connection, and the server's.
fn pair(listener: &Socket) -> io::Result<(Socket, Socket)> {
    let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    client.connect(&listener.local_addr()?)?;
    Ok((client, listener.accept()?.0))
}

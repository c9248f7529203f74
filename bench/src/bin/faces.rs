//! One epoll loop with four faces, so that every load generator meets the same server whatever it speaks: `unp` (a
//! number and a newline), `fixed:Q:R` (every Q bytes give R bytes), `echo`, `http:N` (a reply with N bytes of body).
//!
//! A line on its standard input is answered with the number of requests answered so far: a count that does not depend
//! on what a load generator prints. The end of its standard input ends it.
//!
//! Run: cargo run --release -p bench --bin faces -- http:1000

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::ExitCode;

use common::service::answer_from;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{SockFlag, accept4};
use socket2::{Domain, Socket, Type};

const LISTENER: u64 = u64::MAX;
const STDIN: u64 = u64::MAX - 1;
/// Longer answers are for servers that do not make them in memory first.
const LONGEST: u32 = 16_000_000;
const USAGE: &str = "faces: one argument: unp, fixed:Q:R, echo or http:N";
/// What ends the head of an HTTP request.
const BLANK: &[u8] = b"\r\n\r\n";

/// What is spoken.
enum Face {
    Unp,
    Fixed(usize, Vec<u8>),
    Echo,
    Http(Vec<u8>),
}

struct Client {
    socket: Socket,
    /// The number so far, the bytes so far, or so many bytes of the blank line: as the face needs it.
    seen: usize,
    /// What the kernel did not take at once.
    out: Vec<u8>,
}

struct Server {
    face: Face,
    epoll: Epoll,
    clients: Vec<Option<Client>>,
    input: Vec<u8>,
    reply: Vec<u8>,
    answered: u64,
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(face) = args.next().and_then(|text| face(&text)).filter(|_| args.next().is_none()) else {
        let _ = writeln!(io::stderr(), "{USAGE}");
        return ExitCode::from(2);
    };
    match serve(face) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "faces: {error}");
            ExitCode::FAILURE
        }
    }
}

fn face(text: &str) -> Option<Face> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|n| (1..=LONGEST).contains(n));
    match text.split_once(':') {
        None if text == "unp" => Some(Face::Unp),
        None if text == "echo" => Some(Face::Echo),
        Some(("fixed", sizes)) => {
            let (ask, reply) = sizes.split_once(':')?;
            Some(Face::Fixed(number(ask)? as usize, answer(number(reply)?)))
        }
        Some(("http", body)) => {
            let body = number(body)?;
            let mut reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {body}\r\n\r\n").into_bytes();
            reply.extend(answer(body));
            Some(Face::Http(reply))
        }
        _ => None,
    }
}

/// The answer of the byte service, whole.
fn answer(n: u32) -> Vec<u8> {
    let mut whole = Vec::with_capacity(n as usize);
    while whole.len() < n as usize {
        whole.extend_from_slice(answer_from(whole.len() as u32, n - whole.len() as u32));
    }
    whole
}

fn serve(face: Face) -> io::Result<()> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.set_tcp_nodelay(true)?;
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    listener.listen(4096)?;
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    match epoll.add(io::stdin(), EpollEvent::new(EpollFlags::EPOLLIN, STDIN)) {
        // A file or /dev/null: nobody will ask.
        Ok(()) | Err(Errno::EPERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    common::report::ready(&listener);
    let (input, reply) = (vec![0; 64 * 1024], Vec::new());
    let mut server = Server { face, epoll, clients: Vec::new(), input, reply, answered: 0 };
    let mut events = [EpollEvent::empty(); 256];
    loop {
        let n = match server.epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        for event in events.iter().take(n) {
            match event.data() {
                LISTENER => server.accept(&listener)?,
                STDIN if !server.tell()? => return Ok(()),
                STDIN => {}
                place => server.turn(place),
            }
        }
    }
}

impl Server {
    /// One client at a time: level-triggered epoll says so again while others wait.
    fn accept(&mut self, listener: &Socket) -> io::Result<()> {
        let fd = match accept4(listener.as_raw_fd(), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC) {
            Err(Errno::EAGAIN | Errno::ECONNABORTED | Errno::EINTR) => return Ok(()),
            other => other?,
        };
        // SAFETY: accept4 has just made this descriptor, and nobody else has it.
        let socket = unsafe { Socket::from_raw_fd(fd) };
        let place = fd as usize;
        self.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, place as u64))?;
        if self.clients.len() <= place {
            self.clients.resize_with(place + 1, || None);
        }
        if let Some(client) = self.clients.get_mut(place) {
            *client = Some(Client { socket, seen: 0, out: Vec::new() });
        }
        Ok(())
    }

    /// Says how many requests it has answered; false at the end of the input.
    fn tell(&mut self) -> io::Result<bool> {
        let n = io::stdin().read(&mut self.input)?;
        let asked = self.input.get(..n).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count();
        let mut out = io::stdout().lock();
        for _ in 0..asked {
            writeln!(out, "{}", self.answered)?;
        }
        out.flush()?;
        Ok(n > 0)
    }

    /// Reads what is there and answers it, or goes on with an answer; a client that has closed is forgotten.
    fn turn(&mut self, place: u64) {
        let Some(slot) = self.clients.get_mut(place as usize) else { return };
        let Some(client) = slot else { return };
        let done = match client.out.is_empty() {
            true => client.read(&self.face, &mut self.input, &mut self.reply, &mut self.answered),
            false => Ok(()),
        };
        if done.and_then(|()| client.write(&mut self.reply, &self.epoll, place)).is_err() {
            *slot = None;
        }
    }
}

impl Client {
    fn read(&mut self, face: &Face, input: &mut [u8], reply: &mut Vec<u8>, answered: &mut u64) -> io::Result<()> {
        let n = match self.socket.read(input) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let input = input.get(..n).unwrap_or_default();
        match face {
            Face::Echo => {
                reply.extend_from_slice(input);
                *answered += 1;
            }
            Face::Fixed(ask, text) => {
                self.seen += n;
                let requests = self.seen / ask;
                self.seen %= ask;
                (0..requests).for_each(|_| reply.extend_from_slice(text));
                *answered += requests as u64;
            }
            Face::Unp => {
                for byte in input {
                    match byte {
                        b'0'..=b'9' if self.seen <= LONGEST as usize => {
                            self.seen = 10 * self.seen + usize::from(byte - b'0');
                        }
                        b'\n' if self.seen > 0 => {
                            let n = mem::take(&mut self.seen) as u32;
                            let from = reply.len();
                            while reply.len() - from < n as usize {
                                let sent = (reply.len() - from) as u32;
                                reply.extend_from_slice(answer_from(sent, n - sent));
                            }
                            *answered += 1;
                        }
                        _ => return Err(ErrorKind::InvalidData.into()),
                    }
                }
            }
            Face::Http(text) => {
                for byte in input {
                    let next = BLANK.get(self.seen) == Some(byte);
                    self.seen = if next { self.seen + 1 } else { usize::from(*byte == b'\r') };
                    if self.seen == BLANK.len() {
                        self.seen = 0;
                        reply.extend_from_slice(text);
                        *answered += 1;
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends what is left of the last answer, or `reply`; what the kernel does not take is kept, and nothing is read
    /// until it is gone.
    fn write(&mut self, reply: &mut Vec<u8>, epoll: &Epoll, place: u64) -> io::Result<()> {
        let waited = !self.out.is_empty();
        if !waited {
            mem::swap(&mut self.out, reply);
        }
        let mut sent = 0;
        while let Some(rest) = self.out.get(sent..).filter(|rest| !rest.is_empty()) {
            match self.socket.write(rest) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    reply.clear();
                    return Err(error);
                }
            }
        }
        self.out.drain(..sent);
        let waits = !self.out.is_empty();
        if !waits && !waited {
            // The memory goes back to the one buffer of all clients.
            mem::swap(&mut self.out, reply);
        }
        if waits != waited {
            let interest = if waits { EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
            epoll.modify(&self.socket, &mut EpollEvent::new(interest, place))?;
        }
        Ok(())
    }
}

//! A server for very many connections, in a process of its own: descriptors are counted per process.
//!
//! The test program starts itself again with [`ROLE`] in the environment.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};

const ROLE: &str = "CLIENT_TEST_RIG";
const LISTENER: Token = Token(usize::MAX - 1);
const STDIN: Token = Token(usize::MAX - 2);

/// The rig as its user sees it. It ends when this is dropped.
pub struct Rig {
    child: Child,
    stdin: Option<ChildStdin>,
    pub port: String,
}

impl Rig {
    /// Starts this program again, as the rig.
    pub fn start() -> Rig {
        Rig::start_by(&mut Command::new(std::env::current_exe().unwrap()))
    }

    /// Starts this program again, as the rig, by a command that does so in the end.
    pub fn start_by(command: &mut Command) -> Rig {
        let mut child = command.env(ROLE, "1").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let stdin = child.stdin.take();
        Rig { child, stdin, port: port.trim().to_owned() }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        drop(self.stdin.take());
        self.child.wait().ok();
    }
}

/// In the process that shall be the rig: serves until its stdin is closed, and does not return.
pub fn be_the_rig_if_asked() {
    if std::env::var_os(ROLE).is_some() {
        raise_limit();
        serve();
        std::process::exit(0);
    }
}

/// The descriptors this process may have.
pub fn raise_limit() -> u64 {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    hard
}

fn serve() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.listen(1024).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut listener = TcpListener::from_std(socket.into());
    let mut poll = Poll::new().unwrap();
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE).unwrap();
    poll.registry().register(&mut mio::unix::SourceFd(&0), STDIN, Interest::READABLE).unwrap();
    let mut out = std::io::stdout();
    writeln!(out, "{}", listener.local_addr().unwrap().port()).unwrap();
    out.flush().unwrap();

    let mut conns: Vec<Option<TcpStream>> = Vec::new();
    let mut free = Vec::new();
    let mut events = Events::with_capacity(1024);
    let mut buffer = [0; 4096];
    loop {
        match poll.poll(&mut events, None) {
            // signal(7): epoll_wait ends so when the process goes on after a stop.
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result.unwrap(),
        }
        for event in &events {
            match event.token() {
                STDIN => return,
                LISTENER => accept(&listener, &poll, &mut conns, &mut free),
                Token(i) => {
                    if !conns[i].as_mut().is_none_or(|conn| answer(conn, &mut buffer)) {
                        conns[i] = None;
                        free.push(i);
                    }
                }
            }
        }
    }
}

fn accept(listener: &TcpListener, poll: &Poll, conns: &mut Vec<Option<TcpStream>>, free: &mut Vec<usize>) {
    while let Ok((mut conn, _)) = listener.accept() {
        let i = free.pop().unwrap_or(conns.len());
        poll.registry().register(&mut conn, Token(i), Interest::READABLE).unwrap();
        if i == conns.len() {
            conns.push(Some(conn));
        } else {
            conns[i] = Some(conn);
        }
    }
}

/// Answers what has come: requests are short and whole, answers fit into the send buffer. False at the end.
fn answer(conn: &mut TcpStream, buffer: &mut [u8]) -> bool {
    loop {
        match conn.read(buffer) {
            Ok(0) => return false,
            Ok(n) => {
                let line = std::str::from_utf8(&buffer[..n]).unwrap();
                let n: u32 = line.trim_end().parse().unwrap();
                if conn.write(common::service::answer_from(0, n)).is_err() {
                    return false;
                }
            }
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
}

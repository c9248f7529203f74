//! The least that the byte service can cost: one epoll loop, no limits, no deadlines, no log, no stop.
//!
//! Run: cargo run --release -p bench --bin bare-epoll -- -p 0

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd};

use common::service::answer_from;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{SockFlag, accept4};
use socket2::{Domain, Socket, Type};

const LISTENER: u64 = u64::MAX;

struct Client {
    socket: Socket,
    line: [u8; 32],
    len: usize,
    sent: u32,
    left: u32,
}

fn main() -> io::Result<()> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.set_reuse_address(true)?;
    listener.set_tcp_nodelay(true)?;
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    listener.listen(1024)?;
    listener.set_nonblocking(true)?;
    common::report::ready(&listener);

    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut clients: Vec<Option<Client>> = Vec::new();
    let mut events = [EpollEvent::empty(); 256];
    loop {
        let n = match epoll.wait(&mut events, nix::sys::epoll::EpollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        for event in events.iter().take(n) {
            if event.data() == LISTENER {
                accept(&listener, &epoll, &mut clients)?;
            } else if let Some(place) = clients.get_mut(event.data() as usize) {
                let done = place.as_mut().is_none_or(|client| turn(client, &epoll, event.data()).is_err());
                if done {
                    *place = None;
                }
            }
        }
    }
}

/// One client at a time: level-triggered epoll says so again while others wait.
fn accept(listener: &Socket, epoll: &Epoll, clients: &mut Vec<Option<Client>>) -> io::Result<()> {
    let fd = match accept4(listener.as_raw_fd(), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC) {
        Err(Errno::EAGAIN | Errno::ECONNABORTED | Errno::EINTR) => return Ok(()),
        other => other?,
    };
    // SAFETY: accept4 has just made this descriptor, and nobody else has it.
    let socket = unsafe { Socket::from_raw_fd(fd) };
    let place = fd as usize;
    epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, place as u64))?;
    if clients.len() <= place {
        clients.resize_with(place + 1, || None);
    }
    if let Some(client) = clients.get_mut(place) {
        *client = Some(Client { socket, line: [0; 32], len: 0, sent: 0, left: 0 });
    }
    Ok(())
}

/// Reads what is there, answers it; `Err` ends the client.
fn turn(client: &mut Client, epoll: &Epoll, place: u64) -> io::Result<()> {
    let was_waiting = client.left > 0;
    if !was_waiting {
        let room = client.line.get_mut(client.len..).unwrap_or_default();
        match client.socket.read(room)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => client.len += n,
        }
    }
    loop {
        while client.left > 0 {
            match client.socket.write(answer_from(client.sent, client.left)) {
                Ok(n) => (client.sent, client.left) = (client.sent + n as u32, client.left - n as u32),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(epoll.modify(&client.socket, &mut EpollEvent::new(EpollFlags::EPOLLOUT, place))?);
                }
                Err(e) => return Err(e),
            }
        }
        let received = client.line.get(..client.len).unwrap_or_default();
        let Some(end) = received.iter().position(|byte| *byte == b'\n') else { break };
        let digits = received.get(..end).unwrap_or_default();
        let number =
            digits.iter().fold(0u32, |n, digit| n.wrapping_mul(10).wrapping_add(u32::from(digit.wrapping_sub(b'0'))));
        (client.sent, client.left) = (0, number);
        client.line.copy_within(end + 1..client.len, 0);
        client.len -= end + 1;
    }
    if was_waiting {
        epoll.modify(&client.socket, &mut EpollEvent::new(EpollFlags::EPOLLIN, place))?;
    }
    match client.len == client.line.len() {
        true => Err(io::ErrorKind::InvalidData.into()),
        false => Ok(()),
    }
}

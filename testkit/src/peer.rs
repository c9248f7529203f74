//! The client no server likes: split, pipelined, half-closed, reset, silent, never reading.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use crate::server::TIMEOUT;

/// How a connection ended, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The server closed in order.
    Eof,
    /// The server sent a reset.
    Reset,
    /// Nothing came for as long as a test waits.
    Silence,
}

/// One client connection.
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
}

impl Peer {
    /// Connects; every later read is bounded.
    pub fn connect(addr: SocketAddr) -> Peer {
        Peer::try_connect(addr).unwrap_or_else(|e| panic!("connect {addr}: {e}"))
    }

    /// Connects, or says why not.
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn try_connect(addr: SocketAddr) -> io::Result<Peer> {
        let stream = TcpStream::connect_timeout(&addr, TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Peer { stream })
    }

    /// Connects with a receive buffer of a few KiB, set before the handshake so that the window is small too.
    pub fn connect_small_window(addr: SocketAddr) -> Peer {
        let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(2048).unwrap();
        socket.connect(&addr.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Peer { stream }
    }

    /// Sends all of `bytes`.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap_or_else(|e| panic!("send: {e}"));
    }

    /// Sends, or says why not.
    ///
    /// # Errors
    /// Those of send(2).
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Sends one byte of urgent data.
    pub fn send_urgent(&mut self, byte: u8) {
        SockRef::from(&self.stream).send_out_of_band(&[byte]).unwrap();
    }

    /// Sends while somebody else reads.
    pub fn send_in_background(&self, bytes: Vec<u8>, half_close: bool) -> thread::JoinHandle<()> {
        let mut stream = self.stream.try_clone().unwrap();
        thread::spawn(move || {
            // A server that has refused stops reading: the write may fail, and the answer still has to come.
            if stream.write_all(&bytes).is_ok() && half_close {
                let _ = stream.shutdown(Shutdown::Write);
            }
        })
    }

    /// The same connection again, for a reader of its own.
    pub fn second_handle(&self) -> TcpStream {
        self.stream.try_clone().unwrap()
    }

    /// Sends a FIN; reading goes on.
    pub fn half_close(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Closes with a reset.
    pub fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Reads exactly `n` bytes.
    pub fn read_exactly(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        let read = self.stream.read_exact(&mut bytes);
        read.unwrap_or_else(|e| panic!("reading {n} bytes: {e}"));
        bytes
    }

    /// Asks for `n` bytes and checks every one of them.
    pub fn ask(&mut self, n: usize) {
        self.send(format!("{n}\n"));
        let bytes = self.read_exactly(n);
        assert!(bytes == crate::pattern(n), "asked for {n} bytes, and they differ from the pattern");
    }

    /// Asks, and says what went wrong instead of panicking.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn try_ask(&mut self, n: usize) -> Result<(), String> {
        self.try_send(format!("{n}\n")).map_err(|e| format!("send: {e}"))?;
        let mut bytes = vec![0; n];
        self.stream.read_exact(&mut bytes).map_err(|e| format!("reading {n} bytes: {e}"))?;
        match bytes == crate::pattern(n) {
            true => Ok(()),
            false => Err(format!("wrong bytes for {n}: {:?}", String::from_utf8_lossy(&bytes[..n.min(60)]))),
        }
    }

    /// Reads to the end, and says which end it was.
    pub fn read_to_end(&mut self) -> (Vec<u8>, End) {
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 65_536];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return (bytes, End::Eof),
                Ok(n) => bytes.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return (bytes, End::Silence);
                }
                Err(_) => return (bytes, End::Reset),
            }
        }
    }

    /// Bytes that have arrived and are not read: SIOCINQ, tcp(7).
    pub fn unread(&self) -> usize {
        let mut n: libc::c_int = 0;
        // SAFETY: the descriptor is open, and the kernel writes one int.
        let rc = unsafe { libc::ioctl(self.stream.as_raw_fd(), libc::FIONREAD, &mut n) };
        assert_eq!(rc, 0);
        n as usize
    }

    /// The client's own address.
    pub fn addr(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }

    /// True while nothing has come: neither bytes nor an end.
    pub fn is_waiting(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let seen = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).unwrap();
        matches!(seen, Err(e) if e.kind() == ErrorKind::WouldBlock)
    }
}

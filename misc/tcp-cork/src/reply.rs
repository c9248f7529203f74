//! Seven ways to send a header and a body.

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;

use clap::ValueEnum;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use nix::sys::uio::writev;
use socket2::Socket;

pub const HEADER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 26\r\n\r\n";
pub const BODY: &[u8] = b"abcdefghijklmnopqrstuvwxyz";

/// nix does not know it.
const MSG_MORE: MsgFlags = MsgFlags::from_bits_retain(libc::MSG_MORE);

/// How the server sends a reply of two parts
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// Two sends
    TwoWrites,
    /// Two sends, with TCP_NODELAY set
    Nodelay,
    /// One writev with both parts
    Writev,
    /// The first send says that more will come
    MsgMore,
    /// TCP_CORK on, two sends, TCP_CORK off
    Cork,
    /// TCP_CORK on, two sends, and no more
    CorkForgotten,
    /// The last send says that more will come, and none does
    MoreForgotten,
}

/// What is set once, before the first request.
pub fn prepare(conn: &Socket, way: Way) -> io::Result<()> {
    conn.set_tcp_nodelay(way == Way::Nodelay)
}

pub fn reply(conn: &Socket, way: Way) -> io::Result<()> {
    match way {
        // The header leaves at once. Nagle holds the body back until the header is acknowledged, and the client's
        // kernel delays that ACK in the hope of data to send it with.
        Way::TwoWrites | Way::Nodelay => {
            all(conn, HEADER, MsgFlags::empty())?;
            all(conn, BODY, MsgFlags::empty())
        }
        // Nothing is outstanding, so Nagle holds nothing back, and it is one segment.
        Way::Writev => {
            let taken = writev(conn, &[IoSlice::new(HEADER), IoSlice::new(BODY)])?;
            whole(taken, HEADER.len() + BODY.len())
        }
        // TCP_CORK for one call: the header waits for the body.
        Way::MsgMore => {
            all(conn, HEADER, MSG_MORE)?;
            all(conn, BODY, MsgFlags::empty())
        }
        // Only full segments leave, until the cork is drawn. For parts that different calls write: a header with
        // send, then a file with sendfile.
        Way::Cork => {
            conn.set_tcp_cork(true)?;
            all(conn, HEADER, MsgFlags::empty())?;
            all(conn, BODY, MsgFlags::empty())?;
            conn.set_tcp_cork(false)
        }
        // The kernel draws it after 200 ms: the ceiling of tcp(7).
        Way::CorkForgotten => {
            conn.set_tcp_cork(true)?;
            all(conn, HEADER, MsgFlags::empty())?;
            all(conn, BODY, MsgFlags::empty())
        }
        // The body waits for more, and leaves with the ACK of the header or at the ceiling.
        Way::MoreForgotten => {
            all(conn, HEADER, MsgFlags::empty())?;
            all(conn, BODY, MSG_MORE)
        }
    }
}

/// A handful of bytes into an empty buffer: the kernel takes them all, or something is wrong.
fn all(conn: &Socket, bytes: &[u8], flags: MsgFlags) -> io::Result<()> {
    match send(conn.as_raw_fd(), bytes, flags | MsgFlags::MSG_NOSIGNAL) {
        Ok(taken) => whole(taken, bytes.len()),
        Err(Errno::EINTR) => all(conn, bytes, flags),
        Err(e) => Err(e.into()),
    }
}

fn whole(taken: usize, wanted: usize) -> io::Result<()> {
    match taken == wanted {
        true => Ok(()),
        false => Err(io::Error::other(format!("the kernel took {taken} of {wanted} bytes"))),
    }
}

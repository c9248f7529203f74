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

/// nix has no constant for this flag.
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
    /// Two sends, the first with MSG_MORE
    MsgMore,
    /// TCP_CORK on, two sends, TCP_CORK off
    Cork,
    /// TCP_CORK on, two sends; TCP_CORK stays on
    CorkForgotten,
    /// Two sends, the last with MSG_MORE
    MoreForgotten,
}

/// Sets options once, before the first request.
pub fn prepare(conn: &Socket, way: Way) -> io::Result<()> {
    conn.set_tcp_nodelay(way == Way::Nodelay)
}

/// Sends the header and the body.
pub fn reply(conn: &Socket, way: Way) -> io::Result<()> {
    match way {
        // The kernel sends the header at once. Nagle delays the body until the ACK of the header,
        // and the client's kernel delays that ACK, because data could carry it.
        Way::TwoWrites | Way::Nodelay => {
            send_all(conn, HEADER, MsgFlags::empty())?;
            send_all(conn, BODY, MsgFlags::empty())
        }
        // Nagle does not delay it, because no data is unacknowledged. It is one segment.
        Way::Writev => {
            let sent = writev(conn, &[IoSlice::new(HEADER), IoSlice::new(BODY)])?;
            check_sent(sent, HEADER.len() + BODY.len())
        }
        // The same as TCP_CORK, for one call: the header waits for the body.
        Way::MsgMore => {
            send_all(conn, HEADER, MSG_MORE)?;
            send_all(conn, BODY, MsgFlags::empty())
        }
        // The kernel sends only full segments until the option is off. For parts of different
        // calls: a header with send, then a file with sendfile.
        Way::Cork => {
            conn.set_tcp_cork(true)?;
            send_all(conn, HEADER, MsgFlags::empty())?;
            send_all(conn, BODY, MsgFlags::empty())?;
            conn.set_tcp_cork(false)
        }
        // The kernel sends the data after 200 ms, see TCP_CORK in tcp(7).
        Way::CorkForgotten => {
            conn.set_tcp_cork(true)?;
            send_all(conn, HEADER, MsgFlags::empty())?;
            send_all(conn, BODY, MsgFlags::empty())
        }
        // The body waits for more data, for the ACK of the header, or for 200 ms.
        Way::MoreForgotten => {
            send_all(conn, HEADER, MsgFlags::empty())?;
            send_all(conn, BODY, MSG_MORE)
        }
    }
}

/// Sends all bytes with one call: the send buffer is empty.
fn send_all(conn: &Socket, bytes: &[u8], flags: MsgFlags) -> io::Result<()> {
    match send(conn.as_raw_fd(), bytes, flags | MsgFlags::MSG_NOSIGNAL) {
        Ok(sent) => check_sent(sent, bytes.len()),
        Err(Errno::EINTR) => send_all(conn, bytes, flags),
        Err(e) => Err(e.into()),
    }
}

fn check_sent(sent: usize, wanted: usize) -> io::Result<()> {
    match sent == wanted {
        true => Ok(()),
        false => Err(io::Error::other(format!("sent {sent} of {wanted} bytes"))),
    }
}

//! The bus: one pair of Unix sockets of the type SOCK_SEQPACKET. Parent and workers write, the hub reads.
//!
//! A record is written whole and read whole, whoever writes at the same time (unix(7)); a full bus makes the writer
//! wait; when the last writer is gone the reader sees the end; nothing has a name that must be cleaned up; and a
//! descriptor can travel with the words, in their order.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use chat::{ConnId, Event, Why};
use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

/// A tag, a client's number, a text. Longer than this is no record: an escaped line takes at most 4 KiB.
const RECORD: usize = 8 * 1024;
const HEADER: usize = 1 + size_of::<ConnId>();

/// One message.
#[derive(Debug)]
pub struct Record {
    pub tag: Tag,
    pub id: ConnId,
    pub text: String,
}

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tag {
    /// From a worker: a client; its address is the text, and its descriptor comes along.
    Joined = b'J',
    /// From the parent, with a descriptor: a client that gets no worker.
    Refused = b'R',
    /// From a worker: a line.
    Line = b'L',
    NotUtf8 = b'U',
    TooLong = b'T',
    TooFast = b'F',
    /// From a worker: the end of what the client sends.
    Closed = b'C',
    Lost = b'X',
    /// From the parent: the worker is dead, whatever it died of.
    Dead = b'D',
    /// From the hub to the parent: the client's descriptor did not arrive.
    NoRoom = b'N',
}

const TAGS: [Tag; 10] = [
    Tag::Joined,
    Tag::Refused,
    Tag::Line,
    Tag::NotUtf8,
    Tag::TooLong,
    Tag::TooFast,
    Tag::Closed,
    Tag::Lost,
    Tag::Dead,
    Tag::NoRoom,
];

/// What came out of the bus.
#[derive(Debug)]
pub enum Received {
    Record(Record, Option<OwnedFd>),
    /// The record is here, and the descriptor that came with it is not: this process has no number left for it.
    NoDescriptor(Record),
    /// Nobody is left to write.
    End,
}

/// A control message with room for exactly one descriptor, as cmsg(3) lays it out.
#[repr(C)]
struct OneDescriptor {
    header: libc::cmsghdr,
    fd: RawFd,
}

/// The two ends: the hub's and everybody else's.
pub fn pair() -> io::Result<(Socket, Socket)> {
    Socket::pair(Domain::UNIX, Type::SEQPACKET, None)
}

impl Record {
    pub fn new(tag: Tag, id: ConnId) -> Record {
        Record { tag, id, text: String::new() }
    }

    /// What a client's input says, on its way to the hub.
    pub fn of(id: ConnId, event: Event) -> Option<Record> {
        let tag = match event {
            Event::Line(text) => return Some(Record { tag: Tag::Line, id, text }),
            Event::NotUtf8 => Tag::NotUtf8,
            Event::TooLong => Tag::TooLong,
            Event::TooFast => Tag::TooFast,
            _ => return None,
        };
        Some(Record::new(tag, id))
    }

    /// And out of it again. `None`: this record says no more than that something is over, or is not for the room.
    pub fn event(self) -> Option<Event> {
        Some(match self.tag {
            Tag::Line => Event::Line(self.text),
            Tag::NotUtf8 => Event::NotUtf8,
            Tag::TooLong => Event::TooLong,
            Tag::TooFast => Event::TooFast,
            Tag::Closed => Event::Gone(Why::Closed),
            Tag::Lost => Event::Gone(Why::Lost),
            Tag::Dead => Event::Gone(Why::Crashed),
            Tag::Joined => Event::Connected(self.text.parse().ok()?),
            Tag::Refused | Tag::NoRoom => return None,
        })
    }

    /// Never empty: a record of no bytes reads exactly like the end of the bus.
    fn bytes(&self) -> Vec<u8> {
        [&[self.tag as u8], self.id.to_le_bytes().as_slice(), self.text.as_bytes()].concat()
    }

    fn parse(bytes: &[u8]) -> Option<Record> {
        let (header, text) = bytes.split_at_checked(HEADER)?;
        let (tag, id) = header.split_first()?;
        let tag = TAGS.into_iter().find(|known| *known as u8 == *tag)?;
        Some(Record { tag, id: ConnId::from_le_bytes(id.try_into().ok()?), text: String::from_utf8(text.into()).ok()? })
    }
}

/// Writes a record, and a copy of a descriptor with it. `flags`: MSG_DONTWAIT for whoever must not wait for the hub. It
/// is a flag of the call and not O_NONBLOCK, since that would belong to the open file, which all writers share.
pub fn send(bus: &Socket, record: &Record, fd: Option<&Socket>, flags: libc::c_int) -> io::Result<()> {
    let mut bytes = record.bytes();
    let mut data = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control = one_descriptor();
    let mut message = message(&mut data);
    if let Some(fd) = fd {
        (control.header.cmsg_level, control.header.cmsg_type) = (libc::SOL_SOCKET, libc::SCM_RIGHTS);
        control.fd = fd.as_raw_fd();
        (message.msg_control, message.msg_controllen) = (ptr::from_mut(&mut control).cast(), control.header.cmsg_len);
    }
    loop {
        // SAFETY: the message points at a record and a control block that outlive the call.
        match unsafe { libc::sendmsg(bus.as_raw_fd(), &message, flags | libc::MSG_NOSIGNAL) } {
            0.. => return Ok(()),
            _ if Errno::last() == Errno::EINTR => {}
            _ => return Err(io::Error::last_os_error()),
        }
    }
}

/// Reads a record, and the descriptor that came with it.
pub fn receive(bus: &Socket) -> io::Result<Received> {
    let mut bytes = [0u8; RECORD];
    let mut data = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control = one_descriptor();
    let mut message = message(&mut data);
    (message.msg_control, message.msg_controllen) = (ptr::from_mut(&mut control).cast(), control.header.cmsg_len);
    // SAFETY: as in `send`; the kernel writes at most the lengths that the message states.
    let n = unsafe { libc::recvmsg(bus.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) };
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    if n == 0 {
        return Ok(Received::End);
    }
    let rights = (control.header.cmsg_level, control.header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS);
    // SAFETY: the kernel has just installed this number for us, and nobody else knows it.
    let fd = (rights && control.fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(control.fd) });
    // MSG_TRUNC: the record was longer than the buffer, and the rest of it is lost.
    let whole = message.msg_flags & libc::MSG_TRUNC == 0;
    let record = bytes.get(..n).filter(|_| whole).and_then(Record::parse);
    let record = record.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no record of ours"))?;
    // MSG_CTRUNC: the kernel has left something out. Who does not look finds in the control block what was there before.
    Ok(match message.msg_flags & libc::MSG_CTRUNC != 0 {
        true => Received::NoDescriptor(record),
        false => Received::Record(record, fd),
    })
}

fn one_descriptor() -> OneDescriptor {
    // SAFETY: only arithmetic.
    let cmsg_len = unsafe { libc::CMSG_LEN(size_of::<RawFd>() as u32) } as usize;
    OneDescriptor { header: libc::cmsghdr { cmsg_len, cmsg_level: 0, cmsg_type: 0 }, fd: -1 }
}

fn message(data: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: all zero bytes are an empty msghdr.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (data, 1);
    message
}

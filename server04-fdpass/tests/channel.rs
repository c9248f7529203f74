//! Tests of src/fd_channel.rs on a socket pair, without a server.
#![allow(clippy::panic, clippy::unwrap_used)] // test code

#[path = "../src/fd_channel.rs"]
mod fd_channel;

use std::fs::File;
use std::io::{IoSlice, PipeReader, Read, Seek, Write, pipe};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use fd_channel::{Received, recv_fd, send_fd};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use socket2::{Domain, Socket, Type};

fn channel(kind: Type) -> (Socket, Socket) {
    Socket::pair(Domain::UNIX, kind, None).unwrap()
}

fn received(channel: &Socket) -> OwnedFd {
    match recv_fd(channel).unwrap() {
        Received::Descriptor(fd) => fd,
        other => panic!("no descriptor but {}", name(&other)),
    }
}

fn name(received: &Received) -> &'static str {
    match received {
        Received::Descriptor(_) => "Descriptor",
        Received::Truncated => "Truncated",
        Received::Unexpected => "Unexpected",
        Received::EndOfFile => "EndOfFile",
    }
}

fn forge(channel: &Socket, bytes: &[u8], fds: &[RawFd]) {
    let rights = [ControlMessage::ScmRights(fds)];
    let rights = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    sendmsg::<()>(channel.as_raw_fd(), &[IoSlice::new(bytes)], rights, MsgFlags::empty(), None)
        .unwrap();
}

/// True if every copy of the writing end is closed.
fn ended(mut reader: PipeReader) -> bool {
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    matches!(reader.read(&mut [0]), Ok(0))
}

#[test]
fn receiver_gets_a_new_number_for_the_same_open_file() {
    let (parent, worker) = channel(Type::SEQPACKET);
    let mut file = File::from(memfd_create("file", MFdFlags::MFD_CLOEXEC).unwrap());
    file.write_all(b"abcdef").unwrap();
    file.rewind().unwrap();
    send_fd(&parent, &file).unwrap();
    let mut copy = File::from(received(&worker));
    assert_ne!(copy.as_raw_fd(), file.as_raw_fd(), "the receiver gets a number of its own");
    copy.read_exact(&mut [0; 2]).unwrap();
    assert_eq!(file.stream_position().unwrap(), 2, "both share the offset");
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let flags = OFlag::from_bits_retain(fcntl(&copy, FcntlArg::F_GETFL).unwrap());
    assert!(flags.contains(OFlag::O_NONBLOCK), "both share the status flags");
    assert_eq!(
        fcntl(&copy, FcntlArg::F_GETFD).unwrap(),
        FdFlag::FD_CLOEXEC.bits(),
        "MSG_CMSG_CLOEXEC"
    );
}

#[test]
fn file_stays_open_while_the_message_is_in_the_channel() {
    let (parent, worker) = channel(Type::SEQPACKET);
    let (mut reader, writer) = pipe().unwrap();
    send_fd(&parent, &writer).unwrap();
    drop((writer, parent));
    File::from(received(&worker)).write_all(b"x").unwrap();
    assert_eq!(reader.read(&mut [0; 2]).unwrap(), 1);
    assert!(matches!(recv_fd(&worker), Ok(Received::EndOfFile)));
}

#[test]
fn descriptor_in_a_closed_channel_is_closed() {
    let (parent, worker) = channel(Type::SEQPACKET);
    let (reader, writer) = pipe().unwrap();
    send_fd(&parent, &writer).unwrap();
    drop((writer, worker));
    assert!(ended(reader), "the client of a killed worker would never read end of file");
    // ECONNRESET: the other end was closed with an unread message. EPIPE: it is closed.
    assert_eq!(recv_fd(&parent).err().and_then(|e| e.raw_os_error()), Some(libc::ECONNRESET));
    let (_, writer) = pipe().unwrap();
    assert_eq!(send_fd(&parent, &writer).err().and_then(|e| e.raw_os_error()), Some(libc::EPIPE));
}

/// D16: `recv_fd` returns no descriptor for these messages, closes what they carry, and goes on.
#[test]
fn forged_message_yields_no_descriptor_and_leaks_none() {
    let (parent, worker) = channel(Type::SEQPACKET);
    let forgeries: [(&[u8], usize); 6] =
        [(b"h", 0), (b"x", 0), (b"hhh", 0), (b"x", 1), (b"h", 2), (b"h", 5)];
    for (bytes, count) in forgeries {
        let (reader, writer) = pipe().unwrap();
        forge(&parent, bytes, &vec![writer.as_raw_fd(); count]);
        drop(writer);
        let got = recv_fd(&worker).unwrap();
        assert_eq!(name(&got), "Unexpected", "{count} descriptors with {}", bytes.escape_ascii());
        drop(got);
        assert!(
            ended(reader),
            "{count} descriptors with {}: a descriptor is still open",
            bytes.escape_ascii()
        );
    }
    let (_reader, writer) = pipe().unwrap();
    send_fd(&parent, &writer).unwrap();
    received(&worker);
}

/// The kernel does not merge messages that carry descriptors, not even on a stream socket.
#[test]
fn two_messages_are_received_one_by_one() {
    for kind in [Type::STREAM, Type::SEQPACKET] {
        let (parent, worker) = channel(kind);
        let (reader, writer) = pipe().unwrap();
        send_fd(&parent, &reader).unwrap();
        send_fd(&parent, &writer).unwrap();
        let (mut reader, mut writer) =
            (File::from(received(&worker)), File::from(received(&worker)));
        writer.write_all(b"x").unwrap();
        assert_eq!(reader.read(&mut [0; 2]).unwrap(), 1);
    }
}

//! Kernel truth (l): what SCM_RIGHTS carries and what it drops. The tests call sendmsg and recvmsg
//! on socket pairs. `src/fd_channel.rs` relies on these results.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // test code
#![allow(clippy::print_stderr)]

use std::fs::File;
use std::io::{IoSlice, PipeReader, Read, Seek, Write, pipe};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use socket2::{Domain, Socket, Type};
use testkit::{procs, tools};

fn channel() -> (Socket, Socket) {
    let (here, there) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
    there.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (here, there)
}

fn send(channel: &Socket, bytes: &[u8], fds: &[RawFd]) -> nix::Result<usize> {
    let rights = [ControlMessage::ScmRights(fds)];
    sendmsg::<()>(
        channel.as_raw_fd(),
        &[IoSlice::new(bytes)],
        &rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
}

/// The result of one recvmsg: the bytes, the descriptors, msg_flags.
struct Message {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    flags: MsgFlags,
}

/// Receives with room for `bytes` bytes and for exactly `fds` descriptors. A buffer of CMSG_SPACE
/// bytes ends in padding, and the kernel would put one more descriptor there.
fn receive(channel: &Socket, bytes: usize, fds: usize, flags: MsgFlags) -> Message {
    let (mut data, mut control) = (vec![0; bytes], [0_u64; 16]);
    let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: bytes };
    // SAFETY: a msghdr of zero bytes is valid and empty.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    (message.msg_iov, message.msg_iovlen, message.msg_control) =
        (&mut part, 1, control.as_mut_ptr().cast());
    // SAFETY: CMSG_LEN only calculates.
    message.msg_controllen = unsafe { libc::CMSG_LEN((fds * size_of::<RawFd>()) as u32) } as usize;
    assert!(message.msg_controllen <= size_of_val(&control));
    // SAFETY: the message points to memory that outlives the call, and states its length.
    let n = unsafe { libc::recvmsg(channel.as_raw_fd(), &mut message, flags.bits()) };
    data.truncate(Errno::result(n).unwrap() as usize);
    Message {
        bytes: data,
        fds: rights(&message),
        flags: MsgFlags::from_bits_retain(message.msg_flags),
    }
}

/// The descriptors of the first control message. These tests send only one.
fn rights(message: &libc::msghdr) -> Vec<OwnedFd> {
    // SAFETY: the kernel has filled the control buffer up to msg_controllen.
    let header = unsafe { libc::CMSG_FIRSTHDR(message) };
    if header.is_null() {
        return Vec::new();
    }
    // SAFETY: `header` points into the buffer, which is aligned for it.
    let length = unsafe { (*header).cmsg_len };
    // SAFETY: CMSG_LEN only calculates.
    let (start, empty) =
        (unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>(), unsafe { libc::CMSG_LEN(0) } as usize);
    // SAFETY: the header states how many numbers follow it.
    let numbers =
        unsafe { std::slice::from_raw_parts(start, (length - empty) / size_of::<RawFd>()) };
    // SAFETY: the kernel has just made these descriptors, and no other code owns them.
    numbers.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }).collect()
}

/// True if every copy of the writing end is closed.
fn ended(reader: &mut PipeReader) -> bool {
    fcntl(&*reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    matches!(reader.read(&mut [0]), Ok(0))
}

#[test]
fn truth_l_message_carries_the_open_file_description() {
    let (here, there) = channel();
    let mut file = File::from(memfd_create("file", MFdFlags::MFD_CLOEXEC).unwrap());
    file.write_all(b"abcdef").unwrap();
    file.rewind().unwrap();
    send(&here, b"x", &[file.as_raw_fd()]).unwrap();
    let mut copy = File::from(receive(&there, 1, 1, MsgFlags::empty()).fds.remove(0));
    assert_ne!(copy.as_raw_fd(), file.as_raw_fd(), "the receiver gets a number of its own");
    copy.read_exact(&mut [0; 2]).unwrap();
    assert_eq!(file.stream_position().unwrap(), 2, "the offset is shared");
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let flags = OFlag::from_bits_retain(fcntl(&copy, FcntlArg::F_GETFL).unwrap());
    assert!(flags.contains(OFlag::O_NONBLOCK), "O_NONBLOCK is shared");
}

#[test]
fn truth_l_descriptor_arrives_after_its_sender_has_closed_it() {
    let (here, there) = channel();
    let (mut reader, writer) = pipe().unwrap();
    send(&here, b"x", &[writer.as_raw_fd()]).unwrap();
    drop((writer, here));
    let mut copy = File::from(receive(&there, 1, 1, MsgFlags::empty()).fds.remove(0));
    copy.write_all(b"y").unwrap();
    assert_eq!(reader.read(&mut [0; 2]).unwrap(), 1);
}

#[test]
fn truth_l_close_on_exec_is_set_only_with_msg_cmsg_cloexec() {
    let (here, there) = channel();
    // Close-on-exec is a flag of the sender's descriptor. The message does not carry it.
    let file = File::from(memfd_create("file", MFdFlags::MFD_CLOEXEC).unwrap());
    for (flags, wanted) in
        [(MsgFlags::empty(), 0), (MsgFlags::MSG_CMSG_CLOEXEC, FdFlag::FD_CLOEXEC.bits())]
    {
        send(&here, b"x", &[file.as_raw_fd()]).unwrap();
        let copy = receive(&there, 1, 1, flags).fds.remove(0);
        assert_eq!(fcntl(&copy, FcntlArg::F_GETFD).unwrap(), wanted, "{flags:?}");
    }
}

#[test]
fn truth_l_stream_delivers_no_descriptor_without_data() {
    let (here, there) = channel();
    let (mut reader, writer) = pipe().unwrap();
    assert_eq!(send(&here, b"", &[writer.as_raw_fd()]), Ok(0), "sendmsg reports no error");
    drop(writer);
    assert!(ended(&mut reader), "the descriptor is not in flight");
    assert_eq!(recv(there.as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT), Err(Errno::EAGAIN));
}

#[test]
fn truth_l_descriptor_without_room_is_closed_and_sets_msg_ctrunc() {
    let (here, there) = channel();
    let ((mut first, one), (mut second, two)) = (pipe().unwrap(), pipe().unwrap());
    send(&here, b"x", &[one.as_raw_fd(), two.as_raw_fd()]).unwrap();
    drop((one, two));
    let message = receive(&there, 1, 1, MsgFlags::empty());
    assert_eq!((message.bytes.as_slice(), message.fds.len()), (&b"x"[..], 1));
    assert!(message.flags.contains(MsgFlags::MSG_CTRUNC), "{:?}", message.flags);
    assert!(!ended(&mut first), "the first one arrived");
    assert!(ended(&mut second), "the kernel closed the second one");
}

#[test]
fn truth_l_recv_closes_descriptors_and_returns_no_error() {
    let (here, there) = channel();
    let (mut reader, writer) = pipe().unwrap();
    send(&here, b"x", &[writer.as_raw_fd()]).unwrap();
    drop(writer);
    assert!(!ended(&mut reader), "the descriptor is in flight");
    assert_eq!(recv(there.as_raw_fd(), &mut [0; 8], MsgFlags::empty()), Ok(1));
    assert!(ended(&mut reader));
}

/// Each recvmsg has room for all bytes and all descriptors. Without descriptors, one recvmsg
/// returns the bytes of both sends.
#[test]
fn truth_l_messages_with_descriptors_are_not_merged() {
    let (here, there) = channel();
    let (reader, _writer) = pipe().unwrap();
    for bytes in [b"A", b"B"] {
        send(&here, bytes, &[reader.as_raw_fd()]).unwrap();
    }
    for bytes in [b"A", b"B"] {
        let message = receive(&there, 8, 8, MsgFlags::empty());
        assert_eq!((message.bytes.as_slice(), message.fds.len()), (&bytes[..], 1));
    }
    for bytes in [b"A", b"B"] {
        (&here).write_all(bytes).unwrap();
    }
    assert_eq!(receive(&there, 8, 8, MsgFlags::empty()).bytes, b"AB");
}

/// The descriptors in flight of one user must not exceed RLIMIT_NOFILE of the sender. The limit
/// does not apply to root, so the test runs itself again in a user namespace.
#[test]
fn truth_l_too_many_descriptors_in_flight_fail_with_etoomanyrefs() {
    const TEST: &str = "truth_l_too_many_descriptors_in_flight_fail_with_etoomanyrefs";
    const LIMIT: u64 = 64;
    if std::env::var("IN_FLIGHT").is_err() {
        let Some(mut again) = tools::own_network(TEST) else { return };
        again.arg(std::env::current_exe().unwrap()).args(["--exact", TEST, "--nocapture"]);
        let output = again.env("IN_FLIGHT", "1").output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let (here, there) = channel();
    let (reader, _writer) = pipe().unwrap();
    procs::limit_descriptors(std::process::id() as i32, LIMIT);
    let sent = (0..200)
        .map(|_| send(&here, b"x", &[reader.as_raw_fd()]))
        .take_while(Result::is_ok)
        .count();
    assert_eq!(send(&here, b"x", &[reader.as_raw_fd()]), Err(Errno::ETOOMANYREFS));
    eprintln!("{sent} descriptors in flight at a limit of {LIMIT}");
    // The kernel checks the limit before it counts the new descriptor. Another process of the same
    // user may have descriptors in flight too.
    assert!((32..=LIMIT as usize + 1).contains(&sent), "{sent}");
    // A descriptor that has been received is no longer in flight.
    receive(&there, 1, 1, MsgFlags::empty());
    assert_eq!(send(&here, b"x", &[reader.as_raw_fd()]), Ok(1));
}

//! Kernel truth (k): what a multishot request is, when it ends, and which of several rings gets a
//! connection.
// This is test code: a failed expectation is a panic.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use testkit::eventually;

const BUFFERS: u16 = 4;
const BUFFER: usize = 16;
const GROUP: u16 = 3;

/// A ring. Without io_uring the test is reported as skipped, or fails if all tests are required.
fn ring(test: &str) -> Option<IoUring> {
    match IoUring::new(16) {
        Ok(ring) => Some(ring),
        Err(e) => {
            let is_required = std::env::var("REQUIRE_ALL_TESTS").as_deref() == Ok("1");
            assert!(!is_required, "{test} cannot run: io_uring_setup: {e}");
            eprintln!("SKIPPED: {test}: io_uring_setup: {e}");
            None
        }
    }
}

/// A completion: the result, and whether the request will have more completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Completion {
    result: i32,
    more: bool,
    buffer: Option<u16>,
}

fn submit(ring: &mut IoUring, request: &squeue::Entry) {
    // SAFETY: the memory that the requests of this file name lives as long as the ring.
    unsafe { ring.submission().push(request) }.unwrap();
    ring.submit().unwrap();
}

/// The next completion, if one arrives within `limit`.
fn next_within(ring: &mut IoUring, limit: Duration) -> Option<Completion> {
    if ring.completion().is_empty() {
        let timeout = Timespec::from(limit);
        match ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timeout)) {
            Ok(_) => {}
            Err(e) => assert!(matches!(e.raw_os_error(), Some(libc::ETIME | libc::EINTR)), "{e}"),
        }
    }
    let entry = ring.completion().next()?;
    let (result, flags) = (entry.result(), entry.flags());
    Some(Completion { result, more: cqueue::more(flags), buffer: cqueue::buffer_select(flags) })
}

fn next(ring: &mut IoUring) -> Completion {
    next_within(ring, testkit::TIMEOUT).unwrap()
}

/// True if no completion arrives although the kernel has time for one.
fn silence(ring: &mut IoUring) -> bool {
    next_within(ring, Duration::from_millis(200)).is_none()
}

fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = listener();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_nodelay(true).unwrap();
    (client, listener.accept().unwrap().0)
}

/// Closes the descriptor that an accept request has returned.
fn close(fd: i32) {
    assert!(fd >= 0, "accept: {}", std::io::Error::from_raw_os_error(-fd));
    // SAFETY: the kernel has just created this descriptor, and nothing else uses it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}

#[test]
fn truth_k_one_request_accepts_five_and_says_that_more_will_come() {
    let Some(mut ring) = ring("truth_k_one_request_accepts_five_and_says_that_more_will_come")
    else {
        return;
    };
    let listener = listener();
    submit(&mut ring, &opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).build());
    for _ in 0..5 {
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = next(&mut ring);
        assert!(accepted.more, "{accepted:?}");
        close(accepted.result);
    }
    assert!(silence(&mut ring));
}

/// After an error the request has ended: the program has to submit a new one.
#[test]
fn truth_k_an_error_is_the_end_of_a_multishot_accept() {
    let Some(mut ring) = ring("truth_k_an_error_is_the_end_of_a_multishot_accept") else { return };
    let listener = listener();
    submit(&mut ring, &opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).build());
    // SAFETY: the listener is open.
    assert_eq!(unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RD) }, 0);
    let ended = next(&mut ring);
    assert_eq!((ended.result, ended.more), (-libc::EINVAL, false));
}

/// A one-shot request has exactly one completion.
#[test]
fn truth_k_a_one_shot_accept_takes_one() {
    let Some(mut ring) = ring("truth_k_a_one_shot_accept_takes_one") else { return };
    let listener = listener();
    submit(&mut ring, &accept_one(listener.as_raw_fd()));
    let _clients = [(); 2].map(|()| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    let accepted = next(&mut ring);
    assert!(!accepted.more, "{accepted:?}");
    close(accepted.result);
    assert!(silence(&mut ring), "the second connection waits");
}

fn accept_one(listener: RawFd) -> squeue::Entry {
    opcode::Accept::new(Fd(listener), std::ptr::null_mut(), std::ptr::null_mut()).build()
}

/// Provides `count` buffers of the group, beginning with `first`.
fn provide(ring: &mut IoUring, memory: &mut [u8], first: u16, count: u16) {
    let at = memory[usize::from(first) * BUFFER..].as_mut_ptr();
    submit(ring, &opcode::ProvideBuffers::new(at, BUFFER as i32, count, GROUP, first).build());
    let provided = next(ring);
    assert!(
        provided.result >= 0,
        "provide: {}",
        std::io::Error::from_raw_os_error(-provided.result)
    );
}

#[test]
fn truth_k_a_multishot_recv_ends_with_enobufs_after_as_many_completions_as_buffers() {
    let test = "truth_k_a_multishot_recv_ends_with_enobufs_after_as_many_completions_as_buffers";
    let Some(mut ring) = ring(test) else { return };
    let mut memory = vec![0; usize::from(BUFFERS) * BUFFER];
    provide(&mut ring, &mut memory, 0, BUFFERS);
    let (mut client, conn) = pair();
    let receive = opcode::RecvMulti::new(Fd(conn.as_raw_fd()), GROUP).build();
    submit(&mut ring, &receive);
    for message in 0..BUFFERS {
        client.write_all(&[b'a' + message as u8; 4]).unwrap();
        let received = next(&mut ring);
        assert_eq!((received.result, received.more), (4, true), "message {message}");
        let at = usize::from(received.buffer.unwrap()) * BUFFER;
        assert_eq!(memory[at..at + 4], [b'a' + message as u8; 4]);
    }
    client.write_all(b"late").unwrap();
    let ended = next(&mut ring);
    assert_eq!((ended.result, ended.more, ended.buffer), (-libc::ENOBUFS, false, None));

    // The bytes are still in the socket: a new buffer and a new request receive them.
    assert!(silence(&mut ring), "the request has ended");
    provide(&mut ring, &mut memory, 2, 1);
    submit(&mut ring, &receive);
    let received = next(&mut ring);
    assert_eq!((received.result, received.buffer), (4, Some(2)));
    assert_eq!(memory[2 * BUFFER..2 * BUFFER + 4], *b"late");
    drop((client, conn, ring)); // the ring before the memory that it uses
    drop(memory);
}

#[test]
fn truth_k_close_does_not_cancel_a_recv_in_flight() {
    let Some(mut ring) = ring("truth_k_close_does_not_cancel_a_recv_in_flight") else { return };
    let (mut client, conn) = pair();
    let mut buffer = vec![0; BUFFER];
    let fd = conn.into_raw_fd();
    submit(&mut ring, &opcode::Recv::new(Fd(fd), buffer.as_mut_ptr(), BUFFER as u32).build());
    // SAFETY: only this test uses this descriptor.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    assert!(silence(&mut ring), "the request keeps the file open");
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(client.read(&mut [0]).is_err(), "so the client has not read end of file");
    client.write_all(b"late").unwrap();
    assert_eq!(next(&mut ring).result, 4, "delivered to a descriptor that is closed");
    assert_eq!(buffer[..4], *b"late");
    // The request has completed, and with it the last reference is gone.
    eventually("the client reads end of file", || {
        matches!(client.read(&mut [0]), Ok(0)).then_some(())
    });
}

/// Makes connections one after the other. Returns the letter of the ring that accepted each one. A
/// one-shot request is submitted again.
fn order(test: &str, multishot: bool, connections: usize) -> Option<String> {
    let listener = listener();
    let request = match multishot {
        true => opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).build(),
        false => accept_one(listener.as_raw_fd()),
    };
    let mut rings: Vec<IoUring> = Vec::new();
    for _ in 0..4 {
        rings.push(ring(test)?);
        submit(rings.last_mut().unwrap(), &request);
    }
    let mut order = String::new();
    for _ in 0..connections {
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (letter, accepted) = eventually("one ring has accepted it", || {
            let mut letters = ('A'..).zip(&mut rings);
            letters.find_map(|(letter, ring)| Some((letter, next_within(ring, Duration::ZERO)?)))
        });
        close(accepted.result);
        assert_eq!(accepted.more, multishot);
        if !multishot {
            submit(&mut rings[letter as usize - 'A' as usize], &request);
        }
        order.push(letter);
    }
    assert!(
        rings.iter_mut().all(|ring| next_within(ring, Duration::ZERO).is_none()),
        "each connection is accepted once"
    );
    Some(order)
}

#[test]
fn truth_k_of_four_rings_with_multishot_accept_the_first_takes_all() {
    let test = "truth_k_of_four_rings_with_multishot_accept_the_first_takes_all";
    let Some(order) = order(test, true, 40) else { return };
    assert_eq!(order, "A".repeat(40));
}

#[test]
fn truth_k_four_rings_with_one_shot_accepts_take_turns() {
    let Some(order) = order("truth_k_four_rings_with_one_shot_accepts_take_turns", false, 40)
    else {
        return;
    };
    assert_eq!(order, "ABCD".repeat(10));
}

//! The least that a connection can cost a client: the book's loop of blocking calls, with a process for each child and
//! nothing else. No times, no checks, no timeouts: a short answer ends it with status 1.
//!
//! Run: cargo run --release -p bench --bin bare-client -- 127.0.0.1 2000 10 500 3000

use std::mem::size_of;
use std::net::SocketAddrV4;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [host, port, children, tries, bytes] = args.as_slice() else { return ExitCode::from(2) };
    let addr = format!("{host}:{port}").parse::<SocketAddrV4>();
    let numbers = (children.parse::<u32>(), tries.parse::<u32>(), bytes.parse::<u32>());
    let (Ok(addr), (Ok(children), Ok(tries), Ok(bytes))) = (addr, numbers) else { return ExitCode::from(2) };
    let request = format!("{bytes}\n");
    let mut good = true;
    let mut started = 0;
    for _ in 0..children {
        // SAFETY: this process has one thread, so the child may go on as if nothing had happened.
        match unsafe { libc::fork() } {
            0 => {
                let done = (0..tries).all(|_| connection(addr, request.as_bytes(), bytes as usize));
                return if done { ExitCode::SUCCESS } else { ExitCode::FAILURE };
            }
            -1 => good = false,
            _ => started += 1,
        }
    }
    for _ in 0..started {
        let mut status = 0;
        // SAFETY: the status is valid for writes.
        let pid = unsafe { libc::wait(&raw mut status) };
        good &= pid > 0 && status == 0;
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One connection: a request, its answer to the last byte, close. False where a call fails or the answer is short.
fn connection(addr: SocketAddrV4, request: &[u8], bytes: usize) -> bool {
    let peer = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: addr.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(addr.ip().octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
    let size = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: the address is valid for reads of its size.
    let connected = fd >= 0 && unsafe { libc::connect(fd, (&raw const peer).cast(), size) } == 0;
    // SAFETY: the request is valid for reads of its length.
    let asked =
        connected && unsafe { libc::write(fd, request.as_ptr().cast(), request.len()) } == request.len() as isize;
    let mut answer = [0u8; 16 * 1024];
    let mut received = 0;
    while asked && received < bytes {
        // SAFETY: the buffer is valid for writes of its length.
        let n = unsafe { libc::read(fd, answer.as_mut_ptr().cast(), answer.len()) };
        if n <= 0 {
            break;
        }
        received += n as usize;
    }
    // SAFETY: the descriptor is this function's own, and is not used afterwards.
    unsafe { libc::close(fd) };
    received == bytes
}

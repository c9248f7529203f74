//! A server in ten lines with std's TcpListener. strace shows the options that std sets.
//!
//! Run: cargo build -p server00-iterative --example std-server
//! Try: strace -f target/debug/examples/std-server

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread::Builder;

pub fn main() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    let client =
        Builder::new().spawn(move || TcpStream::connect(addr)?.read_to_end(&mut Vec::new()))?;
    let (mut conn, _) = listener.accept()?;
    conn.write_all(b"hello")?;
    conn.set_nonblocking(true)?;
    conn.shutdown(Shutdown::Both)?;
    match client.join() {
        Ok(Ok(5)) => Ok(()),
        other => Err(io::Error::other(format!("the client got {other:?}"))),
    }
}

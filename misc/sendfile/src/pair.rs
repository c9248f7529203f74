//! Two ends of a TCP connection over loopback, in one process.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

/// So long a call on either end may wait: an experiment never hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// The receiver's buffer: what an experiment sends before anybody reads has room in it.
const RECEIVE: usize = 1 << 20;

/// The sending and the receiving end.
///
/// # Errors
/// The call that failed.
pub fn pair() -> io::Result<(Socket, Socket)> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    listener.listen(1)?;
    let receiver = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // Before the handshake, which fixes how large a window can be announced.
    receiver.set_recv_buffer_size(RECEIVE)?;
    receiver.connect(&listener.local_addr()?)?;
    let (sender, _) = listener.accept()?;
    for end in [&sender, &receiver] {
        end.set_read_timeout(Some(PATIENCE))?;
        end.set_write_timeout(Some(PATIENCE))?;
    }
    Ok((sender, receiver))
}

/// A thread that reads to the end of the stream, and says how many bytes that were.
///
/// # Errors
/// Where there is no thread to be had.
pub fn drain(mut receiver: Socket) -> io::Result<JoinHandle<io::Result<u64>>> {
    Builder::new().spawn(move || {
        let mut buffer = vec![0; 256 * 1024];
        let mut total = 0;
        loop {
            match receiver.read(&mut buffer) {
                Ok(0) => return Ok(total),
                Ok(n) => total += n as u64,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    })
}

//! Both ends of a TCP connection over loopback, in one process.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::calls::retry_eintr;

/// A call on either end fails after this time, so that no experiment hangs.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The receive buffer: an experiment can send this much before the receiver reads.
const RECEIVE_BUFFER: usize = 1 << 20;

/// The sending end and the receiving end.
///
/// # Errors
/// The call that failed.
pub fn pair() -> io::Result<(Socket, Socket)> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    listener.listen(1)?;
    let receiver = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // Before connect, because the handshake fixes the scale of the window.
    receiver.set_recv_buffer_size(RECEIVE_BUFFER)?;
    receiver.connect(&listener.local_addr()?)?;
    let (sender, _) = listener.accept()?;
    for end in [&sender, &receiver] {
        end.set_read_timeout(Some(TIMEOUT))?;
        end.set_write_timeout(Some(TIMEOUT))?;
    }
    Ok((sender, receiver))
}

/// A thread that reads until end of file and returns the number of bytes.
///
/// # Errors
/// The kernel cannot create a thread.
pub fn drain(mut receiver: Socket) -> io::Result<JoinHandle<io::Result<u64>>> {
    Builder::new().spawn(move || {
        let mut buffer = vec![0; 256 * 1024];
        let mut total = 0;
        loop {
            match retry_eintr(|| receiver.read(&mut buffer))? {
                0 => return Ok(total),
                n => total += n as u64,
            }
        }
    })
}

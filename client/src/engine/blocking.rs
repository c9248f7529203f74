//! A thread per connection: the calls block, and nobody has to be asked what is ready.
//!
//! Each call has a bound in the kernel (SO_RCVTIMEO, SO_SNDTIMEO), so that a thread that waits for a server comes back
//! to see whether the run is over, or its time is up.

use std::io;
use std::mem::MaybeUninit;
use std::thread;
use std::time::Duration;

use socket2::Socket;

use super::Engine;
use super::epoll::News;
use crate::failure::Failure;

/// No call blocks longer.
const GLANCE: Duration = Duration::from_millis(10);

/// Bounds the calls on a socket. A connect() that takes longer says EINPROGRESS, send and recv say EAGAIN.
pub fn bound(socket: &Socket) -> io::Result<()> {
    socket.set_read_timeout(Some(GLANCE))?;
    socket.set_write_timeout(Some(GLANCE))
}

impl Engine<'_> {
    /// Waits in the call that the connection is to make next; without one until something is due.
    pub(super) fn block(&mut self, timeout: Duration) {
        let Some(slot) = self.slots.first() else { return };
        match &slot.socket {
            Some(_) if slot.client.is_opening() => self.connect_on(),
            Some(_) if slot.client.is_ready() => {
                thread::sleep(timeout.min(GLANCE));
                self.look_for_end();
            }
            Some(_) => self.on_news(News::readable()),
            None => thread::sleep(timeout.min(GLANCE)),
        }
    }

    /// A connection that carries no request yet: connect() once more waits on, and says what came of it.
    fn connect_on(&mut self) {
        let Some(Some(socket)) = self.slots.first().map(|slot| &slot.socket) else { return };
        match socket.connect(&self.peer).map_err(|error| error.raw_os_error().unwrap_or_default()) {
            Ok(()) | Err(libc::EISCONN) => self.on_opening(0),
            Err(libc::EALREADY | libc::EINPROGRESS | libc::EINTR) => {}
            Err(errno) => self.connect_failed(0, &Failure::Connect(errno)),
        }
    }

    /// Before a request goes out on a connection that was idle: has the server closed it?
    fn look_for_end(&mut self) {
        let Some(Some(socket)) = self.slots.first().map(|slot| &slot.socket) else { return };
        let mut byte = [MaybeUninit::uninit()];
        match socket.recv_with_flags(&mut byte, libc::MSG_PEEK | libc::MSG_DONTWAIT) {
            Ok(0) => self.closed_idle(0),
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => self.closed_idle(0),
            _ => {}
        }
    }
}

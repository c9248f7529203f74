//! What all servers have: the options, the listener, and the blocking service of one client.

use std::cell::RefCell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use clap::Args;
use common::cli::{Limits, Listen};
use common::report::{Failed, Log};
use common::service::{self, Rejection};
use common::sock::{self, Backoff};
use nix::errno::Errno;
use socket2::{SockAddr, Socket};

use crate::shutdown;

/// The length of the listener's queue: connections that the kernel keeps until a process accepts them.
pub const BACKLOG: i32 = 1024;

thread_local! {
    /// Each thread that accepts has its own pauses.
    static BACKOFF: RefCell<Backoff> = RefCell::default();
}

/// The options that all servers have.
#[derive(Args, Debug)]
pub struct Server {
    /// The address to listen on.
    #[command(flatten)]
    pub listen: Listen,
    /// The limits of one session.
    #[command(flatten)]
    pub limits: Limits,
    /// The log.
    #[command(flatten)]
    pub log: Log,
}

impl Server {
    /// Makes the listening socket. server00-iterative shows these calls one by one.
    ///
    /// # Errors
    /// One line that names the call, the address and the errno.
    pub fn listen(&self) -> Result<Socket, Failed> {
        sock::listen(&self.listen, BACKLOG)
    }

    /// Logs a failed accept. If the process is out of descriptors or memory, it sleeps for a while: accept would
    /// fail again at once.
    ///
    /// # Errors
    /// The listener can no longer be used. A shutdown is requested, so that the other threads stop too.
    pub fn accept_failed(&self, error: &io::Error) -> Result<(), Failed> {
        if shutdown::requested() {
            return Ok(()); // the shutdown made accept fail
        }
        BACKOFF
            .with_borrow_mut(|backoff| backoff.sleep("accept", error, &self.log))
            .inspect_err(|_| shutdown::request())
    }

    /// What an event loop does if the call that waits (select, poll, epoll_wait, io_uring_enter) has failed:
    /// nothing after EINTR; if the kernel is out of memory, it logs the error and sleeps for a while.
    ///
    /// # Errors
    /// Any other error: the call would fail again.
    pub fn wait_failed(&self, call: &str, error: impl Into<io::Error>) -> Result<(), Failed> {
        BACKOFF.with_borrow_mut(|backoff| backoff.sleep(call, &error.into(), &self.log))
    }

    /// Serves one client until its session ends, and logs the result. A shutdown ends the reading. A panic ends this
    /// session only.
    pub fn serve(&self, conn: &mut Socket, peer: &SockAddr) {
        let serve = |conn: &mut Socket| catch_unwind(AssertUnwindSafe(|| service::serve(conn, &self.limits)));
        if let Ok(outcome) = shutdown::with_registered(conn, serve) {
            self.log.client(peer, &outcome);
        }
    }

    /// Rejects a client with `ERR busy`, because the kernel rejected `call` and no process can serve the client.
    pub fn reject(&self, conn: &mut Socket, call: &str, errno: Errno) {
        self.log.repeated("WARN", &format!("{call}: {errno}"));
        let _ = sock::reject(conn, Rejection::Busy, &self.limits);
    }
}

//! The clients of the program `emfile`, in the process of the server, and its limit of descriptors.

use std::net::{Shutdown, SocketAddr};
use std::os::fd::RawFd;

use anyhow::{Context, anyhow};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeVal;
use socket2::Socket;

use crate::Stop;
use crate::probe::{self, received};

/// A client, and the line that it has received.
#[derive(Debug)]
struct Client {
    socket: Socket,
    line: String,
}

/// Some connected clients, and one more socket. All are made before the descriptors are limited.
#[derive(Debug)]
pub struct TestClients {
    clients: Vec<Client>,
    unconnected: Option<Socket>,
}

impl TestClients {
    /// Starts `count` connections.
    ///
    /// # Errors
    /// The call that failed.
    pub fn connect(addr: SocketAddr, count: usize) -> Result<TestClients, Stop> {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(Client { socket: probe::connect(addr)?, line: String::new() });
        }
        Ok(TestClients { clients, unconnected: Some(probe::socket()?) })
    }

    /// Connects the last socket.
    pub fn connect_one_more(&mut self, addr: SocketAddr) {
        if let Some(socket) = self.unconnected.take() {
            let _ = socket.connect(&addr.into()); // EINPROGRESS
            self.clients.push(Client { socket, line: String::new() });
        }
    }

    /// Ends the connections of `count` clients that were greeted. It sends a FIN but does not
    /// close: a closed socket would be a free descriptor for the server, in the same process.
    pub fn disconnect(&self, count: usize) {
        for client in self.clients.iter().filter(|client| client.line == "hello").take(count) {
            let _ = client.socket.shutdown(Shutdown::Write);
        }
    }

    /// How many clients were greeted, rejected with `ERR busy`, reset, and how many have received
    /// nothing.
    pub fn results(&mut self) -> [usize; 4] {
        for client in self.clients.iter_mut().filter(|client| client.line.is_empty()) {
            client.line = received(&mut client.socket);
        }
        let count = |line: &str| self.clients.iter().filter(|client| client.line == line).count();
        let (greeted, busy, waiting) = (count("hello"), count("ERR busy"), count(""));
        [greeted, busy, self.clients.len() - greeted - busy - waiting, waiting]
    }
}

/// Lowers RLIMIT_NOFILE. Dropping it restores the old limit.
#[derive(Debug)]
pub struct DescriptorLimit {
    soft: u64,
    hard: u64,
}

impl DescriptorLimit {
    /// Leaves `count` free descriptors. RLIMIT_NOFILE limits the *number* of a descriptor, so the
    /// unused numbers below the limit are the free descriptors.
    ///
    /// # Errors
    /// The limit is too low for the experiment.
    pub fn leave_free(count: usize) -> Result<DescriptorLimit, Stop> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit")?;
        let limit = (0..).filter(|fd| !is_open(*fd)).nth(count).unwrap_or_default() as u64;
        if limit > soft {
            return Err(anyhow!("the RLIMIT_NOFILE of {soft} is too low for this program").into());
        }
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard).context("setrlimit")?;
        Ok(DescriptorLimit { soft, hard })
    }
}

impl Drop for DescriptorLimit {
    fn drop(&mut self) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, self.soft, self.hard);
    }
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD only reads a flag.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

/// The CPU time of this process in milliseconds.
///
/// # Errors
/// The errors of getrusage(2).
pub fn cpu_ms() -> Result<f64, Stop> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("getrusage")?;
    let ms = |time: TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
    Ok(ms(usage.user_time()) + ms(usage.system_time()))
}

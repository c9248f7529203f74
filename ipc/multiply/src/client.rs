//! A connection to the server. It reads messages, however many recv each of them needs.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use common::cli::PORT;
use common::report::escape;

use crate::frame::Framing;
use crate::request::ACKNOWLEDGED;

/// The server, and how to talk to it.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Host name or address of the server
    #[arg(short = 'i', long, default_value = "127.0.0.1", value_name = "HOST")]
    pub host: String,
    /// Port of the server
    #[arg(short, long, default_value_t = PORT)]
    pub port: u16,
    /// Where a message ends; the same as in the server
    #[arg(long, value_enum, default_value_t = Framing::Line)]
    pub framing: Framing,
    /// Show what was sent, and what each recv returned
    #[arg(long)]
    pub bytes: bool,
    /// Send the first N bytes of the request, pause, and send the rest
    #[arg(long, value_name = "N")]
    pub split: Option<usize>,
    /// The length of this pause in ms
    #[arg(long, default_value_t = 200, value_name = "MS")]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pub pause: u64,
    /// Give up if the answer is not complete after this time, in ms
    #[arg(long, default_value_t = 70_000, value_name = "MS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    pub timeout: u64,
}

/// A connection, and the bytes that have been received and are not part of a whole message yet.
#[derive(Debug)]
pub struct Connection<'a> {
    options: &'a Options,
    conn: TcpStream,
    received: Vec<u8>,
    deadline: Instant,
}

impl<'a> Connection<'a> {
    /// Connects to the first address of the host that accepts.
    ///
    /// # Errors
    /// The host is not known, or no address accepts before the timeout.
    pub fn new(options: &'a Options) -> Result<Self> {
        let deadline = Instant::now() + Duration::from_millis(options.timeout);
        let host = (options.host.as_str(), options.port);
        let addrs = host.to_socket_addrs().with_context(|| format!("host {}", options.host))?;
        let mut outcome = Err(anyhow!("host {}: no address", options.host));
        for addr in addrs {
            outcome = connect(addr, deadline).with_context(|| format!("connect {addr}"));
            if outcome.is_ok() {
                break;
            }
        }
        Ok(Connection { options, conn: outcome?, received: Vec::new(), deadline })
    }

    /// Sends one request, in two pieces with `--split`. The timeout for its answer starts now.
    ///
    /// # Errors
    /// The request contains a newline, or the errors of send(2).
    pub fn send(&mut self, request: &str) -> Result<()> {
        let is_line = self.options.framing == Framing::Line;
        ensure!(!(is_line && request.contains('\n')), "a request cannot contain a newline");
        let mut bytes = Vec::new();
        self.options.framing.put(request, &mut bytes);
        let cut = self.options.split.unwrap_or(bytes.len()).min(bytes.len());
        let (first, rest) = bytes.split_at(cut);
        self.write(first)?;
        if !rest.is_empty() {
            thread::sleep(Duration::from_millis(self.options.pause));
            self.write(rest)?;
        }
        Ok(())
    }

    /// Sends bytes. The timeout for the answers to them starts now.
    ///
    /// # Errors
    /// The errors of send(2).
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.deadline = Instant::now() + Duration::from_millis(self.options.timeout);
        self.conn.set_write_timeout(Some(self.time_left()?)).context("setsockopt SO_SNDTIMEO")?;
        if !bytes.is_empty() {
            self.show("send", bytes)?;
        }
        // A server that rejects a client may have closed already. Its message is still read.
        match self.conn.write_all(bytes) {
            Err(e) if !matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                Err(e).context("send")
            }
            _ => Ok(()),
        }
    }

    /// The result of one request: it comes after the acknowledgement. Escaped, because the server
    /// may be anybody's, and its bytes must not control the terminal.
    ///
    /// # Errors
    /// The server has ended the session, the timeout has passed, or the answer is not one of this
    /// service.
    pub fn result(&mut self) -> Result<String> {
        match self.message()?.as_str() {
            ACKNOWLEDGED => self.message(),
            error if error.starts_with("ERR ") => {
                bail!("the server has ended the session: {error}")
            }
            other => bail!("not an answer of this service: '{other}'"),
        }
    }

    /// The next whole message, from as many recv as it needs. None, if the last recv returned it
    /// too.
    fn message(&mut self) -> Result<String> {
        loop {
            let first = self.options.framing.first(&self.received);
            let first =
                first.map_err(|_| anyhow!("the answer is longer than any answer can be"))?;
            if let Some((message, length)) = first {
                let text = escape(&String::from_utf8_lossy(message));
                self.received.drain(..length);
                return Ok(text);
            }
            let mut buffer = [0; 1024];
            // The time that is left, so that a server that sends one byte now and then cannot make
            // the client wait longer.
            self.conn
                .set_read_timeout(Some(self.time_left()?))
                .context("setsockopt SO_RCVTIMEO")?;
            let n = match self.conn.read(&mut buffer) {
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {
                    continue;
                }
                read => read.context("recv: the server has left")?,
            };
            let bytes = buffer.get(..n).unwrap_or_default();
            self.show("recv", bytes)?;
            ensure!(n > 0, "the server closed the connection before the answer was complete");
            self.received.extend_from_slice(bytes);
        }
    }

    fn show(&self, call: &str, bytes: &[u8]) -> Result<()> {
        if self.options.bytes {
            let (n, bytes) = (bytes.len(), bytes.escape_ascii());
            writeln!(io::stdout(), "{call} {n:>4}  \"{bytes}\"").context("stdout")?;
        }
        Ok(())
    }

    fn time_left(&self) -> Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "no answer from the server in {} ms", self.options.timeout);
        Ok(left.max(Duration::from_millis(1)))
    }
}

fn connect(addr: SocketAddr, deadline: Instant) -> io::Result<TcpStream> {
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let conn = TcpStream::connect_timeout(&addr, left)?;
    // Without Nagle's algorithm the two pieces of --split are two segments, sent at once.
    conn.set_nodelay(true)?;
    Ok(conn)
}

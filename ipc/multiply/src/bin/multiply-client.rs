//! The client of the multiply service: it reads messages, however many `recv` each of them takes.
//!
//! Run: cargo run -p multiply --bin multiply-client
//! Try: cargo run -p multiply --bin multiply-client -- --bytes --split 3 5 10
//! Prev: none
//! Next: none
//! Diff base: none
//! Overload: none (a client)

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use common::cli::Listen;
use multiply::frame::{Framing, MESSAGE_MAX};
use multiply::request::ACKNOWLEDGED;
use socket2::{Domain, Socket, Type};

/// Requests of a pipeline that are under way at once: their answers fit in any socket's buffer.
const PIPELINE: usize = 64;

/// Client of the multiply service: prompts for two numbers, or sends the ones given
///
/// Exit status: 0 answered; 1 no server, or it went away; 2 usage; 3 the server's answer was an ERR line.
#[derive(Parser)]
#[command(allow_negative_numbers = true)]
struct Args {
    #[command(flatten)]
    server: Listen,
    /// Where a message ends; as the server's
    #[arg(long, value_enum, default_value_t = Framing::Line)]
    framing: Framing,
    /// What is done with the numbers that are prompted for
    #[arg(long, default_value = "*", allow_hyphen_values = true, value_parser = ["+", "-", "*", "/"])]
    op: String,
    /// Show what was sent, and what each recv returned
    #[arg(long)]
    bytes: bool,
    /// Send the first N bytes of the request, wait, and send the rest
    #[arg(long, value_name = "N")]
    split: Option<usize>,
    /// How long that wait is, in ms
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pause: u64,
    /// Wait for an answer so long, in ms
    #[arg(long, default_value_t = 70_000, value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    timeout: u64,
    /// Send the lines of stdin as requests, without waiting for each answer, and print the answers
    #[arg(long, conflicts_with_all = ["request", "split"])]
    pipeline: bool,
    /// A request: `5 10`, or `7 / 2`; without one, numbers are prompted for
    #[arg(num_args = 2..=3, allow_hyphen_values = true)]
    request: Vec<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(false) => ExitCode::SUCCESS,
        Ok(true) => ExitCode::from(3),
        Err(e) => {
            let _ = writeln!(io::stderr(), "multiply-client: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// True if an answer was an `ERR` line.
fn run(args: &Args) -> Result<bool> {
    let mut talk = Talk::connect(args)?;
    if args.pipeline {
        return pipeline(&mut talk);
    }
    if !args.request.is_empty() {
        talk.send(&args.request.join(" "))?;
        return talk.show_answer();
    }
    let (mut stdin, mut refused) = (io::stdin().lock(), false);
    loop {
        let Some(first) = prompt("Enter first number: ", &mut stdin)? else { return Ok(refused) };
        let Some(second) = prompt("Enter second number: ", &mut stdin)? else { return Ok(refused) };
        talk.send(&format!("{first} {} {second}", args.op))?;
        refused |= talk.show_answer()?;
    }
}

/// A line that a user typed; `None` at the end of the input.
fn prompt(text: &str, stdin: &mut impl BufRead) -> Result<Option<String>> {
    let mut out = io::stdout();
    write!(out, "{text}").and_then(|()| out.flush()).context("stdout")?;
    let mut line = String::new();
    let n = stdin.by_ref().take(64 * 1024).read_line(&mut line).context("stdin")?;
    if n == 0 || !io::stdin().is_terminal() {
        writeln!(out).context("stdout")?;
    }
    Ok((n > 0).then(|| line.trim().to_owned()))
}

/// Up to [`PIPELINE`] requests are under way, so neither side can wait for the other with full buffers.
fn pipeline(talk: &mut Talk) -> Result<bool> {
    let (mut lines, mut refused, mut ended) = (io::stdin().lock().lines(), false, false);
    let (mut batch, mut count) = (Vec::new(), 0);
    while !ended {
        match lines.next() {
            Some(line) => {
                let line = line.context("stdin")?;
                if line.len() > MESSAGE_MAX {
                    bail!("stdin: a line is longer than {MESSAGE_MAX} bytes");
                }
                talk.args.framing.put(&line, &mut batch);
                count += 1;
            }
            None => ended = true,
        }
        if count == PIPELINE || ended {
            talk.write(&batch)?;
            for _ in 0..count {
                talk.message().and_then(|first| talk.result_after(first)).and_then(|text| {
                    refused |= text.starts_with("ERR ");
                    writeln!(io::stdout(), "{text}").context("stdout")
                })?;
            }
            batch.clear();
            count = 0;
        }
    }
    Ok(refused)
}

/// A connection, and what has been received on it and not been read yet.
struct Talk<'a> {
    args: &'a Args,
    conn: Socket,
    received: Vec<u8>,
}

impl<'a> Talk<'a> {
    fn connect(args: &'a Args) -> Result<Self> {
        let addr = args.server.addr().map_err(|e| anyhow::anyhow!("{e:?}"))?;
        let conn = Socket::new(Domain::for_address(addr), Type::STREAM, None).context("socket")?;
        conn.connect(&addr.into()).with_context(|| format!("connect {addr}"))?;
        conn.set_read_timeout(Some(Duration::from_millis(args.timeout))).context("setsockopt SO_RCVTIMEO")?;
        // Two halves are two segments, at once: this client is here to show it.
        conn.set_tcp_nodelay(true).context("setsockopt TCP_NODELAY")?;
        Ok(Talk { args, conn, received: Vec::new() })
    }

    /// Sends one request, in two pieces if that was asked for.
    fn send(&mut self, request: &str) -> Result<()> {
        if self.args.framing == Framing::Line && request.contains('\n') {
            bail!("a request cannot hold a newline");
        }
        let mut bytes = Vec::new();
        self.args.framing.put(request, &mut bytes);
        let (now, later) = bytes.split_at(self.args.split.unwrap_or(bytes.len()).min(bytes.len()));
        self.write(now)?;
        if !later.is_empty() {
            thread::sleep(Duration::from_millis(self.args.pause));
            self.write(later)?;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.args.bytes && !bytes.is_empty() {
            writeln!(io::stdout(), "send {:>4}  \"{}\"", bytes.len(), bytes.escape_ascii()).context("stdout")?;
        }
        // A server that refuses may have closed already; what it said is read all the same.
        match self.conn.write_all(bytes) {
            Err(e) if !matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                Err(e).context("send")
            }
            _ => Ok(()),
        }
    }

    /// The next whole message, from as many `recv` as it takes: none, where the last one held it already.
    fn message(&mut self) -> Result<String> {
        loop {
            let first = self.args.framing.first(&self.received);
            if let Some((message, length)) =
                first.map_err(|_| anyhow::anyhow!("the answer is longer than any can be"))?
            {
                let text = String::from_utf8_lossy(message).into_owned();
                self.received.drain(..length);
                return Ok(text);
            }
            let mut buffer = [0; 1024];
            let n = match self.conn.read(&mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    bail!("no answer from the server in {} ms", self.args.timeout)
                }
                read => read.context("recv: the server went away")?,
            };
            let bytes = buffer.get(..n).unwrap_or_default();
            if self.args.bytes {
                writeln!(io::stdout(), "recv {n:>4}  \"{}\"", bytes.escape_ascii()).context("stdout")?;
            }
            if bytes.is_empty() {
                bail!("the server closed the connection before the whole answer had come");
            }
            self.received.extend_from_slice(bytes);
        }
    }

    /// After an acknowledgement comes the result; an `ERR` line in its place is the end of the conversation.
    fn result_after(&mut self, first: String) -> Result<String> {
        match first.as_str() {
            ACKNOWLEDGED => self.message(),
            error if error.starts_with("ERR ") => bail!("the server ended the conversation: {error}"),
            other => bail!("not an answer of this service: '{}'", other.escape_debug()),
        }
    }

    /// Prints the answer with the ancestor's words; true if it is an `ERR` line.
    fn show_answer(&mut self) -> Result<bool> {
        let first = self.message()?;
        let text = self.result_after(first)?;
        let mut out = io::stdout();
        writeln!(out, "Acknowledgment: {ACKNOWLEDGED}\nResult from server: {text}").context("stdout")?;
        Ok(text.starts_with("ERR "))
    }
}

//! The client of the multiply service. It reads whole messages, not whatever a recv returns.
//!
//! Run: cargo run -p multiply --bin multiply-client
//! Try: cargo run -p multiply --bin multiply-client -- --bytes --split 3 5 10
//! Prev: none
//! Next: none
//! Diff base: none
//! Overload: none (a client)

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use multiply::client::{Connection, Options};
use multiply::frame::MESSAGE_MAX;
use multiply::request::ACKNOWLEDGED;

/// Requests that are sent before their answers are read: their answers fit into a socket's buffer.
const PIPELINE: usize = 64;

/// Client of the multiply service: sends one request, or prompts for two numbers
///
/// Exit status: 0 answered; 1 no server, or it has left; 2 usage; 3 the answer is an ERR line.
#[derive(Parser)]
#[command(allow_negative_numbers = true)]
struct Args {
    #[command(flatten)]
    options: Options,
    /// The operation for the numbers that are typed at the prompt
    #[arg(long, default_value = "*", allow_hyphen_values = true)]
    #[arg(value_parser = ["+", "-", "*", "/"])]
    op: String,
    /// Send the lines of stdin as requests without waiting for each answer, and print the answers
    #[arg(long, conflicts_with_all = ["request", "split"])]
    pipeline: bool,
    /// A request: `5 10`, or `7 / 2`; without a request the client prompts for numbers
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
    let mut conn = Connection::new(&args.options)?;
    if args.pipeline {
        return pipeline(&mut conn, args);
    }
    if !args.request.is_empty() {
        return ask(&mut conn, &args.request.join(" "));
    }
    let (mut stdin, mut is_error) = (io::stdin().lock(), false);
    loop {
        let Some(first) = prompt("Enter first number: ", &mut stdin)? else { return Ok(is_error) };
        let Some(second) = prompt("Enter second number: ", &mut stdin)? else {
            return Ok(is_error);
        };
        is_error |= ask(&mut conn, &format!("{first} {} {second}", args.op))?;
    }
}

/// One request and its answer, with the words of the ancestor. True if the answer is an `ERR` line.
fn ask(conn: &mut Connection, request: &str) -> Result<bool> {
    conn.send(request)?;
    let result = conn.result()?;
    let text = format!("Acknowledgment: {ACKNOWLEDGED}\nResult from server: {result}");
    writeln!(io::stdout(), "{text}").context("stdout")?;
    Ok(result.starts_with("ERR "))
}

/// A line that a user has typed. None: end of input.
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

/// Sends up to [`PIPELINE`] requests, then reads their answers. With more, both sides could block
/// in send with full buffers.
fn pipeline(conn: &mut Connection, args: &Args) -> Result<bool> {
    let (mut lines, mut is_error) = (io::stdin().lock().lines().peekable(), false);
    while lines.peek().is_some() {
        let (mut batch, mut count) = (Vec::new(), 0);
        for line in lines.by_ref().take(PIPELINE) {
            let line = line.context("stdin")?;
            ensure!(line.len() <= MESSAGE_MAX, "stdin: a line is longer than {MESSAGE_MAX} bytes");
            args.options.framing.put(&line, &mut batch);
            count += 1;
        }
        conn.write(&batch)?;
        for _ in 0..count {
            let result = conn.result()?;
            is_error |= result.starts_with("ERR ");
            writeln!(io::stdout(), "{result}").context("stdout")?;
        }
    }
    Ok(is_error)
}

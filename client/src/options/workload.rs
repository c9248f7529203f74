//! Options of what is said and from where.

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory};
use client::workload::MOST_PIPELINED;
use client::{Habit, Misbehave, Plan, Sizes, Sources, Talk, Verify};

use super::Cli;
use super::parse::{number, positive};

/// What `-b` gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bytes {
    /// Always so many.
    Fixed(u32),
    /// From request to request others.
    Mixed(Sizes),
    /// Those in a file, which is read when the whole command line is right.
    File(PathBuf),
}

/// Options of what is said and from where.
#[derive(Args, Debug)]
pub struct WorkArgs {
    /// Send -b bytes and expect the same back: for echo servers
    #[arg(long, help_heading = "What to send")]
    echo: bool,
    /// Send these bytes as the request, whatever the server: C escapes such as \r\n, \0 and \x41 are understood
    #[arg(long, value_name = "TEXT", value_parser = text, requires = "reply_bytes", help_heading = "What to send")]
    #[arg(conflicts_with_all = ["echo", "bytes"], allow_hyphen_values = true)]
    request: Option<Text>,
    /// How long the answer to --request is
    #[arg(long, value_name = "N", value_parser = positive, requires = "request", help_heading = "What to send")]
    reply_bytes: Option<u32>,
    /// Send N requests together on each connection, before the answer to the first
    #[arg(long, default_value = "1", value_name = "N", value_parser = pipelined, help_heading = "What to send")]
    pipeline: u32,
    /// Let a share of the clients misbehave, and see how the others fare: silent, half-request, no-newline,
    /// slow-send:TIME, slow-read:TIME, half-close, rst-after-connect, rst-mid-reply, garbage or huge-number. The share
    /// stands behind it, such as silent:25% [default: 10%]
    #[arg(long, value_name = "KIND[:SHARE]", value_parser = misbehave, help_heading = "What to send")]
    misbehave: Option<(Habit, f64)>,
    /// Local addresses to connect from, in turn: 127.0.0.2,127.0.1.1-127.0.1.9,127.0.2.0/24 [default: the kernel's
    /// choice, or several of 127/8 where the ports of one would run out]
    #[arg(short = 'S', long, value_name = "LIST", value_parser = sources, help_heading = "From where")]
    source: Option<Sources>,
}

/// Bytes from text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(Vec<u8>);

impl WorkArgs {
    /// Puts these options into a plan.
    ///
    /// # Errors
    /// A usage error where they do not fit together, or a file of sizes cannot be used.
    pub fn apply(&self, bytes: &Bytes, checks: bool, plan: &mut Plan) -> Result<(), clap::Error> {
        let conflict = |text: &str| Err(Cli::command().error(clap::error::ErrorKind::ArgumentConflict, text));
        match bytes {
            Bytes::Fixed(n) => plan.bytes = *n,
            Bytes::Mixed(sizes) => plan.sizes = Some(sizes.clone()),
            Bytes::File(path) => plan.sizes = Some(read(path)?),
        }
        if let (Some(Text(request)), Some(reply_bytes)) = (&self.request, self.reply_bytes) {
            plan.talk = Talk::Raw { request: request.clone(), reply_bytes };
            if !checks {
                plan.verify = Verify::Length;
            }
        } else if self.echo {
            plan.talk = Talk::Echo;
        }
        if plan.verify == Verify::Pattern && matches!(plan.talk, Talk::Raw { .. }) {
            return conflict("--verify pattern knows the answers of the byte service, not those to --request");
        }
        plan.pipeline = self.pipeline;
        if self.pipeline > 1 && plan.rate.is_some() {
            return conflict(
                "with --rate each request has a start of its own, so --pipeline cannot send several together",
            );
        }
        if plan.per_connection != 0 && self.pipeline > plan.per_connection {
            return conflict(
                "--pipeline sends more requests together than a connection carries: use -k 0, or a larger -k",
            );
        }
        plan.source.clone_from(&self.source);
        Ok(())
    }

    /// Takes those who misbehave off the clients.
    ///
    /// # Errors
    /// A usage error where nobody is left to be measured.
    pub fn split(&self, plan: &mut Plan) -> Result<(), clap::Error> {
        if let Some((habit, share)) = self.misbehave {
            let clients = ((f64::from(plan.clients) * share).round() as u32).max(1);
            if clients >= plan.clients {
                let text = "--misbehave leaves no client to be measured: use more clients (-c) or a smaller share";
                return Err(Cli::command().error(clap::error::ErrorKind::ValueValidation, text));
            }
            plan.clients -= clients;
            plan.misbehave = Some(Misbehave { habit, clients });
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Sizes, clap::Error> {
    Sizes::read(path).map_err(|why| {
        Cli::command().error(clap::error::ErrorKind::ValueValidation, format!("invalid value for --bytes: {why}"))
    })
}

/// Bytes of a request: N, A-B, exp:N or file:F.
pub fn bytes(text: &str) -> Result<Bytes, String> {
    if let Some(mean) = text.strip_prefix("exp:") {
        return positive(mean).map(|mean| Bytes::Mixed(Sizes::Exponential(mean)));
    }
    if let Some(path) = text.strip_prefix("file:") {
        return if path.is_empty() {
            Err("the name of a file behind file:".into())
        } else {
            Ok(Bytes::File(path.into()))
        };
    }
    match text.split_once('-') {
        Some((low, high)) if !low.is_empty() => match (positive(low)?, positive(high)?) {
            (low, high) if low <= high => Ok(Bytes::Mixed(Sizes::Uniform(low, high))),
            _ => Err("the smaller number first".into()),
        },
        _ => positive(text).map(Bytes::Fixed),
    }
}

/// A habit, and behind it the share of the clients that have it.
fn misbehave(text: &str) -> Result<(Habit, f64), String> {
    let (habit, share) = match text.strip_suffix('%').and_then(|text| text.rsplit_once(':')) {
        Some((habit, share)) => (habit, share.parse::<f64>().map_err(|_| "a share such as 10%".to_owned())?),
        None => (text, 10.0),
    };
    match share {
        share if share > 0.0 && share < 100.0 => Ok((habit.parse()?, share / 100.0)),
        _ => Err("a share above 0% and below 100%".into()),
    }
}

fn pipelined(text: &str) -> Result<u32, String> {
    match number(text)? {
        n if (1..=MOST_PIPELINED).contains(&n) => Ok(n),
        _ => Err(format!("1 to {MOST_PIPELINED}")),
    }
}

fn sources(text: &str) -> Result<Sources, String> {
    text.parse()
}

/// Text with the escapes of C, as printf(1) has them.
fn text(text: &str) -> Result<Text, String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let (byte, used) = escape(rest).ok_or_else(|| {
            let shown = String::from_utf8_lossy(rest.get(..rest.len().min(3)).unwrap_or_default()).into_owned();
            format!("\\{shown} is no escape of C; a backslash itself is \\\\")
        })?;
        bytes.push(byte);
        rest = rest.get(used..).unwrap_or_default();
    }
    if bytes.is_empty() { Err("at least one byte".into()) } else { Ok(Text(bytes)) }
}

/// The byte that an escape stands for, and how many bytes it has behind the backslash.
fn escape(rest: &[u8]) -> Option<(u8, usize)> {
    let digits = |from: usize, most: usize, radix: u32| {
        let all = rest.get(from..).unwrap_or_default().iter().take(most);
        let count = all.take_while(|byte| char::from(**byte).is_digit(radix)).count();
        let text = std::str::from_utf8(rest.get(from..from + count)?).ok()?;
        Some((u8::from_str_radix(text, radix).ok()?, from + count))
    };
    let simple = match rest.first()? {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'a' => 7,
        b'b' => 8,
        b'v' => 11,
        b'f' => 12,
        b'e' => 27,
        same @ (b'\\' | b'"' | b'\'') => *same,
        b'x' => return digits(1, 2, 16),
        b'0'..=b'7' => return digits(0, 3, 8),
        _ => return None,
    };
    Some((simple, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(bytes("64k"), Ok(Bytes::Fixed(64_000)));
        assert_eq!(bytes("1-3k"), Ok(Bytes::Mixed(Sizes::Uniform(1, 3000))));
        assert_eq!(bytes("exp:3000"), Ok(Bytes::Mixed(Sizes::Exponential(3000))));
        assert_eq!(bytes("file:x"), Ok(Bytes::File("x".into())));
        for bad in ["", "0", "0-5", "5-1", "-5", "5-", "exp:", "exp:0", "exp:x", "file:", "zipf:3"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn escapes() {
        assert_eq!(text(r#"GET / \r\n\x41\101\0\\\"z"#), Ok(Text(b"GET / \r\nAA\0\\\"z".to_vec())));
        for bad in ["", "\\", "\\q", "\\x", "\\xg", "\\777"] {
            assert!(text(bad).is_err(), "{bad}");
        }
    }
}

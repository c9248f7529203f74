//! `client --chat`: a room full of people.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use client::room::{self, Moment, Plan, Wire};

use super::once::{Watched, interruption};
use super::{FAILED, Help, INTERRUPTED};
use crate::options::parse::{number, port, positive, rate, time};
use crate::watch::{Server, Watch};

/// Options that do not go together.
const USAGE: u8 = 2;

/// The options.
#[derive(clap::Args, Debug)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// Host name or address of the server
    #[arg(short = 'i', long, default_value = "127.0.0.1", help_heading = "Where")]
    host: String,
    /// Port of the server
    #[arg(short, long, default_value = "2000", value_parser = port, help_heading = "Where")]
    port: u16,
    /// What the server speaks
    #[arg(long, default_value = "room", help_heading = "Where")]
    wire: Wire,
    /// Members of the room; all of them listen
    #[arg(short = 'c', long, alias = "members", default_value = "10", value_name = "N", value_parser = positive)]
    #[arg(help_heading = "Who")]
    children: u32,
    /// How many of them talk, in turn
    #[arg(short, long, default_value = "1", value_name = "N", value_parser = positive, help_heading = "Who")]
    senders: u32,
    /// Further members who join and never read again
    #[arg(long, default_value = "0", value_name = "N", value_parser = number, help_heading = "Who")]
    dead: u32,
    /// Messages a second, of all senders together; sent by the clock, whatever the server does
    #[arg(short = 'R', long, default_value = "100", value_name = "N", value_parser = rate, help_heading = "What")]
    rate: client::Rate,
    /// Bytes of a message, 12 at least
    #[arg(short, long, default_value = "64", value_name = "N", value_parser = bytes, help_heading = "What")]
    bytes: usize,
    /// How long they talk
    #[arg(short, long, default_value = "5s", value_name = "TIME", value_parser = time, help_heading = "What")]
    duration: Duration,
    /// Talked for so long before, and not recorded; 0ms for none
    #[arg(short, long, default_value = "1s", value_name = "TIME", value_parser = humantime::parse_duration)]
    #[arg(help_heading = "What")]
    warmup: Duration,
    /// How long joining, and the last deliveries, may take
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = time, help_heading = "What")]
    timeout: Duration,
    #[command(flatten)]
    server: Watched,
    /// Write the report as JSON to this file, - is stdout
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    json: Option<PathBuf>,
    #[command(flatten)]
    help: Help,
}

/// 12 to 900: our chats take lines of 1024 bytes, IRC of 512.
fn bytes(text: &str) -> Result<usize, String> {
    let n = text.parse().ok().filter(|n| (room::SHORTEST..=900).contains(n));
    n.ok_or_else(|| format!("a number from {} to 900", room::SHORTEST))
}

/// `--chat` anywhere in the line is this subcommand.
pub fn unfold(mut words: Vec<std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    if let Some(place) = words.iter().position(|word| word == "--chat") {
        words.remove(place);
        words.insert(1, "chat".into());
    }
    words
}

pub fn run(args: &Args) -> anyhow::Result<u8> {
    let mut plan = match args.plan() {
        Ok(plan) => plan,
        Err(why) => {
            _ = writeln!(io::stderr(), "client: {why}");
            return Ok(USAGE);
        }
    };
    let stop = interruption()?;
    let server = match &args.server.server_cmd {
        Some(command) => Some(Server::start(command, &plan.host, plan.port, &stop)?),
        None => None,
    };
    plan.port = server.as_ref().map_or(plan.port, |server| server.port);
    let pid = server.as_ref().map(Server::pid).or(args.server.server_pid);
    let (mut watch, mut used) = (None, None);
    let mut at = |moment| {
        match moment {
            Moment::Joined => {}
            Moment::Started => watch = pid.map(Watch::start).transpose()?,
            Moment::Ended => used = watch.take().and_then(Watch::end),
        }
        Ok(())
    };
    let report = room::run(&plan, &mut at, &Arc::clone(&stop));
    let stopped = server.map_or(Ok(()), Server::stop);
    // The server's own words tell more than the connection that it did not answer.
    let mut report = match (report, stopped) {
        (Ok(report), stopped) => stopped.map(|()| report)?,
        (Err(_), Err(why)) => return Err(why),
        (Err(why), Ok(())) => return Err(why),
    };
    if let Some((used, own)) = used {
        report.cpu = report.cpu.less(own);
        report.server = Some(used);
    }
    args.print(&report)?;
    Ok(match (report.interrupted, report.is_good()) {
        (true, _) => INTERRUPTED,
        (_, true) => 0,
        _ => FAILED,
    })
}

impl Args {
    fn plan(&self) -> anyhow::Result<Plan> {
        if self.senders > self.children && !self.wire.senders_apart() {
            anyhow::bail!("--senders {}: only {} members are there to talk", self.senders, self.children);
        }
        if !self.wire.senders_apart() && self.children < 2 {
            anyhow::bail!("-c 1: a member does not hear itself, two are the least");
        }
        if self.rate.from != self.rate.to {
            anyhow::bail!("-R {}:{}: a room talks at one rate", self.rate.from, self.rate.to);
        }
        Ok(Plan {
            host: self.host.clone(),
            port: self.port,
            members: self.children,
            senders: self.senders,
            rate: self.rate.from,
            duration: self.duration,
            warmup: self.warmup,
            bytes: self.bytes,
            dead: self.dead,
            wire: self.wire,
            patience: self.timeout,
        })
    }

    fn print(&self, report: &room::Report) -> anyhow::Result<()> {
        if let Some(file) = &self.json {
            let json = serde_json::to_string_pretty(report)? + "\n";
            if file.as_os_str() == "-" {
                return io::stdout().write_all(json.as_bytes()).context("write the report");
            }
            fs::write(file, json).with_context(|| format!("write {}", file.display()))?;
        }
        let mut out = BufWriter::new(io::stdout());
        room::text::write(report, &mut out).and_then(|()| out.flush()).context("write the report")
    }
}

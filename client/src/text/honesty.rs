//! How far the figures can be trusted, in words.

use std::io::{self, Write};
use std::time::Duration;

use super::span;
use crate::plan::EngineKind;
use crate::report::{Honesty, Limit, Report, Steer};

/// Of the schedule at least so much should be done, in percent.
const MISSED_PERCENT: f64 = 1.0;

pub fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    if report.plan.rate.is_some() {
        schedule(&report.honesty, out)?;
        steered(&report.steered, out)?;
    }
    warm_up(report, out)?;
    steadiness(&report.honesty, out)?;
    limit(report, out)?;
    match report.honesty.syn_retransmitted {
        0 => Ok(()),
        1 => writeln!(out, "1 connect waited for a SYN retransmission: the listen backlog overflowed"),
        n => writeln!(out, "{n} connects waited for a SYN retransmission: the listen backlog overflowed"),
    }
}

fn schedule(honesty: &Honesty, out: &mut dyn Write) -> io::Result<()> {
    write!(out, "schedule     {} due, {} missed", honesty.offered, honesty.missed)?;
    writeln!(out, ", {} waited for a free connection", honesty.waited)?;
    let lag = |ns| span(Duration::from_nanos(ns));
    writeln!(
        out,
        "             started late by this client: p99 {}, max {}",
        lag(honesty.lag_p99_ns),
        lag(honesty.lag_max_ns)
    )?;
    if honesty.missed_percent > MISSED_PERCENT {
        let sent = 100.0 - honesty.missed_percent;
        writeln!(out, "             WARNING: only {sent:.1} % of the schedule was sent: this rate is too high")?;
    }
    Ok(())
}

/// Up to so many changes are listed one by one.
const LISTED: usize = 6;

/// When the rate was set by hand; the plan above says what it was before.
fn steered(steered: &[Steer], out: &mut dyn Write) -> io::Result<()> {
    for (n, steer) in steered.iter().take(LISTED).enumerate() {
        let head = if n == 0 { "by hand" } else { "" };
        writeln!(out, "{head:<13}{} requests/s from {:.3} s on", rate(steer.rate), steer.at_ns as f64 / 1e9)?;
    }
    match (steered.len().saturating_sub(LISTED), steered.last()) {
        (more @ 1.., Some(last)) => {
            let at = last.at_ns as f64 / 1e9;
            writeln!(out, "             and {more} changes more, the last to {} at {at:.3} s", rate(last.rate))
        }
        _ => Ok(()),
    }
}

/// To a digit behind the point, if there is one.
fn rate(rate: f64) -> String {
    format!("{rate:.1}").trim_end_matches(".0").to_owned()
}

fn warm_up(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let honesty = &report.honesty;
    if honesty.warmup_ns == 0 {
        return Ok(());
    }
    let time = span(Duration::from_nanos(honesty.warmup_ns));
    writeln!(out, "warm-up      {time}: {} answers are not in the latencies", honesty.warmup_done)
}

fn steadiness(honesty: &Honesty, out: &mut dyn Write) -> io::Result<()> {
    let (Some(rate), Some(steady)) = (honesty.rate, honesty.steady) else { return Ok(()) };
    let width = 100.0 * (rate.high - rate.value) / rate.value.max(f64::MIN_POSITIVE);
    write!(out, "steadiness   {:.0} requests/s +- {width:.1} % (95 %)", rate.value)?;
    if let Some(r) = honesty.linearity {
        write!(out, ", r {r:.5}")?;
    }
    match (steady, honesty.propose_warmup_ns, honesty.drift_percent) {
        (true, ..) => writeln!(out, ", steady"),
        (_, Some(cut), _) => {
            let cut = humantime::format_duration(Duration::from_nanos(cut)).to_string().replace(' ', "");
            writeln!(out, "\n             not steady, try --warmup {cut}")
        }
        (_, None, drift) => {
            let drift = drift.unwrap_or_default();
            writeln!(out, "\n             not steady: it changed by {drift:+.0} % in the course of the run")
        }
    }
}

fn limit(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let honesty = &report.honesty;
    let words = match honesty.limited_by {
        Limit::Unknown => return Ok(()),
        Limit::Client => format!("this client: {:.0} % of a core", honesty.client_cpu_percent),
        Limit::Server => match &report.server {
            Some(_) => "the server: its processes are busy".to_owned(),
            None => "the server, or others on this machine".to_owned(),
        },
        Limit::Rate => "the rate: all that was due was done".to_owned(),
        Limit::Concurrency if report.plan.think.is_some() => "the clients: they think".to_owned(),
        Limit::Concurrency => "the number of clients: nobody is busy".to_owned(),
    };
    if !matches!(report.plan.engine, EngineKind::Epoll | EngineKind::Uring) {
        return writeln!(out, "limited by   {words}");
    }
    let turn = span(Duration::from_nanos(honesty.loop_p99_ns));
    writeln!(out, "limited by   {words}; loop turn p99 {turn}")
}

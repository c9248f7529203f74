//! `client merge`: one report of the same load from several machines.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use client::{Ended, Plan, Report};
use hdrhistogram::Histogram;

use super::{FAILED, bench, read};

/// The options.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Reports that client --json FILE has written, of runs at the same time (--start-at)
    #[arg(required = true, num_args = 2.., value_name = "FILE.json")]
    files: Vec<PathBuf>,
    /// Write the merged report as JSON to FILE; - is stdout, in place of the text
    #[arg(short, long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    _help: super::Help,
}

/// Adds everything that can be added exactly, and prints the report.
pub fn run(args: &Args) -> anyhow::Result<u8> {
    let mut reports = Vec::new();
    for file in &args.files {
        reports.extend(read(file)?);
    }
    let mut reports = reports.into_iter();
    let mut sum = reports.next().context("no report")?;
    for report in reports {
        add(&mut sum, report)?;
    }
    if let Some(mut out) = bench::sink(args.json.as_deref())? {
        client::json::write(&sum, &mut out).and_then(|()| out.flush()).context("write JSON")?;
    }
    if args.json.as_deref().is_none_or(|path| path.as_os_str() != "-") {
        client::text::write(&sum, &mut std::io::stdout().lock()).context("write the report")?;
    }
    Ok(if sum.is_good() { 0 } else { FAILED })
}

/// What may differ between machines that make the same load.
fn load(plan: &Plan) -> Plan {
    let (host, port, pin) = (String::new(), 0, Vec::new());
    Plan { host, port, pin, seed: 0, threads: 0, clients: 0, rate: None, start_at_ns: None, ..plan.clone() }
}

fn add(sum: &mut Report, other: Report) -> anyhow::Result<()> {
    if load(&sum.plan) != load(&other.plan) || sum.plan.rate.is_some() != other.plan.rate.is_some() {
        bail!("the runs had different loads: {}; {}", sum.plan.describe(), other.plan.describe());
    }
    sum.plan.clients += other.plan.clients;
    if let (Some(rate), Some(more)) = (&mut sum.plan.rate, other.plan.rate) {
        rate.from += more.from;
        rate.to += more.to;
    }
    if !matches!(other.ended, Ended::Finished | Ended::Duration) {
        sum.ended = other.ended;
    }
    sum.elapsed = sum.elapsed.max(other.elapsed);
    counts(sum, &other);
    let (into, from) = (&mut sum.latency, &other.latency);
    for (into, from) in [
        (&mut into.connect, &from.connect),
        (&mut into.first_byte, &from.first_byte),
        (&mut into.service, &from.service),
        (&mut into.total, &from.total),
        (&mut into.response, &from.response),
        (&mut into.failed, &from.failed),
    ] {
        histogram(into, from)?;
    }
    for row in other.failures {
        match sum.failures.iter_mut().find(|mine| mine.kind == row.kind && mine.example == row.example) {
            Some(mine) => {
                mine.count += row.count;
                mine.first_ns = mine.first_ns.min(row.first_ns);
                mine.last_ns = mine.last_ns.max(row.last_ns);
                mine.oldest_ns = mine.oldest_ns.max(row.oldest_ns);
            }
            None => sum.failures.push(row),
        }
    }
    honesty(sum, &other.honesty);
    // Slices and the server belong to one machine's clock and to one look: they are not merged but left out.
    sum.series.clear();
    sum.server = None;
    Ok(())
}

fn histogram(into: &mut Histogram<u64>, from: &Histogram<u64>) -> anyhow::Result<()> {
    into.add(from).map_err(|error| anyhow::anyhow!("histograms do not fit together: {error:?}"))
}

fn counts(sum: &mut Report, other: &Report) {
    let (into, from) = (&mut sum.requests, other.requests);
    into.planned = into.planned.zip(from.planned).map(|(a, b)| a + b);
    into.not_sent = into.not_sent.zip(from.not_sent).map(|(a, b)| a + b);
    into.censored_oldest_ns = into.censored_oldest_ns.max(from.censored_oldest_ns);
    let (links, more) = (&mut sum.connections, other.connections);
    links.planned = links.planned.zip(more.planned).map(|(a, b)| a + b);
    links.not_tried = links.not_tried.zip(more.not_tried).map(|(a, b)| a + b);
    for (into, from) in [
        (&mut into.sent, from.sent),
        (&mut into.done, from.done),
        (&mut into.failed, from.failed),
        (&mut into.censored, from.censored),
        (&mut links.tried, more.tried),
        (&mut links.connected, more.connected),
        (&mut links.failed, more.failed),
        (&mut links.censored, more.censored),
        (&mut links.peak_open, more.peak_open),
        (&mut sum.bytes, other.bytes),
        (&mut sum.cpu.user_ns, other.cpu.user_ns),
        (&mut sum.cpu.system_ns, other.cpu.system_ns),
    ] {
        *into += from;
    }
}

fn honesty(sum: &mut Report, from: &client::report::Honesty) {
    let sent = sum.requests.sent;
    let into = &mut sum.honesty;
    into.offered += from.offered;
    into.missed += from.missed;
    into.waited += from.waited;
    into.warmup_done += from.warmup_done;
    into.syn_retransmitted += from.syn_retransmitted;
    into.threads += from.threads;
    into.missed_percent = 100.0 * into.offered.saturating_sub(sent) as f64 / into.offered.max(1) as f64;
    into.lag_p99_ns = into.lag_p99_ns.max(from.lag_p99_ns);
    into.lag_max_ns = into.lag_max_ns.max(from.lag_max_ns);
    into.loop_p99_ns = into.loop_p99_ns.max(from.loop_p99_ns);
    into.warmup_ns = into.warmup_ns.max(from.warmup_ns);
    into.client_cpu_percent = into.client_cpu_percent.max(from.client_cpu_percent);
    // These come from slices, which are not merged.
    into.linearity = None;
    into.rate = None;
    into.steady = into.steady.zip(from.steady).map(|(a, b)| a && b);
    into.propose_warmup_ns = None;
    into.drift_percent = None;
    into.limited_by = client::report::Limit::Unknown;
}

//! `client merge`: one report of the same load from several machines.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use client::limits::Cpu;
use client::report::{Honesty, Slice, Steady};
use client::series;
use client::stats::Row;
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
    let (sum, doubt) = together(reports)?;
    if let Some(words) = doubt {
        _ = writeln!(std::io::stderr(), "client: {words}");
    }
    if let Some(mut out) = bench::sink(args.json.as_deref())? {
        client::json::write(&sum, &mut out).and_then(|()| out.flush()).context("write JSON")?;
    }
    if args.json.as_deref().is_none_or(|path| path.as_os_str() != "-") {
        client::text::write(&sum, &mut std::io::stdout().lock()).context("write the report")?;
    }
    Ok(if sum.is_good() { 0 } else { FAILED })
}

/// The sum of the reports, and what there is to say about it.
pub fn together(reports: Vec<Report>) -> anyhow::Result<(Report, Option<&'static str>)> {
    let course = course(&reports);
    let mut reports = reports.into_iter();
    let mut sum = reports.next().context("no report")?;
    for report in reports {
        add(&mut sum, report)?;
    }
    let Some(course) = course else { return Ok((sum, Some("not every report says when it began: no time series"))) };
    let doubt = (!course.overlap).then_some(
        "the runs were not at the same time; rate and course are of the whole time from the first to the last",
    );
    course.put_into(&mut sum);
    Ok((sum, doubt))
}

/// The runs in the course of absolute time.
struct Course {
    origin_ns: u64,
    elapsed: Duration,
    /// From the origin to the end of the last warm-up.
    warmup_ns: u64,
    series: Vec<Slice>,
    overlap: bool,
}

/// `None` if one of the runs does not say when it began.
fn course(reports: &[Report]) -> Option<Course> {
    let times: Option<Vec<(u64, &Report)>> =
        reports.iter().map(|report| Some((report.machine.as_ref()?.started_ns, report))).collect();
    let times = times?;
    let slices: Vec<(u64, &[Slice])> = times.iter().map(|(start, report)| (*start, report.series.as_slice())).collect();
    let (origin_ns, series) = series::merge(&slices);
    let ends = times.iter().map(|(start, report)| start + report.elapsed.as_nanos() as u64);
    let (first_end, last_end) = (ends.clone().min()?, ends.max()?);
    let warmup_ns = times.iter().map(|(start, report)| match report.honesty.warmup_ns {
        0 => 0,
        warmup => start - origin_ns + warmup,
    });
    Some(Course {
        origin_ns,
        elapsed: Duration::from_nanos(last_end - origin_ns),
        warmup_ns: warmup_ns.max()?,
        overlap: times.iter().all(|(start, _)| *start < first_end),
        series,
    })
}

impl Course {
    fn put_into(self, sum: &mut Report) {
        if let Some(machine) = &mut sum.machine {
            machine.started_ns = self.origin_ns;
        }
        sum.elapsed = self.elapsed;
        sum.honesty.warmup_ns = self.warmup_ns;
        sum.series = self.series;
        sum.judge_rate();
    }
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
    latencies(sum, &other)?;
    failures(sum, other.failures);
    honesty(sum, &other.honesty);
    // The course is put together from all of them at once; the server was perhaps watched by one machine only.
    sum.series.clear();
    sum.server = None;
    sum.steady = None;
    Ok(())
}

/// Adds another round of the same run to what is known of the rounds so far.
pub fn round(sum: &mut Report, other: Report) -> anyhow::Result<()> {
    let peak_open = sum.connections.peak_open.max(other.connections.peak_open);
    counts(sum, &other);
    sum.connections.peak_open = peak_open;
    latencies(sum, &other)?;
    failures(sum, other.failures);
    sum.elapsed += other.elapsed;
    sum.steady = sum.steady.zip(other.steady).map(|(a, b)| Steady {
        from_ns: a.from_ns,
        sent: a.sent + b.sent,
        done: a.done + b.done,
        cpu: plus(a.cpu, b.cpu),
    });
    if let Some((used, more)) = sum.server.as_mut().zip(other.server) {
        used.cpu = plus(used.cpu, more.cpu);
        used.steady_cpu = used.steady_cpu.zip(more.steady_cpu).map(|(a, b)| plus(a, b));
        used.voluntary_switches += more.voluntary_switches;
        used.involuntary_switches += more.involuntary_switches;
        used.peak_rss_bytes = used.peak_rss_bytes.max(more.peak_rss_bytes);
        used.peak_processes = used.peak_processes.max(more.peak_processes);
        used.peak_threads = used.peak_threads.max(more.peak_threads);
    }
    // One round after the other: what is known of the course of one says nothing of all.
    sum.series.clear();
    sum.honesty = Honesty {
        offered: sum.honesty.offered + other.honesty.offered,
        missed: sum.honesty.missed + other.honesty.missed,
        warmup_ns: sum.honesty.warmup_ns.max(other.honesty.warmup_ns),
        warmup_done: sum.honesty.warmup_done + other.honesty.warmup_done,
        threads: sum.honesty.threads,
        client_cpu_percent: sum.honesty.client_cpu_percent.max(other.honesty.client_cpu_percent),
        loop_p99_ns: sum.honesty.loop_p99_ns.max(other.honesty.loop_p99_ns),
        ..Honesty::default()
    };
    Ok(())
}

fn plus(a: Cpu, b: Cpu) -> Cpu {
    Cpu { user_ns: a.user_ns + b.user_ns, system_ns: a.system_ns + b.system_ns }
}

fn latencies(sum: &mut Report, other: &Report) -> anyhow::Result<()> {
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
    Ok(())
}

fn failures(sum: &mut Report, more: Vec<Row>) {
    for row in more {
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

fn honesty(sum: &mut Report, from: &Honesty) {
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
    // These come from the course.
    into.linearity = None;
    into.rate = None;
    into.steady = None;
    into.propose_warmup_ns = None;
    into.drift_percent = None;
    into.limited_by = client::report::Limit::Unknown;
}

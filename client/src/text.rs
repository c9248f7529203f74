//! A report as text for people: 80 columns, one unit per table.

mod honesty;

use std::io::{self, Write};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::report::{Ended, Report, ServerUse};
use crate::stats::{PERCENTILES, Row, needed, percentile};

/// Less CPU time is not printed: the kernel may count it in ticks of 4 ms, and fewer than 10 ticks say little.
const CPU_LEAST: Duration = Duration::from_millis(40);

/// Writes the report.
///
/// # Errors
/// Those of `out`.
pub fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{} to {}", report.plan.describe(), report.addr)?;
    writeln!(out)?;
    counts(report, out)?;
    rates(report, out)?;
    honesty::write(report, out)?;
    latencies(report, out)?;
    failures(report, out)?;
    abusers(report, out)?;
    writeln!(out)?;
    writeln!(out, "{}", verdict(report))
}

fn counts(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let requests = &report.requests;
    write!(out, "requests     {} done, {} failed", requests.done, requests.failed)?;
    if let Some(not_sent) = requests.not_sent {
        write!(out, ", {not_sent} not sent")?;
    }
    write!(out, ", {} censored", requests.censored)?;
    if requests.censored > 0 {
        write!(out, " (oldest {})", span(Duration::from_nanos(requests.censored_oldest_ns)))?;
    }
    writeln!(out)?;
    let connections = &report.connections;
    write!(out, "connections  {} made, {} failed", connections.connected, connections.failed)?;
    if let Some(not_tried) = connections.not_tried {
        write!(out, ", {not_tried} not tried")?;
    }
    if connections.censored > 0 {
        write!(out, ", {} unfinished", connections.censored)?;
    }
    writeln!(out, ", {} open at once at most", connections.peak_open)
}

fn rates(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "elapsed      {:.3} s", report.elapsed.as_secs_f64())?;
    write!(out, "rate         {:.0} requests/s", report.requests_per_second())?;
    if report.connections.connected != report.requests.done {
        write!(out, ", {:.0} connections/s", report.connections_per_second())?;
    }
    let (bytes, unit) = scale(report.bytes_per_second());
    writeln!(out, ", {bytes:.1} {unit}B/s")?;
    if let Some(each) = report.cpu_us_per_request().filter(|_| report.cpu.total() >= CPU_LEAST) {
        let (cpu, sent) = report.measured_cpu();
        let share = |ns: u64| ns as f64 / 1e3 / sent.max(1) as f64;
        let (user, system) = (share(cpu.user_ns), share(cpu.system_ns));
        let busy = 100.0 * report.cpu.total().as_secs_f64() / report.elapsed.as_secs_f64().max(1e-9);
        write!(out, "this client  {each:.1} us CPU per request (user {user:.1}, system {system:.1}), ")?;
        writeln!(out, "{busy:.0} % of one core")?;
    }
    report.server.as_ref().map_or(Ok(()), |used| server(used, report, out))
}

fn server(used: &ServerUse, report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let (cpu, done) = report.measured_server_cpu().unwrap_or_default();
    let share = |ns: u64| ns as f64 / 1e3 / done.max(1) as f64;
    let (user, system) = (share(cpu.user_ns), share(cpu.system_ns));
    let each = user + system;
    writeln!(out, "server       {each:.1} us CPU per request (user {user:.1}, system {system:.1}), pid {}", used.pid)?;
    let (waited, taken) = (used.voluntary_switches, used.involuntary_switches);
    writeln!(out, "             context switches: {waited} voluntary, {taken} involuntary")?;
    let megabytes = used.peak_rss_bytes as f64 / 1e6;
    let (processes, threads) = (used.peak_processes, used.peak_threads);
    writeln!(out, "             at most {processes} processes, {threads} threads, {megabytes:.1} MB resident")
}

fn scale(bytes: f64) -> (f64, &'static str) {
    match bytes {
        b if b < 1e6 => (b / 1e3, "k"),
        b if b < 1e9 => (b / 1e6, "M"),
        b => (b / 1e9, "G"),
    }
}

fn span(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s < 1e-3 => format!("{:.1} us", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.3} s"),
    }
}

/// The unit of a whole table: the longest time in it decides.
fn unit(longest: u64) -> (&'static str, f64, usize) {
    match longest {
        0..100_000_000 => ("us", 1e3, 1),
        100_000_000..100_000_000_000 => ("ms", 1e6, 3),
        _ => ("s", 1e9, 3),
    }
}

fn latencies(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let (latency, empty) = (&report.latency, Histogram::new_from(&report.latency.response));
    let rows = [
        ("connect", &latency.connect),
        ("first byte", &latency.first_byte),
        ("service", &latency.service),
        ("total", &latency.total),
        ("response", if report.plan.rate.is_some() { &latency.response } else { &empty }),
        ("failed after", &latency.failed),
    ];
    let rows = rows.into_iter().filter(|(_, histogram)| !histogram.is_empty());
    let longest = rows.clone().map(|(_, histogram)| histogram.max()).max();
    let Some(longest) = longest else { return Ok(()) };
    let (unit, per_unit, digits) = unit(longest);
    writeln!(out)?;
    write!(out, "{:<14}", format!("latency, {unit}"))?;
    for head in ["min", "p50", "p90", "p99", "p99.9", "max", "mean"] {
        write!(out, "{head:>9}")?;
    }
    writeln!(out)?;
    for (name, histogram) in rows.clone() {
        write!(out, "{name:<14}")?;
        for value in values(histogram) {
            match value {
                Some(ns) => write!(out, "{:>9.digits$}", ns / per_unit)?,
                None => write!(out, "{:>9}", "-")?,
            }
        }
        writeln!(out)?;
    }
    let fewest = rows.map(|(_, histogram)| histogram.len()).min().unwrap_or_default();
    footnote(fewest, out)
}

fn values(histogram: &Histogram<u64>) -> Vec<Option<f64>> {
    let mut values = vec![Some(histogram.min() as f64)];
    values.extend(PERCENTILES.map(|p| percentile(histogram, p).map(|ns| ns as f64)));
    values.extend([Some(histogram.max() as f64), Some(histogram.mean())]);
    values
}

fn footnote(samples: u64, out: &mut dyn Write) -> io::Result<()> {
    let missing = PERCENTILES.iter().zip(["p50", "p90", "p99", "p99.9"]).filter(|(p, _)| samples < needed(**p));
    let missing: Vec<String> = missing.map(|(p, name)| format!("{name} {}", needed(*p))).collect();
    if missing.is_empty() {
        return Ok(());
    }
    writeln!(out, "- fewer than 10 samples beyond; needed: {}", missing.join(", "))
}

fn failures(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    if report.failures.is_empty() {
        return Ok(());
    }
    let tried = report.requests.sent + report.connections.failed;
    writeln!(out)?;
    writeln!(out, "{:<10}{:<26}{:>9}{:>10}{:>12}{:>12}", "phase", "failure", "count", "share", "first, s", "last, s")?;
    for row in &report.failures {
        failure(row, tried, out)?;
    }
    Ok(())
}

fn failure(row: &Row, tried: u64, out: &mut dyn Write) -> io::Result<()> {
    let share = 100.0 * row.count as f64 / tried.max(1) as f64;
    let (first, last) = (row.first_ns as f64 / 1e9, row.last_ns as f64 / 1e9);
    writeln!(
        out,
        "{:<10}{:<26}{:>9}{share:>8.1} %{first:>12.3}{last:>12.3}",
        row.phase.name(),
        row.kind.title(),
        row.count
    )?;
    let oldest = span(Duration::from_nanos(row.oldest_ns));
    writeln!(out, "          {}; oldest {oldest}", row.example)?;
    writeln!(out, "          advice: {}", row.advice)
}

/// What became of those who misbehaved. The counts above are of the others.
fn abusers(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let (Some(fates), Some(misbehave)) = (&report.abusers, &report.plan.misbehave) else { return Ok(()) };
    writeln!(out)?;
    writeln!(out, "abusers      {} x {}", misbehave.clients, misbehave.habit.describe())?;
    writeln!(out, "             {} connections tried, {} made", fates.tried, fates.connected)?;
    for (count, fate) in fates.list() {
        writeln!(out, "{count:>20} {fate}")?;
    }
    match fates.longest_ns {
        0 => Ok(()),
        longest => writeln!(out, "             the longest ended after {}", span(Duration::from_nanos(longest))),
    }
}

/// The last line: OK, or what went wrong.
pub(crate) fn verdict(report: &Report) -> String {
    let (requests, connections) = (&report.requests, &report.connections);
    let left = match (requests.not_sent, connections.not_tried) {
        (_, Some(n)) if n > 0 => format!("; {n} connections were not tried"),
        (Some(n), _) if n > 0 => format!("; {n} requests were not sent"),
        _ => String::new(),
    };
    match report.ended {
        Ended::Interrupted => format!("INTERRUPTED{left}"),
        Ended::ConnectsFailed(n) => format!("FAILED: gave up after {n} failed connects in a row{left}"),
        Ended::TimedOut(n) => format!("FAILED: gave up after {n} timeouts in a row{left}"),
        _ if report.is_good() => good(report),
        _ if report.failures() == 0 => format!("FAILED: nothing was answered in the time given{left}"),
        _ => {
            let parts =
                [(requests.failed, requests.sent, "requests"), (connections.failed, connections.tried, "connections")];
            let parts = parts.iter().filter(|(failed, ..)| *failed > 0);
            let parts: Vec<String> = parts.map(|(failed, all, what)| format!("{failed} of {all} {what}")).collect();
            format!("FAILED: {} failed{left}", parts.join(" and "))
        }
    }
}

fn good(report: &Report) -> String {
    use crate::plan::Verify;
    let checked = match report.plan.verify {
        Verify::Pattern => "every byte checked",
        Verify::Length => "every length checked",
        Verify::None => "unchecked",
    };
    format!("OK: {} answers, {checked}", report.requests.done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Failure;
    use crate::plan::Plan;
    use crate::stats::{Instants, Tally};

    fn report(failed: u64) -> Report {
        let mut tally = Tally::new().unwrap();
        for n in 0..1500 {
            tally.tried += 1;
            tally.sent += 1;
            tally.established(20_000 + n);
            tally.done(Instants {
                intended: 0,
                start: 0,
                sent: 21_000,
                first: 100_000 + 100 * n,
                last: 120_000 + 100 * n,
            });
        }
        for n in 0..failed {
            tally.tried += 1;
            tally.sent += 1;
            tally.established(25_000);
            tally.failure(&Failure::ErrLine("ERR busy".into()), 1_000_000 * n, 900_000);
        }
        let plan = Plan { clients: 1, until: crate::Until::Tries(1500 + failed as u32), ..Plan::default() };
        let addr = "127.0.0.1:2000".parse().unwrap();
        Report::new(&plan, addr, Ended::Finished, Duration::from_millis(300), tally, 1)
    }

    fn text(report: &Report) -> String {
        let mut out = Vec::new();
        write(report, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_good_run_fits_80_columns() {
        let text = text(&report(0));
        assert!(text.lines().skip(1).all(|line| line.len() <= 80), "{text}");
        assert!(
            text.starts_with("closed loop: 1 client x 1500 connections x 1 request of 3000 bytes to 127.0.0.1:2000")
        );
        assert!(text.contains("requests     1500 done, 0 failed, 0 not sent, 0 censored\n"), "{text}");
        assert!(text.contains("rate         5000 requests/s, "), "{text}");
        assert!(text.contains("latency, us "), "{text}");
        assert!(text.contains("needed: p99.9 10000\n"), "{text}");
        assert!(text.ends_with("OK: 1500 answers, every byte checked\n"), "{text}");
    }

    #[test]
    fn a_failure_has_phase_count_share_times_and_advice() {
        let text = text(&report(3));
        assert!(text.lines().skip(1).all(|line| line.len() <= 80), "{text}");
        let row = text.lines().find(|line| line.starts_with("request   ERR line")).unwrap();
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(cells, ["request", "ERR", "line", "from", "the", "server", "3", "0.2", "%", "0.000", "0.002"]);
        assert!(text.contains("\"ERR busy\"; oldest 900.0 us"), "{text}");
        assert!(text.contains("advice: "), "{text}");
        assert!(text.ends_with("FAILED: 3 of 1503 requests failed\n"), "{text}");
    }

    #[test]
    fn a_table_has_one_unit() {
        assert_eq!(unit(99_999_999).0, "us");
        assert_eq!(unit(100_000_000).0, "ms");
        assert_eq!(unit(100_000_000_000).0, "s");
    }
}

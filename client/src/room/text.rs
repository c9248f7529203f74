//! The report as text.

use std::io::{self, Write};

use super::{BUSY, Report, Wire};
use crate::stats::{PERCENTILES, percentile};

/// Writes it.
///
/// # Errors
/// Those of `out`.
pub fn write(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let plan = &report.plan;
    writeln!(
        out,
        "chat         {} members, {} of them talk: {}/s for {}, messages of {} bytes",
        plan.members,
        plan.senders,
        plan.rate,
        humantime::format_duration(plan.duration),
        plan.bytes
    )?;
    writeln!(
        out,
        "join         all in after {}, all told of all after {}; {} bytes came",
        seconds(report.join_seconds),
        seconds(report.settled_seconds),
        report.join_bytes
    )?;
    writeln!(out, "messages     {} due, {} sent", report.offered, report.sent)?;
    writeln!(
        out,
        "deliveries   {} expected, {} came, {} lost; {:.0}/s",
        report.expected,
        report.delivered,
        report.lost(),
        report.rate()
    )?;
    writeln!(out, "\nms           {:>9} {:>9} {:>9} {:>9} {:>9}", "p50", "p90", "p99", "p99.9", "max")?;
    for (name, histogram) in
        [("latency", &report.latency), ("from send", &report.from_send), ("spread", &report.spread)]
    {
        let ms = |ns: Option<u64>| ns.map_or_else(|| "-".into(), |ns| format!("{:.3}", ns as f64 / 1e6));
        let max = (!histogram.is_empty()).then(|| histogram.max());
        let cells = PERCENTILES.iter().map(|p| percentile(histogram, *p)).chain([max]);
        writeln!(out, "{name:12}{}", cells.map(|cell| format!(" {:>9}", ms(cell))).collect::<String>())?;
    }
    rest(report, out)
}

fn rest(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let plan = &report.plan;
    let share = report.client_share();
    writeln!(out, "\nclient       {:.1} % of a CPU", share * 100.0)?;
    if share > BUSY {
        writeln!(out, "             more than {:.0} %: this client may be what was measured", BUSY * 100.0)?;
    }
    let each = plan.rate / f64::from(plan.senders);
    let waits = percentile(&report.latency, 500).is_some_and(|ns| ns > 100_000_000);
    if plan.wire == Wire::Room && each > 10.0 && waits {
        writeln!(
            out,
            "             each sender talks {each:.0} times a second; these chats read 10, unless started with --rate N --burst N"
        )?;
    }
    if let (Some(server), Some(each)) = (&report.server, report.cpu_per_million()) {
        writeln!(
            out,
            "server       {:.3} s CPU while they talked, {:.3} s per million deliveries; at most {} bytes resident, {} processes, {} threads",
            server.cpu.total().as_secs_f64(),
            each.as_secs_f64(),
            server.peak_rss_bytes,
            server.peak_processes,
            server.peak_threads
        )?;
    }
    for line in &report.lost_members {
        writeln!(out, "lost         {line}")?;
    }
    for (nth, line) in report.dead.iter().enumerate() {
        writeln!(out, "dead reader  dead{nth}: {line}")?;
    }
    match (report.interrupted, report.is_good()) {
        (true, _) => writeln!(out, "INTERRUPTED"),
        (_, true) => writeln!(out, "OK: every message came to every member"),
        _ => writeln!(out, "FAILED: not everything came to everybody"),
    }
}

fn seconds(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.1} ms", seconds * 1e3) } else { format!("{seconds:.2} s") }
}

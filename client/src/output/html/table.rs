//! The tables of the page.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

use super::time;
use crate::limits::Cpu;
use crate::machine::Machine;
use crate::output::Run;
use crate::output::form::{self, escape};
use crate::report::{Limit, Report, Steer};
use crate::stats::{PERCENTILES, needed, percentile};

/// A table with a caption, whose first column heads the rows.
pub struct Table {
    caption: String,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
    /// The columns from this one on are numbers.
    numbers_from: usize,
    note: String,
}

impl Table {
    /// One without rows. Columns from `numbers_from` on are numbers.
    pub fn new(caption: &str, head: &[&str], numbers_from: usize) -> Self {
        let head = head.iter().map(ToString::to_string).collect();
        Table { caption: caption.to_owned(), head, rows: Vec::new(), numbers_from, note: String::new() }
    }

    /// Adds a row, with as many cells as the head has.
    pub fn row(&mut self, cells: &[String]) {
        self.rows.push(cells.to_vec());
    }

    /// Adds a line below the table.
    pub fn note(&mut self, text: &str) {
        text.clone_into(&mut self.note);
    }

    /// A row of a table of names and values.
    fn pair(&mut self, name: &str, value: impl Into<String>) {
        self.rows.push(vec![name.to_owned(), value.into()]);
    }

    fn class(&self, column: usize) -> &'static str {
        match column {
            _ if column >= self.numbers_from => " class=\"n\"",
            // Text from elsewhere, as long as it may be, is broken where it must be.
            2 => " class=\"x\"",
            _ => "",
        }
    }

    /// The element; all text in it is escaped here.
    pub fn html(&self) -> String {
        // A String takes whatever is written to it.
        let mut out = format!("<div class=\"wide\"><table>\n<caption>{}</caption>\n<thead><tr>", escape(&self.caption));
        for (column, head) in self.head.iter().enumerate() {
            _ = write!(out, "<th scope=\"col\"{}>{}</th>", self.class(column), escape(head));
        }
        out.push_str("</tr></thead>\n<tbody>\n");
        for row in &self.rows {
            out.push_str("<tr>");
            for (column, cell) in row.iter().enumerate() {
                let (tag, class) = if column == 0 { ("th scope=\"row\"", "") } else { ("td", self.class(column)) };
                let end = if column == 0 { "th" } else { "td" };
                _ = write!(out, "<{tag}{class}>{}</{end}>", escape(cell));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody>\n</table>");
        if !self.note.is_empty() {
            _ = write!(out, "<p class=\"note\">{}</p>", escape(&self.note));
        }
        out.push_str("</div>");
        out
    }
}

/// One row per run.
pub fn overview(runs: &[Run]) -> Table {
    let head = ["run", "requests/s", "done", "failed", "p50", "p99", "max", "client CPU per request"];
    let mut table = Table::new("Rate and response time of all runs", &head, 1);
    for Run { name, report } in runs {
        let response = &report.latency.response;
        let at = |p| time(percentile(response, p).map(|ns| ns as f64));
        table.row(&[
            name.clone(),
            form::count(report.requests_per_second().round() as u64),
            form::count(report.requests.done),
            form::count(report.failures()),
            at(500),
            at(990),
            time((!response.is_empty()).then(|| response.max() as f64)),
            report.cpu_us_per_request().map_or_else(String::new, |us| form::time(us * 1e3)),
        ]);
    }
    table
}

/// The fate of all requests and connections.
pub fn result(report: &Report) -> Table {
    let mut table = Table::new("Result", &["what", "value"], 1);
    let (requests, connections) = (&report.requests, &report.connections);
    table.pair("requests sent", form::count(requests.sent));
    table.pair("done", form::count(requests.done));
    table.pair("failed", form::count(requests.failed));
    let oldest = form::time(requests.censored_oldest_ns as f64);
    let oldest = if requests.censored > 0 { format!(" (oldest {oldest})") } else { String::new() };
    table.pair("unanswered at the end (censored)", form::count(requests.censored) + &oldest);
    if let Some(not_sent) = requests.not_sent {
        table.pair("in the plan and not sent", form::count(not_sent));
    }
    table.pair("connections made", form::count(connections.connected));
    table.pair("connections failed", form::count(connections.failed));
    table.pair("open at once at most", form::count(connections.peak_open));
    table.pair("elapsed", form::time(report.elapsed.as_nanos() as f64));
    table.pair("requests per second", form::count(report.requests_per_second().round() as u64));
    table.pair("received per second", form::bytes(report.bytes_per_second()));
    table
}

/// Where the time went.
pub fn latencies(report: &Report) -> Table {
    let head = ["phase", "samples", "min", "p50", "p90", "p99", "p99.9", "max", "mean"];
    let mut table = Table::new("Phases of a request", &head, 1);
    let latency = &report.latency;
    let rows = [
        ("connect: connect() to established", &latency.connect),
        ("first byte: send to the first byte", &latency.first_byte),
        ("service: send to the last byte", &latency.service),
        ("total: connect() or send to the last byte", &latency.total),
        ("response: intended start to the last byte", &latency.response),
        ("failed after", &latency.failed),
    ];
    let mut fewest = u64::MAX;
    for (name, histogram) in rows.into_iter().filter(|(_, histogram)| !histogram.is_empty()) {
        fewest = fewest.min(histogram.len());
        table.row(&phase(name, histogram));
    }
    if table.rows.is_empty() {
        table.note = "Nothing was measured.".to_owned();
    } else if fewest < needed(999) {
        let needs = PERCENTILES.iter().zip(["p50", "p90", "p99", "p99.9"]).filter(|(p, _)| fewest < needed(**p));
        let needs: Vec<String> = needs.map(|(p, name)| format!("{name} {}", form::count(needed(*p)))).collect();
        table.note = format!("\u{2013} fewer than 10 samples lie beyond; samples needed: {}.", needs.join(", "));
    }
    table
}

fn phase(name: &str, histogram: &Histogram<u64>) -> Vec<String> {
    let mut cells = vec![name.to_owned(), form::count(histogram.len()), form::time(histogram.min() as f64)];
    cells.extend(PERCENTILES.map(|p| time(percentile(histogram, p).map(|ns| ns as f64))));
    cells.extend([form::time(histogram.max() as f64), form::time(histogram.mean())]);
    cells
}

/// What failed, and what to do about it.
pub fn failures(report: &Report) -> Option<Table> {
    if report.failures.is_empty() {
        return None;
    }
    let head = ["failure", "phase", "example", "advice", "count", "share", "first", "last", "oldest"];
    let mut table = Table::new("Failures", &head, 4);
    let tried = report.requests.sent + report.connections.failed;
    for row in &report.failures {
        table.row(&[
            row.kind.title().to_owned(),
            row.phase.name().to_owned(),
            row.example.clone(),
            row.advice.to_owned(),
            form::count(row.count),
            format!("{:.1} %", 100.0 * row.count as f64 / tried.max(1) as f64),
            form::time(row.first_ns as f64),
            form::time(row.last_ns as f64),
            form::time(row.oldest_ns as f64),
        ]);
    }
    table.note = "Share of all requests sent and all connections that failed; first and last since the start of the \
                  run; oldest is how long such a request or connection waited at most."
        .to_owned();
    Some(table)
}

/// How far the figures can be trusted.
pub fn honesty(report: &Report) -> Table {
    let honesty = &report.honesty;
    let mut table = Table::new("How far these figures can be trusted", &["what", "value"], 2);
    table.pair("model", model(report));
    if report.plan.rate.is_some() {
        table.pair("due by the schedule", form::count(honesty.offered));
        table.pair("missed", format!("{} ({:.2} %)", form::count(honesty.missed), honesty.missed_percent));
        if !report.steered.is_empty() {
            let one = |steer: &Steer| format!("{} from {} on", form::short(steer.rate), form::time(steer.at_ns as f64));
            table.pair("rate set by hand", report.steered.iter().map(one).collect::<Vec<_>>().join(", "));
        }
        table.pair("had to wait for a free connection", form::count(honesty.waited));
        let (p99, max) = (form::time(honesty.lag_p99_ns as f64), form::time(honesty.lag_max_ns as f64));
        table.pair("started late by the client itself", format!("p99 {p99}, at most {max}"));
    }
    if honesty.warmup_ns > 0 {
        let (time, done) = (form::time(honesty.warmup_ns as f64), form::count(honesty.warmup_done));
        table.pair("warm-up", format!("{time}: {done} answers are not in the latencies"));
    }
    if let Some(rate) = honesty.rate {
        let [value, low, high] =
            [rate.value, rate.low, rate.high].map(|rate| form::count(rate.max(0.0).round() as u64));
        table.pair("rate, 95 % interval", format!("{value} requests per second ({low} to {high})"));
    }
    if let Some(r) = honesty.linearity {
        table.pair("evenness: correlation of answers and time", format!("r = {r:.5}"));
    }
    if let Some(steady) = honesty.steady {
        table.pair("steady", steady_words(report, steady));
    }
    table.pair("limited by", limit(honesty.limited_by));
    table.pair("busiest thread of the client", format!("{:.0} % of a core", honesty.client_cpu_percent));
    if let Some(others) = honesty.others_cpu_percent {
        table.pair("others on this machine", format!("{others:.0} % of a core"));
    }
    table.pair("turn of the client's loop, p99", form::time(honesty.loop_p99_ns as f64));
    if let Some(us) = report.cpu_us_per_request() {
        let (Cpu { user_ns, system_ns }, _) = report.measured_cpu();
        let share = 100.0 * user_ns as f64 / (user_ns + system_ns).max(1) as f64;
        table.pair("client CPU per request", format!("{} ({share:.0} % user)", form::time(us * 1e3)));
    }
    if honesty.syn_retransmitted > 0 {
        let connects = form::count(honesty.syn_retransmitted);
        table.pair("SYN sent again", format!("{connects} connects waited for it: the listen backlog overflowed"));
    }
    table
}

fn model(report: &Report) -> String {
    match report.plan.rate {
        Some(_) => "open loop: requests start when they are due, whatever the server does".to_owned(),
        None => {
            "closed loop: a slow server gets fewer requests, so its stalls weigh less than for strangers".to_owned()
        }
    }
}

fn steady_words(report: &Report, steady: bool) -> String {
    match (steady, report.honesty.propose_warmup_ns, report.honesty.drift_percent) {
        (true, ..) => "yes".to_owned(),
        (_, Some(cut), _) => format!("no; leave out the first {}", form::time(cut as f64)),
        (_, _, Some(drift)) => format!("no: the rate changed by {drift:+.0} % in the course of the run"),
        _ => "no".to_owned(),
    }
}

fn limit(limit: Limit) -> &'static str {
    match limit {
        Limit::Unknown => "not known: too short, or nothing near a limit",
        Limit::Client => "this client: it used up a core",
        Limit::Server => "the server: it was waited for while its cores were busy",
        Limit::Rate => "the rate: all that was due was done",
        Limit::Concurrency => "the number of clients: nobody was busy",
    }
}

/// What the server used.
pub fn server(report: &Report) -> Option<Table> {
    let used = report.server.as_ref()?;
    let mut table = Table::new("The server's processes", &["what", "value"], 1);
    let each = report.server_us_per_request().map(|us| form::time(us * 1e3)).unwrap_or_default();
    table.pair("first process", used.pid.to_string());
    let time = form::time(used.cpu.total().as_nanos() as f64);
    table.pair("CPU", format!("{time}, {each} per request done"));
    table.pair("of it user", form::time(used.cpu.user_ns as f64));
    table.pair("context switches, waited", form::count(used.voluntary_switches));
    table.pair("context switches, preempted", form::count(used.involuntary_switches));
    table.pair("memory at most", form::bytes(used.peak_rss_bytes as f64));
    table.pair("processes at most", form::count(used.peak_processes));
    table.pair("threads at most", form::count(used.peak_threads));
    Some(table)
}

/// What was asked for: every field of the plan, as it stands in the JSON.
pub fn plan(report: &Report) -> Table {
    let mut table = Table::new("Plan", &["what", "value"], 2);
    table.pair("in words", report.plan.describe());
    table.pair("server", report.addr.to_string());
    if let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(&report.plan) {
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            table.pair(&name.replace('_', " "), words(value));
        }
    }
    table
}

fn words(value: &serde_json::Value) -> String {
    use serde_json::Value;
    match value {
        Value::String(text) => text.clone(),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| format!("{} {}", name.replace('_', " "), words(value)));
            fields.collect::<Vec<_>>().join(", ")
        }
        Value::Array(values) if values.is_empty() => "none".to_owned(),
        Value::Array(values) => values.iter().map(words).collect::<Vec<_>>().join(", "),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(number) => number.as_f64().map_or_else(|| number.to_string(), |n| n.to_string()),
        Value::Null => "none".to_owned(),
    }
}

/// The client's machine.
pub fn machine(machine: &Machine) -> Table {
    let mut table = Table::new("Machine of the client", &["what", "value"], 2);
    table.pair("started", form::date(machine.started_ns));
    table.pair("kernel", format!("Linux {}", machine.kernel));
    table.pair("CPU", machine.cpu.as_str());
    table.pair("cores", machine.cores.to_string());
    if let Some(memory) = machine.memory_bytes {
        table.pair("memory", form::bytes(memory as f64));
    }
    table
}

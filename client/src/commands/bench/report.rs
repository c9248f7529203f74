//! What the rounds say: a table, ratios with intervals, a sentence.

use std::io::{self, Write};

use client::Plan;
use client::compare::{Pair, Verdict, band, holm, median};
use client::output::html::Table;
use client::random::Random;
use client::report::Interval;
use serde::Serialize;

use super::super::cell;
use super::rival::Peer;
use super::{Arm, Sample};

type Pick = fn(&Sample) -> Option<f64>;

/// The figures of a round that are compared, and the words for more and less of them.
const METRICS: [(&str, Pick, &str, &str); 5] = [
    ("rate", |s| s.rate, "more requests per second", "fewer requests per second"),
    ("p50", |s| s.p50_us, "a longer p50", "a shorter p50"),
    ("p99", |s| s.p99_us, "a longer p99", "a shorter p99"),
    ("server CPU", |s| s.server_us, "more server CPU per request", "less server CPU per request"),
    ("client CPU", |s| s.client_us, "more client CPU per request", "less client CPU per request"),
];

/// One server against another in one figure.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    metric: &'static str,
    first: String,
    second: String,
    #[serde(flatten)]
    pair: Pair,
    band: f64,
    verdict: Verdict,
}

/// Everything a bench found.
#[derive(Debug, Serialize)]
pub struct Outcome {
    schema: u32,
    kind: &'static str,
    plan: Plan,
    servers: Vec<Arm>,
    /// The first server a second time.
    again: Option<Arm>,
    peers: Vec<Peer>,
    baseline: Option<String>,
    comparisons: Vec<Line>,
    verdict: Vec<String>,
}

impl Outcome {
    pub fn of(
        plan: &Plan,
        mut arms: Vec<Arm>,
        peers: Vec<Peer>,
        baseline: Option<String>,
        random: &mut Random,
    ) -> Self {
        let again = arms.pop();
        let mut comparisons = Vec::new();
        for (metric, pick, ..) in METRICS {
            let noise = again.as_ref().zip(arms.first()).map(|(again, first)| ratios(first, again, pick));
            comparisons.extend(compare(metric, pick, &arms, band(&noise.unwrap_or_default(), random), random));
        }
        let verdict = sentences(&comparisons);
        Outcome {
            schema: 1,
            kind: "bench",
            plan: plan.clone(),
            servers: arms,
            again,
            peers,
            baseline,
            comparisons,
            verdict,
        }
    }

    /// Whether any answer was wrong or missing.
    pub fn failed(&self) -> bool {
        self.servers.iter().chain(&self.again).flat_map(|arm| &arm.samples).any(|sample| sample.failed > 0)
    }

    /// Whether every pair has a verdict about the rate.
    pub fn is_decided(&self) -> bool {
        !self.comparisons.iter().any(|line| line.metric == "rate" && line.verdict == Verdict::Undecided)
    }

    pub fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let rounds = self.servers.first().map_or(0, |arm| arm.samples.len());
        writeln!(out, "{}; {rounds} rounds, medians\n", self.plan.describe())?;
        writeln!(
            out,
            "{:<18}{:>10}{:>10}{:>10}{:>10}{:>11}{:>11}",
            "server", "rate/s", "p50 us", "p90 us", "p99 us", "server us", "client us"
        )?;
        for arm in self.servers.iter().chain(&self.again) {
            write!(out, "{:<18}", arm.name)?;
            let picks: [Pick; 4] = [|s| s.rate, |s| s.p50_us, |s| s.p90_us, |s| s.p99_us];
            for pick in picks {
                write!(out, "{:>10}", cell(middle(arm, pick)))?;
            }
            writeln!(out, "{:>11}{:>11}", cell(middle(arm, |s| s.server_us)), cell(middle(arm, |s| s.client_us)))?;
        }
        writeln!(out, "server us, client us: CPU time per request")?;
        self.print_lines(out)?;
        self.print_baseline(out)?;
        self.print_peers(out)?;
        writeln!(out)?;
        self.verdict.iter().try_for_each(|sentence| writeln!(out, "{sentence}"))?;
        if self.failed() {
            writeln!(out, "FAILED: not every answer came and was right")?;
        }
        Ok(())
    }

    /// A row per server and round.
    pub fn csv(&self, out: &mut dyn Write) -> io::Result<()> {
        write!(out, "server,round,requests_per_s,p50_us,p90_us,p99_us,server_us,client_us,failed\r\n")?;
        for arm in self.servers.iter().chain(&self.again) {
            for sample in &arm.samples {
                let figures =
                    [sample.rate, sample.p50_us, sample.p90_us, sample.p99_us, sample.server_us, sample.client_us];
                let figures = figures.map(|value| value.map(|value| format!("{value:.3}")).unwrap_or_default());
                let name = client::output::csv::cell(&arm.name);
                write!(out, "{name},{},{},{}\r\n", sample.round, figures.join(","), sample.failed)?;
            }
        }
        Ok(())
    }

    /// What is printed, as tables of a page.
    pub fn tables(&self) -> Vec<Table> {
        let rounds = self.servers.first().map_or(0, |arm| arm.samples.len());
        let head = ["server", "rate/s", "p50 us", "p90 us", "p99 us", "server us", "client us"];
        let mut servers = Table::new(&format!("Medians of {rounds} rounds"), &head, 1);
        let picks: [Pick; 6] = [|s| s.rate, |s| s.p50_us, |s| s.p90_us, |s| s.p99_us, |s| s.server_us, |s| s.client_us];
        for arm in self.servers.iter().chain(&self.again) {
            let cells = picks.iter().map(|pick| cell(middle(arm, *pick)));
            servers.row(&[vec![arm.name.clone()], cells.collect()].concat());
        }
        servers.note("server us and client us are CPU time per request, in microseconds");
        let head = ["second / first", "of", "verdict", "ratio", "95 % interval", "p", "noise"];
        let mut lines = Table::new("Comparisons", &head, 3);
        for line in &self.comparisons {
            let Interval { value, low, high } = line.pair.ratio;
            lines.row(&[
                format!("{} / {}", line.second, line.first),
                line.metric.to_owned(),
                format!("{:?}", line.verdict).to_lowercase(),
                format!("{value:.3}"),
                format!("{low:.3} to {high:.3}"),
                format!("{:.4}", line.pair.p),
                format!("{:.1} %", 100.0 * line.band),
            ]);
        }
        let mut tables = vec![servers, lines];
        if let Some(base) = self.base() {
            let caption = format!("Process control CPU time per request (server CPU minus that of {})", base.name);
            let mut table = Table::new(&caption, &["server", "us"], 1);
            self.extra(base).for_each(|(name, us)| table.row(&[name.to_owned(), format!("{us:.1}")]));
            tables.push(table);
        }
        tables
    }

    fn base(&self) -> Option<&Arm> {
        self.servers.iter().find(|arm| Some(&arm.name) == self.baseline.as_ref())
    }

    /// The CPU time of each server beyond that of the base: median of the differences of the rounds.
    fn extra<'a>(&'a self, base: &'a Arm) -> impl Iterator<Item = (&'a str, f64)> {
        self.servers.iter().map(move |arm| {
            let extra: Vec<f64> = paired(base, arm, |s| s.server_us).map(|(base, one)| one - base).collect();
            (arm.name.as_str(), median(&extra))
        })
    }

    fn print_lines(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.comparisons.is_empty() {
            return Ok(());
        }
        let head = "second / first";
        writeln!(out, "\n{head:<30}{:>12}{:>8}{:>18}{:>8}{:>9}", "", "ratio", "95 % interval", "p", "noise")?;
        for line in &self.comparisons {
            let (ratio, names) = (line.pair.ratio, format!("{} / {}", line.second, line.first));
            let interval = format!("{:.3} to {:.3}", ratio.low, ratio.high);
            let noise = format!("{:.1} %", 100.0 * line.band);
            let (value, p) = (ratio.value, line.pair.p);
            writeln!(out, "{names:<30}{:>12}{value:>8.3}{interval:>18}{p:>8.4}{noise:>9}", line.metric)?;
        }
        Ok(())
    }

    fn print_baseline(&self, out: &mut dyn Write) -> io::Result<()> {
        let Some(base) = self.base() else { return Ok(()) };
        writeln!(out, "\nprocess control CPU time, us per request (server CPU minus that of {})", base.name)?;
        self.extra(base).try_for_each(|(name, us)| writeln!(out, "{name:<18}{us:>10.1}"))
    }

    fn print_peers(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.peers.is_empty() {
            return Ok(());
        }
        writeln!(out, "\nload generators, us CPU per request of their own")?;
        let own = self.servers.first().and_then(|arm| middle(arm, |s| s.client_us));
        writeln!(out, "{:<18}{:>10}", "client", cell(own))?;
        for peer in &self.peers {
            writeln!(out, "{:<18}{:>10.1}", peer.name, median(&peer.cpu_us))?;
        }
        Ok(())
    }
}

fn middle(arm: &Arm, pick: Pick) -> Option<f64> {
    let values: Vec<f64> = arm.samples.iter().filter_map(pick).collect();
    (!values.is_empty()).then(|| median(&values))
}

/// The figures of two servers, round by round.
fn paired(first: &Arm, second: &Arm, pick: Pick) -> impl Iterator<Item = (f64, f64)> {
    let pairs = first.samples.iter().zip(&second.samples);
    pairs.filter_map(move |(a, b)| Some((pick(a)?, pick(b)?)))
}

fn ratios(first: &Arm, second: &Arm, pick: Pick) -> Vec<f64> {
    let ratios = paired(first, second, pick).map(|(a, b)| b / a);
    ratios.filter(|ratio| ratio.is_finite() && *ratio > 0.0).collect()
}

fn compare(metric: &'static str, pick: Pick, arms: &[Arm], band: f64, random: &mut Random) -> Vec<Line> {
    let mut lines = Vec::new();
    for (place, first) in arms.iter().enumerate() {
        for second in arms.iter().skip(place + 1) {
            let ratios = ratios(first, second, pick);
            if ratios.is_empty() {
                continue;
            }
            let (first, second, pair) = (first.name.clone(), second.name.clone(), Pair::of(&ratios, random));
            lines.push(Line { metric, first, second, pair, band, verdict: Verdict::Undecided });
        }
    }
    let corrected = holm(&lines.iter().map(|line| line.pair.p).collect::<Vec<_>>());
    for (line, p) in lines.iter_mut().zip(corrected) {
        line.pair.p = p;
        line.verdict = line.pair.verdict(band);
    }
    lines
}

fn sentences(lines: &[Line]) -> Vec<String> {
    let words = |line: &Line| {
        let (_, _, more, less) = METRICS.iter().find(|metric| metric.0 == line.metric)?;
        let (ratio, first, second) = (line.pair.ratio, &line.first, &line.second);
        let (value, low, high) = (ratio.value, ratio.low, ratio.high);
        Some(match line.verdict {
            Verdict::Same => {
                format!("{second} and {first}: {} the same within {:.1} %", line.metric, 100.0 * line.band)
            }
            Verdict::More => format!("{second} has {more} than {first}: x {value:.2} ({low:.2} to {high:.2})"),
            Verdict::Less => format!("{second} has {less} than {first}: x {value:.2} ({low:.2} to {high:.2})"),
            Verdict::Undecided => format!("{second} and {first}: {} undecided, more rounds would tell", line.metric),
        })
    };
    lines.iter().filter_map(words).collect()
}

//! The charts.

use std::error::Error;
use std::fmt::Write as _;
use std::io;

use hdrhistogram::Histogram;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::WIDTH;
use super::axis::{Axis, log};
use crate::output::Run;
use crate::output::form::{self, escape};
use crate::report::Report;

const PAPER: RGBColor = RGBColor(0xFF, 0xFF, 0xFF);
pub(super) const INK: RGBColor = RGBColor(0x1B, 0x1F, 0x24);
const AXIS: RGBColor = RGBColor(0x6B, 0x74, 0x80);
const GRID: RGBColor = RGBColor(0xD9, 0xDE, 0xE4);
pub(super) const LINES: [RGBColor; 6] = [
    RGBColor(0x0B, 0x63, 0xB5),
    RGBColor(0xB8, 0x4A, 0x00),
    RGBColor(0x1A, 0x7F, 0x4B),
    RGBColor(0x8A, 0x3F, 0xB0),
    RGBColor(0xA3, 0x28, 0x5A),
    RGBColor(0x5A, 0x6B, 0x00),
];
const HEIGHT: u32 = 400;
/// Height of one row of the legend, and about what a letter of it takes.
const ROW: u32 = 24;
const LETTER: u32 = 8;
/// More of a name is cut.
const LONGEST_NAME: usize = 40;

pub(super) type Drawing<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub(super) type Plane<'b, 'a> = ChartContext<'b, SVGBackend<'a>, Cartesian2d<Axis, Axis>>;

/// A chart, ready to stand in a document.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// How to read it, and its main figures.
    pub about: String,
    /// Its height; all are [`WIDTH`] wide.
    pub height: u32,
    id: String,
    body: String,
}

impl Chart {
    /// As an element of SVG or of HTML with these attributes.
    pub fn element(&self, attributes: &str) -> String {
        let Chart { title, about, height, id, body } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" {attributes} viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
             aria-labelledby=\"{id}-title {id}-desc\">\n<title id=\"{id}-title\">{}</title>\n\
             <desc id=\"{id}-desc\">{}</desc>\n{body}</svg>",
            escape(title),
            escape(about)
        )
    }
}

/// A line of a chart. Its `doubtful` end is drawn dashed.
struct Line {
    name: String,
    color: RGBColor,
    points: Vec<(f64, f64)>,
    doubtful: Vec<(f64, f64)>,
    /// Each point is a measurement of its own, and shown.
    marked: bool,
}

impl Line {
    fn new(name: &str, number: usize, points: Vec<(f64, f64)>) -> Self {
        let color = LINES.get(number % LINES.len()).copied().unwrap_or(INK);
        Line { name: name.to_owned(), color, points, doubtful: Vec::new(), marked: false }
    }
}

/// Draws into the part below the legend.
pub(super) fn drawn(
    id: &str,
    title: &str,
    about: String,
    legend: &[(String, RGBColor)],
    draw: impl for<'a> FnOnce(&Drawing<'a>) -> Result<(), Box<dyn Error + 'a>>,
) -> io::Result<Chart> {
    let (legend, top) = rows(legend);
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, HEIGHT)).into_drawing_area();
        let result = area.fill(&PAPER).map_err(Into::into).and_then(|()| draw(&area));
        result.map_err(|error| io::Error::other(format!("draw {id}: {error}")))?;
        area.present().map_err(|error| io::Error::other(format!("draw {id}: {error}")))?;
    }
    let height = HEIGHT + top;
    // Without the outer element of the library, which has no title.
    let inner = text.split_once('>').and_then(|(_, rest)| rest.rsplit_once("</svg>")).map_or("", |(inner, _)| inner);
    let paper = format!("<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#FFFFFF\"/>");
    let body = format!("{paper}\n{legend}<g transform=\"translate(0 {top})\">{inner}</g>\n");
    Ok(Chart { title: title.to_owned(), about, height, id: id.to_owned(), body })
}

/// The legend, in as many rows as it takes, and its height.
fn rows(legend: &[(String, RGBColor)]) -> (String, u32) {
    let (mut out, mut left, mut row) = (String::new(), 16, 0);
    for (name, RGBColor(r, g, b)) in legend {
        let name = cut(name);
        let width = 34 + LETTER * name.chars().count() as u32 + 18;
        if left + width > WIDTH && left > 16 {
            (left, row) = (16, row + 1);
        }
        let (y, text, base) = (row * ROW + 12, left + 34, row * ROW + 17);
        // A String takes whatever is written to it.
        _ = writeln!(
            out,
            "<rect x=\"{left}\" y=\"{}\" width=\"26\" height=\"4\" fill=\"#{r:02X}{g:02X}{b:02X}\"/>\
             <text x=\"{text}\" y=\"{base}\" font-family=\"sans-serif\" font-size=\"14\" fill=\"#1B1F24\">{}</text>",
            y - 2,
            escape(&name)
        );
        left += width;
    }
    (out, if legend.is_empty() { 0 } else { (row + 1) * ROW })
}

fn cut(name: &str) -> String {
    if name.chars().count() <= LONGEST_NAME {
        return name.to_owned();
    }
    name.chars().take(LONGEST_NAME - 1).chain(['\u{2026}']).collect()
}

fn font(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

/// Axes and grid.
pub(super) fn plane<'a, 'b>(area: &'b Drawing<'a>, x: &Axis, y: &Axis) -> Result<Plane<'b, 'a>, Box<dyn Error + 'a>> {
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .margin_right(36)
        .x_label_area_size(52)
        .y_label_area_size(86)
        .build_cartesian_2d(x.clone(), y.clone())?;
    chart
        .configure_mesh()
        .x_desc(x.name)
        .y_desc(y.name)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(AXIS)
        .label_style(font(13))
        .axis_desc_style(font(14))
        .draw()?;
    Ok(chart)
}

/// Axes, grid and lines.
fn lines<'a>(area: &Drawing<'a>, x: &Axis, y: &Axis, lines: &[Line]) -> Result<(), Box<dyn Error + 'a>> {
    let mut chart = plane(area, x, y)?;
    for line in lines {
        let style = line.color.stroke_width(2);
        chart.draw_series(LineSeries::new(line.points.iter().copied(), style))?;
        if line.marked || line.points.len() == 1 {
            chart.draw_series(line.points.iter().map(|point| Circle::new(*point, 3, line.color.filled())))?;
        }
        chart.draw_series(DashedLineSeries::new(line.doubtful.iter().copied(), 4, 4, style))?;
    }
    Ok(())
}

fn legend(lines: &[Line]) -> Vec<(String, RGBColor)> {
    lines.iter().map(|line| (line.name.clone(), line.color)).collect()
}

pub(super) fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |bounds, value| match bounds {
        None => Some((value, value)),
        Some((low, high)) => Some((value.min(low), value.max(high))),
    })
}

fn all(lines: &[Line]) -> impl Iterator<Item = (f64, f64)> {
    lines.iter().flat_map(|line| line.points.iter().chain(&line.doubtful).copied())
}

/// Latency by percentile: of one run its latencies, of several the response times.
pub fn percentiles(runs: &[Run]) -> io::Result<Option<Chart>> {
    let histograms: Vec<(String, &Histogram<u64>)> = match runs {
        [run] => of_one(&run.report),
        runs => runs.iter().map(|run| (run.name.clone(), &run.report.latency.response)).collect(),
    };
    let curves = histograms.iter().enumerate().filter(|(_, (_, histogram))| !histogram.is_empty());
    let curves: Vec<Line> = curves.map(|(number, (name, histogram))| curve(name, number, histogram)).collect();
    let Some((low, high)) = bounds(all(&curves).map(|(_, y)| y)) else { return Ok(None) };
    let samples = histograms.iter().map(|(_, histogram)| histogram.len()).max().unwrap_or_default();
    let what = if runs.len() == 1 { "latencies" } else { "response times" };
    let about = format!(
        "Share of requests across, on a scale where each 9 takes the same room; the time that share kept to upwards, \
         logarithmic. Dashed where fewer than 10 samples lie beyond. {}.",
        form::count(samples) + " samples at most, longest " + &form::time(10_f64.powf(high))
    );
    let x = Axis::percentiles("share of requests that were at most so slow", samples);
    let y = Axis::times("time", low, high);
    let chart = drawn("percentiles", &format!("Percentiles of the {what}"), about, &legend(&curves), |area| {
        lines(area, &x, &y, &curves)
    });
    chart.map(Some)
}

fn of_one(report: &Report) -> Vec<(String, &Histogram<u64>)> {
    let latency = &report.latency;
    let mut all =
        vec![("connect", &latency.connect), ("first byte", &latency.first_byte), ("service", &latency.service)];
    match report.plan.rate {
        Some(_) => all.push(("response", &latency.response)),
        None => all.push(("total", &latency.total)),
    }
    // What is the same for every request, as first byte and service of short answers, is one line of two names.
    let mut lines: Vec<(String, &Histogram<u64>)> = Vec::new();
    for (name, histogram) in all {
        match lines.iter_mut().find(|(_, other)| *other == histogram && !histogram.is_empty()) {
            Some((names, _)) => names.push_str(&format!(", {name}")),
            None => lines.push((name.to_owned(), histogram)),
        }
    }
    lines
}

fn curve(name: &str, number: usize, histogram: &Histogram<u64>) -> Line {
    let samples = histogram.len() as f64;
    let mut line = Line::new(name, number, Vec::new());
    for row in histogram.iter_quantiles(10) {
        let beyond = 1.0 - row.quantile_iterated_to();
        let point = ((1.0 / beyond.max(1.0 / samples)).log10(), log(row.value_iterated_to() as f64));
        if beyond * samples >= 10.0 - 1e-6 {
            line.points.push(point);
        } else {
            if line.doubtful.is_empty() {
                line.doubtful.extend(line.points.last());
            }
            line.doubtful.push(point);
        }
    }
    line
}

/// Requests per second in the course of the run: of one run with what was offered and what failed.
pub fn rate(runs: &[Run]) -> io::Result<Option<Chart>> {
    let mut steps = Vec::new();
    for (number, run) in runs.iter().enumerate() {
        let name = if runs.len() == 1 { "done" } else { &run.name };
        steps.push(per_second(name, number, &run.report, |slice| slice.done));
    }
    if let [run] = runs {
        if run.report.plan.rate.is_some() {
            steps.push(per_second("due", 2, &run.report, |slice| slice.offered));
        }
        if run.report.failures() > 0 {
            steps.push(per_second("failed", 1, &run.report, |slice| slice.failed));
        }
    }
    let Some((_, end)) = bounds(all(&steps).map(|(x, _)| x)).filter(|(_, end)| *end > 0.0) else { return Ok(None) };
    let top = all(&steps).map(|(_, y)| y).fold(1.0, f64::max);
    let about = format!("Seconds across, requests per second upwards; at most {} per second.", form::short(top));
    let (x, y) = (Axis::numbers("time, s", end), Axis::numbers("requests per second", top * 1.08));
    let chart =
        drawn("rate", "Rate in the course of the run", about, &legend(&steps), |area| lines(area, &x, &y, &steps));
    chart.map(Some)
}

/// Steps, because a slice has one rate.
fn per_second(name: &str, number: usize, report: &Report, what: impl Fn(&crate::report::Slice) -> u64) -> Line {
    let mut points = Vec::new();
    for slice in &report.series {
        // The last slice may be so short that chance makes its rate.
        if slice.length_ns == 0 || slice.length_ns * 4 < usual(report) {
            continue;
        }
        let rate = what(slice) as f64 / (slice.length_ns as f64 / 1e9);
        let start = slice.start_ns as f64 / 1e9;
        points.extend([(start, rate), (start + slice.length_ns as f64 / 1e9, rate)]);
    }
    Line::new(name, number, points)
}

/// The length of all slices but the last.
fn usual(report: &Report) -> u64 {
    report.series.first().map_or(0, |slice| slice.length_ns)
}

/// Response time against load, one point per run: for runs of one server at several rates or numbers of clients.
pub fn load(runs: &[Run]) -> io::Result<Option<Chart>> {
    let mut loads: Vec<(u64, u32)> = runs
        .iter()
        .map(|run| (run.report.plan.rate.map_or(0, |rate| rate.to as u64), run.report.plan.clients))
        .collect();
    loads.sort_unstable();
    loads.dedup();
    let open = runs.iter().filter(|run| run.report.plan.rate.is_some()).count();
    // Points of a closed and of an open loop make no line together.
    if loads.len() < 2 || (open > 0 && open < runs.len()) {
        return Ok(None);
    }
    let mut curves = Vec::new();
    for (number, (name, p)) in [("p50", 500), ("p90", 900), ("p99", 990)].into_iter().enumerate() {
        let point = |run: &Run| {
            let time = crate::stats::percentile(&run.report.latency.response, p)?;
            Some((run.report.requests_per_second(), log(time as f64)))
        };
        let mut points: Vec<(f64, f64)> = runs.iter().filter_map(point).collect();
        points.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        curves.push(Line { marked: true, ..Line::new(name, number, points) });
    }
    let ys = bounds(all(&curves).map(|(_, y)| y));
    let most = all(&curves).map(|(x, _)| x).fold(0.0, f64::max);
    let Some((low, high)) = ys.filter(|_| most > 0.0) else { return Ok(None) };
    let about = "Requests done per second across, response time upwards, logarithmic; one point per run. Where the \
                 line turns up the server has no more to give.";
    let (x, y) = (Axis::numbers("requests done per second", most * 1.05), Axis::times("response time", low, high));
    let chart = drawn("load", "Response time against rate", about.to_owned(), &legend(&curves), |area| {
        lines(area, &x, &y, &curves)
    });
    chart.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_cut_and_a_long_legend_has_rows() {
        assert_eq!(cut(&"x".repeat(41)).chars().count(), LONGEST_NAME);
        let legend: Vec<(String, RGBColor)> = (0..6).map(|n| (format!("<{n}>").repeat(9), INK)).collect();
        let (text, height) = rows(&legend);
        assert!(height >= 2 * ROW && text.contains("&lt;0&gt;") && !text.contains("<0>"), "{text}");
        assert_eq!(rows(&[]).1, 0);
    }
}

//! Charts of one or more runs as SVG. Without a script, and each with a title and a description for those who do not
//! see it.
//!
//! Every color is one of a few that stand in the drawing as attributes; the style sheet gives each a second value for a
//! dark screen. A program that knows no CSS shows the first.

mod axis;
mod chart;
mod heat;

use std::fmt::Write as _;
use std::io;

use super::Run;
use super::form::escape;

pub use chart::Chart;

/// Width of every chart.
pub const WIDTH: u32 = 900;
/// Height of the heading that a chart has in a file of its own.
const HEADING: u32 = 40;
/// More runs than this have no colors left; the first so many are drawn.
pub const MOST_RUNS: usize = 6;

/// The colors of a chart on white paper, and on a dark screen.
const COLORS: [(&str, &str); 10] = [
    ("#FFFFFF", "#15181C"),
    ("#1B1F24", "#E6E9ED"),
    ("#6B7480", "#9AA4B0"),
    ("#D9DEE4", "#343B44"),
    ("#0B63B5", "#6CB6FF"),
    ("#B84A00", "#FF9D57"),
    ("#1A7F4B", "#5BD08F"),
    ("#8A3FB0", "#D09AF5"),
    ("#A3285A", "#FF86B3"),
    ("#5A6B00", "#C5D94A"),
];

/// What a dark screen changes, as rules of a style sheet. `within` selects the drawing.
pub fn style(within: &str) -> String {
    let mut rules = String::new();
    for (light, dark) in COLORS {
        for property in ["fill", "stroke"] {
            // A String takes whatever is written to it.
            _ = write!(rules, "{within} [{property}=\"{light}\"]{{{property}:{dark}}}");
        }
    }
    format!("@media screen and (prefers-color-scheme:dark){{{rules}}}")
}

/// All charts that these runs have something to show for.
///
/// # Errors
/// What the drawing library says; there is no known cause.
pub fn charts(runs: &[Run]) -> io::Result<Vec<Chart>> {
    let runs = runs.get(..MOST_RUNS.min(runs.len())).unwrap_or_default();
    let mut charts = Vec::new();
    charts.extend(chart::percentiles(runs)?);
    charts.extend(chart::load(runs)?);
    charts.extend(chart::rate(runs)?);
    for (number, run) in runs.iter().enumerate() {
        charts.extend(heat::heat(run, number, runs.len())?);
    }
    Ok(charts)
}

/// All charts below one another in one file.
///
/// # Errors
/// Those of `out`.
pub fn write(runs: &[Run], out: &mut dyn io::Write) -> io::Result<()> {
    let charts = charts(runs)?;
    let height: u32 = charts.iter().map(|chart| chart.height + HEADING).sum::<u32>().max(HEADING);
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\">"
    )?;
    let names: Vec<String> = runs.iter().map(|run| escape(&run.name)).collect();
    writeln!(out, "<title>Load test: {}</title>", names.join(", "))?;
    writeln!(out, "<style>{}</style>", style("svg"))?;
    writeln!(out, "<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#FFFFFF\"/>")?;
    if charts.is_empty() {
        writeln!(out, "<text x=\"16\" y=\"26\" font-size=\"16\" fill=\"#1B1F24\">Nothing was measured.</text>")?;
    }
    let mut top = 0;
    for chart in &charts {
        let title = escape(&chart.title);
        let base = top + 26;
        writeln!(
            out,
            "<text x=\"16\" y=\"{base}\" font-size=\"17\" font-weight=\"bold\" fill=\"#1B1F24\">{title}</text>"
        )?;
        top += HEADING;
        writeln!(out, "{}", chart.element(&format!("y=\"{top}\" width=\"{WIDTH}\" height=\"{}\"", chart.height)))?;
        top += chart.height;
    }
    writeln!(out, "</svg>")
}

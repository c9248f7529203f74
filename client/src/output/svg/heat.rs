//! The heat map: when requests took how long.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use plotters::prelude::*;

use super::axis::{Axis, log};
use super::chart::{Chart, INK, LINES, bounds, drawn, plane};
use crate::output::Run;
use crate::output::form;
use crate::report::Report;

/// Shades of the heat map; neighbors of one shade are one rectangle.
const SHADES: f64 = 12.0;
const FAINTEST: f64 = 2.0;

/// A rectangle of the heat map: seconds across, logarithm of time upwards, and how dark.
type Cell = (Range<f64>, Range<f64>, f64);

/// Response times in the course of a run: the more requests, the stronger the color.
pub fn heat(run: &Run, number: usize, of: usize) -> io::Result<Option<Chart>> {
    let report = &run.report;
    let cells = cells(report);
    let ys = bounds(cells.iter().flat_map(|(_, y, _)| [y.start, y.end]));
    let Some(((low, high), last)) = ys.zip(report.series.last()) else { return Ok(None) };
    let longest = report.series.iter().map(|slice| slice.max_ns).max().unwrap_or_default();
    let end = (last.start_ns + last.length_ns) as f64 / 1e9;
    let title = match of {
        1 => "Response times in the course of the run".to_owned(),
        _ => format!("Response times in the course of the run: {}", run.name),
    };
    let about = format!(
        "Seconds across, response time upwards, logarithmic. The stronger the color, the more requests. Longest {}.",
        form::time(longest as f64)
    );
    let color = LINES.get(if of == 1 { 0 } else { number } % LINES.len()).copied().unwrap_or(INK);
    let x = Axis::numbers("time, s", end);
    let y = Axis::times("response time", low, high.max(log(longest as f64)));
    let chart = drawn(&format!("heat-{number}"), &title, about, &[], |area| {
        let mut chart = plane(area, &x, &y)?;
        let rectangle = |(x, y, shade): &Cell| {
            Rectangle::new([(x.start, y.end), (x.end, y.start)], color.mix(shade / SHADES).filled())
        };
        chart.draw_series(cells.iter().map(rectangle))?;
        Ok(())
    });
    chart.map(Some)
}

/// The rectangles: in each row those of one shade that touch are one.
fn cells(report: &Report) -> Vec<Cell> {
    let density = |count: u64, length: u64| count as f64 / (length.max(1) as f64);
    let cells = report.series.iter().flat_map(|slice| slice.heat.iter().map(move |(k, count)| (slice, *k, *count)));
    let (few, most) =
        bounds(cells.clone().map(|(slice, _, count)| density(count, slice.length_ns).ln())).unwrap_or_default();
    let mut rows: BTreeMap<u16, Vec<Cell>> = BTreeMap::new();
    for (slice, k, count) in cells.filter(|(.., count)| *count > 0) {
        // Logarithmic between the fewest and the most that there are, so that a single slow request is seen too.
        let part = (density(count, slice.length_ns).ln() - few) / (most - few).max(1e-9);
        let shade = (FAINTEST + (SHADES - FAINTEST) * part).round();
        let start = slice.start_ns as f64 / 1e9;
        let end = (slice.start_ns + slice.length_ns) as f64 / 1e9;
        let row = rows.entry(k).or_default();
        match row.last_mut() {
            Some((x, _, before)) if *before == shade && x.end == start => x.end = end,
            _ => {
                let log = |k: u16| f64::from(k) / 4.0 * 2_f64.log10();
                row.push((start..end, log(k)..log(k + 1), shade));
            }
        }
    }
    rows.into_values().flatten().collect()
}

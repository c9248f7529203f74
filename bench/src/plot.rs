//! The growth with the number of clients, as a picture.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// Where the chart ends and the names of its lines begin.
const WIDTH: i32 = 680;

/// A line of the picture: a design, and its server CPU time per request in microseconds at each number of clients.
pub type Line = (String, Vec<(u32, f64)>);

/// Draws the lines, both axes logarithmic, as SVG.
///
/// # Errors
/// Where the file cannot be written.
pub fn growth(path: &Path, title: &str, lines: &[Line]) -> Result<()> {
    draw(path, title, lines).map_err(|e| anyhow!("{}: {e}", path.display()))
}

fn draw(path: &Path, title: &str, lines: &[Line]) -> Result<(), Box<dyn std::error::Error>> {
    let points = || lines.iter().flat_map(|(_, points)| points.iter());
    let most_clients = points().map(|(clients, _)| *clients).max().unwrap_or(10);
    let most = points().map(|(_, us)| *us).fold(1.0, f64::max) * 1.2;
    let least = points().map(|(_, us)| *us).filter(|us| *us > 0.0).fold(most, f64::min) / 1.2;

    let area = SVGBackend::new(path, (900, 560)).into_drawing_area();
    area.fill(&WHITE)?;
    let (left, right) = area.split_horizontally(WIDTH);
    let mut chart = ChartBuilder::on(&left)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d((1..most_clients).log_scale(), (least..most).log_scale())?;
    chart.configure_mesh().x_desc("clients at once").y_desc("server CPU per request, us").draw()?;
    let style = |index: usize| Palette99::pick(index).to_rgba().stroke_width(if index == 0 { 4 } else { 2 });
    for (index, (_, points)) in lines.iter().enumerate() {
        chart.draw_series(LineSeries::new(points.iter().copied(), style(index)).point_size(3))?;
    }
    // In the order in which the lines end, the dearest first.
    let mut names: Vec<_> = lines.iter().enumerate().collect();
    let end = |points: &[(u32, f64)]| points.last().map_or(0.0, |(_, us)| *us);
    names.sort_by(|(_, (_, a)), (_, (_, b))| end(b).total_cmp(&end(a)));
    for (row, (index, (name, _))) in (0..).zip(names) {
        let y = 50 + row * 18;
        right.draw(&PathElement::new([(4, y), (26, y)], style(index)))?;
        right.draw(&Text::new(name.clone(), (32, y - 6), ("sans-serif", 12)))?;
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    #[test]
    fn every_line_has_its_name_and_its_color() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.svg");
        let line = |name: &str, us: [f64; 3]| (name.to_owned(), [1, 10, 100].into_iter().zip(us).collect());
        let lines =
            vec![line("bare", [18.0, 5.4, 5.3]), line("select", [22.0, 6.3, 9.2]), line("poll", [20.0, 5.9, 7.3])];
        super::growth(&path, "cost", &lines).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        let at = |name: &str| svg.find(&format!("\n{name}\n")).unwrap();
        assert!(at("select") < at("poll") && at("poll") < at("bare"), "the dearest first");
        let mut colors = BTreeMap::new();
        for line in svg.lines().filter(|line| line.starts_with("<polyline")) {
            let color = line.split("stroke=\"").nth(1).unwrap().split('"').next().unwrap();
            *colors.entry(color.to_owned()).or_insert(0) += 1;
        }
        colors.remove("#000000"); // the axes
        assert_eq!(colors.into_values().collect::<Vec<_>>(), [2, 2, 2], "a line, and a stroke beside its name");
    }
}

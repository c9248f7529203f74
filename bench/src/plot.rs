//! The growth with the number of clients, as a picture.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

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
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .margin_right(230)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d((1..most_clients).log_scale(), (least..most).log_scale())?;
    chart.configure_mesh().x_desc("clients at once").y_desc("server CPU per request, us").draw()?;
    for (index, (name, points)) in lines.iter().enumerate() {
        let color = Palette99::pick(index).to_rgba();
        let style = color.stroke_width(if index == 0 { 4 } else { 2 });
        let series = LineSeries::new(points.iter().copied(), style).point_size(3);
        chart
            .draw_series(series)?
            .label(name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::Coordinate(620, 0))
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.2))
        .label_font(("sans-serif", 12))
        .draw()?;
    area.present()?;
    Ok(())
}

//! The whole report as one HTML file: no script, nothing from elsewhere, charts as SVG in it. It is well-formed XML
//! too, so that any parser reads it. Readable on a light and on a dark screen, and on paper.

mod table;

use std::io::{self, Write};

use super::form::{self, escape};
use super::{Run, svg};
pub use table::Table;

const STYLE: &str = include_str!("html/style.css");

/// Writes a page about these runs.
///
/// # Errors
/// Those of `out`.
pub fn write(runs: &[Run], out: &mut dyn Write) -> io::Result<()> {
    write_with(runs, &[], out)
}

/// The same with tables of the caller's in front.
///
/// # Errors
/// Those of `out`.
pub fn write_with(runs: &[Run], front: &[Table], out: &mut dyn Write) -> io::Result<()> {
    let names: Vec<String> = runs.iter().map(|run| escape(&run.name)).collect();
    let title = format!("Load test: {}", names.join(", "));
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n<title>{title}</title>\n<style>\n{STYLE}{}\n</style>\n\
         </head>\n<body>\n<main>\n<h1>{title}</h1>\n",
        svg::style("svg")
    )?;
    front.iter().try_for_each(|table| writeln!(out, "<section>\n{}\n</section>", table.html()))?;
    if runs.len() > 1 {
        section("All runs", &table::overview(runs), out)?;
    }
    charts(runs, out)?;
    for run in runs {
        one(run, runs.len() > 1, out)?;
    }
    write!(out, "</main>\n</body>\n</html>\n")
}

fn charts(runs: &[Run], out: &mut dyn Write) -> io::Result<()> {
    if let [run] = runs {
        verdict(run, out)?;
        writeln!(out, "{}", table::result(&run.report).html())?;
    }
    for chart in svg::charts(runs)? {
        writeln!(out, "<figure>\n<figcaption><h2>{}</h2>", escape(&chart.title))?;
        writeln!(out, "<p>{}</p></figcaption>\n{}\n</figure>", escape(&chart.about), chart.element(""))?;
    }
    if runs.len() > svg::MOST_RUNS {
        writeln!(out, "<p>The charts show the first {} of {} runs.</p>", svg::MOST_RUNS, runs.len())?;
    }
    Ok(())
}

fn verdict(run: &Run, out: &mut dyn Write) -> io::Result<()> {
    let class = if run.report.is_good() { "good" } else { "bad" };
    let words = escape(&crate::text::verdict(&run.report));
    let plan = format!("{} to {}", run.report.plan.describe(), run.report.addr);
    writeln!(out, "<p class=\"plan\">{}</p>\n<p class=\"{class}\"><strong>{words}</strong></p>", escape(&plan))
}

/// The tables of one run; of several each begins with its name.
fn one(run: &Run, headed: bool, out: &mut dyn Write) -> io::Result<()> {
    let report = &run.report;
    writeln!(out, "<section class=\"run\">")?;
    if headed {
        writeln!(out, "<h2>{}</h2>", escape(&run.name))?;
        verdict(run, out)?;
        writeln!(out, "{}", table::result(report).html())?;
    }
    let tables = [
        Some(table::latencies(report)),
        table::failures(report),
        Some(table::honesty(report)),
        table::server(report),
        Some(table::plan(report)),
        report.machine.as_ref().map(table::machine),
    ];
    for table in tables.into_iter().flatten() {
        writeln!(out, "{}", table.html())?;
    }
    writeln!(out, "</section>")
}

fn section(title: &str, table: &Table, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "<section>\n<h2>{title}</h2>\n{}\n</section>", table.html())
}

/// A number with its unit, for a cell; a dash for none.
fn time(ns: Option<f64>) -> String {
    ns.map_or_else(|| "\u{2013}".to_owned(), form::time)
}

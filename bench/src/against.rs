//! The same designs in two checkouts: server CPU per request here over there, pair by pair.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Result;

use crate::measure::{self, Workload, median};
use crate::subject::Subject;

/// Prints a line for each design that both checkouts have, each workload and each number of clients. In each round
/// one server runs right after the other, and they take turns in being the first one.
///
/// # Errors
/// A server does not start, or an answer fails.
pub fn compare(here: &[Subject], there: &[Subject], clients: &[u32], rounds: u32, length_ms: u64) -> Result<()> {
    let length = Duration::from_millis(length_ms);
    let mut out = io::stdout();
    writeln!(
        out,
        "\nserver CPU per request in us: there, here, and here / there (median, and its range in {rounds} rounds)"
    )?;
    for new in here {
        let Some(old) = there.iter().find(|old| old.name == new.name) else { continue };
        for workload in [Workload::Kept, Workload::Connect] {
            for count in clients {
                let mut costs = Vec::new();
                for round in 0..rounds {
                    let turn = round % 2 == 0;
                    let (first, second) = if turn { (old, new) } else { (new, old) };
                    let first = measure::cost(first, workload, *count, length)?;
                    let second = measure::cost(second, workload, *count, length)?;
                    let (a, b) = if turn { (first, second) } else { (second, first) };
                    // A run shorter than a clock tick has no cost that can be compared.
                    costs.extend(a.zip(b).map(|(a, b)| (a.server_us, b.server_us)).filter(|(a, b)| a.min(*b) > 0.0));
                }
                let name = format!("{:32} {:26} {count:>5}", new.name, workload.name());
                if costs.is_empty() {
                    writeln!(out, "{name}  nothing to compare")?;
                    continue;
                }
                let ratios: Vec<f64> = costs.iter().map(|(old, new)| new / old).collect();
                let (least, most) = ratios.iter().fold((f64::MAX, 0.0_f64), |(l, m), x| (l.min(*x), m.max(*x)));
                let of = |figure: fn(&(f64, f64)) -> f64| median(costs.iter().map(figure).collect());
                let (old, new) = (of(|cost| cost.0), of(|cost| cost.1));
                let ratio = median(ratios);
                writeln!(out, "{name} {old:>8.2} {new:>8.2} {ratio:>6.2} ({least:.2} to {most:.2})")?;
            }
        }
    }
    Ok(())
}

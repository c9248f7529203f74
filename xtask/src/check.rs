//! `check`: runs every rule, prints the breaches of each package, and then the sizes.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Result, ensure};

use crate::breach::Breach;
use crate::limits;
use crate::markers;
use crate::rules;
use crate::sizes::{self, CrateSize, FileSize, Lesson};
use crate::source;
use crate::tree::{Package, Tree};
use crate::{diff, guide, table};

/// Checks all packages, or only those of these names.
pub fn run(root: &Path, names: &[String], fix: bool) -> Result<()> {
    if fix {
        let tree = Tree::read(root)?;
        markers::write(&root.join(table::README), table::NAME, &table::render(&tree.examples))?;
        markers::write(&root.join(guide::GUIDE), guide::NAME, &guide::render_guide(&tree))?;
    }
    let tree = Tree::read(root)?;
    let chosen: Vec<&Package> = match names {
        [] => tree.packages.iter().collect(),
        names => names.iter().map(|name| diff::package(&tree, name)).collect::<Result<_>>()?,
    };
    let breaches = rules::ALL.iter().flat_map(|rule| rule(&tree));
    let is_chosen = |breach: &Breach| names.is_empty() || chosen.iter().any(|package| package.holds(&breach.path));
    let breaches: Vec<Breach> = breaches.filter(is_chosen).collect();
    let mut out = io::stdout().lock();
    print_breaches(&tree, &breaches, &mut out)?;
    print_examples(&tree, &chosen, &mut out)?;
    print_crates(&tree, &chosen, &mut out)?;
    ensure!(breaches.is_empty(), "breaches of the rules: {}", breaches.len());
    Ok(())
}

fn print_breaches(tree: &Tree, breaches: &[Breach], out: &mut impl Write) -> Result<()> {
    let mut groups: BTreeMap<&str, Vec<&Breach>> = BTreeMap::new();
    for breach in breaches {
        let owner = tree.package_of(&breach.path).map_or("workspace", |package| package.folder.as_str());
        groups.entry(owner).or_default().push(breach);
    }
    for (owner, mut breaches) in groups {
        breaches.sort();
        breaches.dedup();
        writeln!(out, "{owner}: {}", breaches.len())?;
        for breach in breaches {
            writeln!(out, "  {breach}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// One line for each file of the examples.
fn print_examples(tree: &Tree, chosen: &[&Package], out: &mut impl Write) -> Result<()> {
    let mut rows = Vec::new();
    for package in chosen.iter().filter(|package| package.is_example()) {
        rows.extend(sizes::of_example(tree, package).iter().map(example_row));
    }
    let columns = ["example", "code/limit", "comments/100", "first loop", "longest fn", "depth", "diff/limit, base"];
    print_table(columns.map(str::to_owned), rows, out)
}

fn example_row(file: &FileSize) -> [String; 7] {
    let name = if file.lesson.is_some() { file.name.clone() } else { format!("  {}", file.name) };
    let first_loop = |lesson: &Lesson| lesson.first_loop.map_or("none".to_owned(), |line| line.to_string());
    let diff = |lesson: &Lesson| match &lesson.diff {
        Some(diff) => format!("-{} +{}/{} {}", diff.removed, diff.added, diff.limit, diff.base),
        None => "none".to_owned(),
    };
    [
        name,
        out_of(file.code, file.limit),
        file.comments.to_string(),
        file.lesson.as_ref().map(first_loop).unwrap_or_default(),
        sizes::longest(&file.functions).to_string(),
        sizes::deepest(&file.functions).to_string(),
        file.lesson.as_ref().map(diff).unwrap_or_default(),
    ]
}

/// One line for each library and tool.
fn print_crates(tree: &Tree, chosen: &[&Package], out: &mut impl Write) -> Result<()> {
    let crates = chosen.iter().filter(|package| !package.is_example());
    let rows = crates.map(|package| crate_row(&sizes::of_crate(tree, package))).collect();
    let columns = ["library or tool, without tests", "code/limit", "", "", "longest fn", "depth", "largest file"];
    print_table(columns.map(str::to_owned), rows, out)
}

fn crate_row(size: &CrateSize) -> [String; 7] {
    let functions: Vec<_> = size.files.iter().flat_map(|source| source::functions(source)).collect();
    let largest = size.files.iter().map(|source| (source.size().code, &source.path)).max();
    let largest = largest.map_or(String::new(), |(code, path)| format!("{code} {path}"));
    let later = if limits::binds(&size.package.folder) { "" } else { "; the limit binds with its issue" };
    [
        size.package.folder.clone(),
        out_of(size.code, size.limit),
        String::new(),
        String::new(),
        sizes::longest(&functions).to_string(),
        sizes::deepest(&functions).to_string(),
        largest + later,
    ]
}

fn print_table(columns: [String; 7], rows: Vec<[String; 7]>, out: &mut impl Write) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    for [name, code, comments, first_loop, longest, depth, last] in [columns].into_iter().chain(rows) {
        let line = format!("{name:36} {code:>10} {comments:>12} {first_loop:>10} {longest:>10} {depth:>5}  {last}");
        writeln!(out, "{}", line.trim_end())?;
    }
    writeln!(out)?;
    Ok(())
}

fn out_of(value: usize, limit: Option<usize>) -> String {
    limit.map_or(format!("{value}/none"), |limit| format!("{value}/{limit}"))
}

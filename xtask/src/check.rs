//! `check`: runs every rule, prints the breaches of each package, and then the sizes.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Result, bail};

use crate::breach::Breach;
use crate::limits;
use crate::rules;
use crate::sizes::{self, CrateSize, FileSize};
use crate::source;
use crate::tree::{Package, Tree};
use crate::{diff, guide, table};

/// Checks all packages, or only those of these names.
pub fn run(root: &Path, names: &[String], fix: bool) -> Result<()> {
    if fix {
        let tree = Tree::read(root)?;
        table::write(root, &tree.examples)?;
        guide::write(root, &tree)?;
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
    match breaches.len() {
        0 => Ok(()),
        1 => bail!("1 breach of the rules"),
        count => bail!("{count} breaches of the rules"),
    }
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

fn print_examples(tree: &Tree, chosen: &[&Package], out: &mut impl Write) -> Result<()> {
    let examples: Vec<&&Package> = chosen.iter().filter(|package| package.is_example()).collect();
    if examples.is_empty() {
        return Ok(());
    }
    let [code, comments, first] = ["code/limit", "comments/100", "first loop"];
    writeln!(
        out,
        "{:36} {code:>10} {comments:>12} {first:>10} {:>10} {:>5}  diff/limit, base",
        "example", "longest fn", "depth"
    )?;
    for package in examples {
        for file in sizes::of_example(tree, package) {
            writeln!(out, "{}", row(&file).trim_end())?;
        }
    }
    writeln!(out)?;
    Ok(())
}

fn row(file: &FileSize) -> String {
    let name = if file.lesson.is_some() { file.name.clone() } else { format!("  {}", file.name) };
    let first = file.lesson.as_ref().map(|lesson| lesson.first_loop.map_or("none".to_owned(), |line| line.to_string()));
    let change = match file.lesson.as_ref().map(|lesson| &lesson.diff) {
        Some(Some(diff)) => format!("-{} +{}/{} {}", diff.removed, diff.added, diff.limit, diff.base),
        Some(None) => "none".to_owned(),
        None => String::new(),
    };
    format!(
        "{name:36} {:>10} {:>12} {:>10} {:>10} {:>5}  {change}",
        out_of(file.code, file.limit),
        file.comments,
        first.unwrap_or_default(),
        sizes::longest(&file.functions),
        sizes::deepest(&file.functions)
    )
}

fn print_crates(tree: &Tree, chosen: &[&Package], out: &mut impl Write) -> Result<()> {
    let crates: Vec<&&Package> = chosen.iter().filter(|package| !package.is_example()).collect();
    if crates.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "{:36} {:>10} {:>12} {:>10}  largest file",
        "crate, without tests", "code/limit", "longest fn", "depth"
    )?;
    for package in crates {
        writeln!(out, "{}", crate_row(&sizes::of_crate(tree, package)))?;
    }
    writeln!(out)?;
    Ok(())
}

fn crate_row(size: &CrateSize) -> String {
    let functions: Vec<_> = size.files.iter().flat_map(|source| source::functions(source)).collect();
    let largest = size.files.iter().max_by_key(|source| source.size().code);
    let largest = largest.map_or(String::new(), |source| format!("{} {}", source.size().code, source.path));
    let later = if limits::binds(&size.package.folder) { "" } else { "; the limit binds with its issue" };
    format!(
        "{:36} {:>10} {:>12} {:>10}  {largest}{later}",
        size.package.folder,
        out_of(size.code, size.limit),
        sizes::longest(&functions),
        sizes::deepest(&functions)
    )
}

fn out_of(value: usize, limit: Option<usize>) -> String {
    limit.map_or(format!("{value}/none"), |limit| format!("{value}/{limit}"))
}

//! `diff`: what changes from one example to the next.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result};
use similar::{ChangeTag, TextDiff};

use crate::rules::header;
use crate::tree::{Package, Tree};

pub fn run(root: &Path, one: &str, two: Option<&str>) -> Result<()> {
    let tree = Tree::read(root)?;
    let one = lesson(&tree, one)?;
    let (from, to) = match two {
        Some(two) => (one, lesson(&tree, two)?),
        None => {
            let base = tree.main_of(&one).and_then(|source| header::value(&source.text, "Diff base"));
            (base.with_context(|| format!("{one} has no diff base; name a second example"))?, one)
        }
    };
    let source = |name: &str| tree.main_of(name).with_context(|| format!("{name} has no first file"));
    let (before, after) = (source(&from)?, source(&to)?);
    let diff = TextDiff::from_lines(&before.text, &after.text);
    let unified = diff.unified_diff().header(&before.path, &after.path).to_string();
    let mut out = io::stdout().lock();
    let color = out.is_terminal();
    for line in unified.lines() {
        let paint = match line.chars().next() {
            Some('+') if color => "\x1b[32m",
            Some('-') if color => "\x1b[31m",
            _ => "",
        };
        let reset = if paint.is_empty() { "" } else { "\x1b[0m" };
        writeln!(out, "{paint}{line}{reset}")?;
    }
    let (removed, added) = changed(&before.text, &after.text);
    writeln!(out, "-{removed} +{added} lines")?;
    Ok(())
}

/// Lines removed and lines added.
pub fn changed(before: &str, after: &str) -> (usize, usize) {
    let diff = TextDiff::from_lines(before, after);
    let count = |tag| diff.iter_all_changes().filter(|change| change.tag() == tag).count();
    (count(ChangeTag::Delete), count(ChangeTag::Insert))
}

/// The full name of a server or chat: `server01-fork` for `01`.
fn lesson(tree: &Tree, short: &str) -> Result<String> {
    let mut names = tree.lessons().map(|(_, program)| program.name.as_str());
    let found = names.find(|name| means(short, name)).map(str::to_owned);
    found.with_context(|| unknown(short, tree.lessons().map(|(_, program)| program.name.as_str())))
}

/// The package that a name means: its name, its folder, or the number of an example.
pub fn package<'t>(tree: &'t Tree, short: &str) -> Result<&'t Package> {
    let numbered = || tree.packages_that(Package::is_example).find(|package| means(short, &package.name));
    let program = |package: &&Package| package.programs.iter().any(|program| program.name == short);
    let found = tree.package(short).or_else(numbered).or_else(|| tree.packages.iter().find(program));
    found.with_context(|| unknown(short, tree.packages.iter().map(|package| package.name.as_str())))
}

fn means(short: &str, name: &str) -> bool {
    let short = short.trim_start_matches("server");
    let name = name.trim_start_matches("server");
    name == short || name.split('-').next() == Some(short)
}

/// The error for an unknown name.
pub fn unknown<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> String {
    format!("unknown name {name}; the names are {}", known.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_counted_in_lines() {
        assert_eq!(changed("a\nb\nc\n", "a\nx\ny\nc\n"), (1, 2));
        assert_eq!(changed("a\n", "a\n"), (0, 0));
    }

    #[test]
    fn number_means_the_example() {
        for short in ["01", "server01", "01-fork", "server01-fork"] {
            assert!(means(short, "server01-fork"), "{short}");
        }
        assert!(means("v1", "v1-threads"));
        assert!(!means("01", "server01a-other") && !means("0", "server01-fork"));
    }
}

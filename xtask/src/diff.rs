//! `diff`: what changes from one example to the next.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use similar::{ChangeTag, TextDiff};
use testkit::catalogue;

use crate::check::Tree;
use crate::rules::header;

pub fn run(root: &Path, one: &str, two: Option<&str>) -> Result<()> {
    let tree = Tree::read(root)?;
    let name = |short: &str| -> Result<String> {
        let digits = |name: &str| name.trim_start_matches("server").split('-').next() == Some(short);
        let found =
            tree.examples.iter().find(|e| e.name == short || e.name == format!("server{short}") || digits(&e.name));
        found.map(|example| example.name.clone()).with_context(|| unknown(short, root))
    };
    let (from, to) = match two {
        Some(two) => (name(one)?, name(two)?),
        None => match to_base(&tree, &name(one)?) {
            Some((base, _, _)) => (base, name(one)?),
            None => bail!("{one} has no diff base; name a second example"),
        },
    };
    let text = |name: &str| tree.main_of(name).map(|source| source.text.clone()).unwrap_or_default();
    let (before, after) = (text(&from), text(&to));
    let diff = TextDiff::from_lines(&before, &after);
    let unified = diff.unified_diff().header(&format!("{from}/src/main.rs"), &format!("{to}/src/main.rs")).to_string();
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
    let (removed, added) = changed(&before, &after);
    writeln!(out, "-{removed} +{added} lines")?;
    Ok(())
}

/// The diff base of an example, and the lines removed and added since it.
pub fn to_base(tree: &Tree, example: &str) -> Option<(String, usize, usize)> {
    let source = tree.main_of(example)?;
    let base = header::value(&source.text, "Diff base")?;
    let (removed, added) = changed(&tree.main_of(&base)?.text, &source.text);
    Some((base, removed, added))
}

pub fn changed(before: &str, after: &str) -> (usize, usize) {
    let diff = TextDiff::from_lines(before, after);
    let count = |tag| diff.iter_all_changes().filter(|change| change.tag() == tag).count();
    (count(ChangeTag::Delete), count(ChangeTag::Insert))
}

/// The line for a name that is no example's.
pub fn unknown(name: &str, root: &Path) -> String {
    let examples = catalogue::examples(root).unwrap_or_default();
    let names: Vec<String> = examples.into_iter().map(|example| example.name).collect();
    format!("no example is called {name}; there are {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    #[test]
    fn changes_are_counted_in_lines() {
        assert_eq!(super::changed("a\nb\nc\n", "a\nx\ny\nc\n"), (1, 2));
        assert_eq!(super::changed("a\n", "a\n"), (0, 0));
    }
}

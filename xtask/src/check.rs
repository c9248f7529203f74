//! `check`: runs every rule, prints every breach, and then the table of sizes.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use testkit::catalogue::{self, Example};

use crate::rules::{self, Breach};
use crate::source::Source;
use crate::{diff, table};

/// What the rules look at.
pub struct Tree {
    pub examples: Vec<Example>,
    pub packages: Vec<String>,
    /// Path relative to the root, and text, of every Rust, Markdown and TOML file that git knows or would take.
    pub texts: Vec<(String, String)>,
    pub sources: Vec<Source>,
}

impl Tree {
    pub fn read(root: &Path) -> Result<Tree> {
        let listed = Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .context("git ls-files")?;
        let mut texts = Vec::new();
        let mut sources = Vec::new();
        for path in String::from_utf8_lossy(&listed.stdout).lines() {
            let known = [".rs", ".md", ".toml"].iter().any(|end| path.ends_with(end)) || path == ".ci/run";
            let Some(text) = known.then(|| fs::read_to_string(root.join(path)).ok()).flatten() else { continue };
            if path.ends_with(".rs") {
                sources.push(Source::parse(path, &text)?);
            }
            texts.push((path.to_owned(), text));
        }
        let metadata = cargo_metadata::MetadataCommand::new().current_dir(root).no_deps().exec()?;
        let packages = metadata.packages.iter().map(|package| package.name.to_string()).collect();
        Ok(Tree { examples: catalogue::examples(root)?, packages, texts, sources })
    }

    pub fn text(&self, path: &str) -> Option<&str> {
        self.texts.iter().find(|(known, _)| known == path).map(|(_, text)| text.as_str())
    }

    pub fn main_of(&self, example: &str) -> Option<&Source> {
        self.sources.iter().find(|source| source.path == format!("{example}/src/main.rs"))
    }

    pub fn example(&self, name: &str) -> Option<&Example> {
        self.examples.iter().find(|example| example.name == name)
    }
}

pub fn run(root: &Path, fix: bool) -> Result<()> {
    if fix {
        table::write(root, &catalogue::examples(root)?)?;
    }
    let tree = Tree::read(root)?;
    let mut breaches: Vec<Breach> = rules::ALL.iter().flat_map(|rule| rule(&tree)).collect();
    breaches.sort();
    let mut out = io::stdout().lock();
    for breach in &breaches {
        writeln!(out, "{breach}")?;
    }
    if !breaches.is_empty() {
        bail!("{} breaches of the rules", breaches.len());
    }
    sizes(&tree, &mut out)
}

/// The figures that the budgets are about.
fn sizes(tree: &Tree, out: &mut impl Write) -> Result<()> {
    writeln!(
        out,
        "{:22} {:>5} {:>8} {:>6} {:>6} {:>6}  diff to base",
        "example", "code", "comments", "longest", "depth", "unsafe"
    )?;
    for example in &tree.examples {
        let Some(source) = tree.main_of(&example.name) else { continue };
        let (size, functions) = (source.size(), source.functions());
        let longest = functions.iter().map(|f| f.lines).max().unwrap_or(0);
        let depth = functions.iter().map(|f| f.depth).max().unwrap_or(0);
        let change = match diff::to_base(tree, &example.name) {
            Some((base, removed, added)) => format!("-{removed} +{added} {base}"),
            None => "none".into(),
        };
        let blocks = source.unsafe_blocks();
        writeln!(
            out,
            "{:22} {:>5} {:>8} {longest:>7} {depth:>6} {blocks:>6}  {change}",
            example.name, size.code, size.comments
        )?;
    }
    let common = tree.sources.iter().filter(|source| source.path.starts_with("common/src/"));
    writeln!(out, "{:22} {:>5}", "common", common.map(|source| source.size().code).sum::<usize>())?;
    Ok(())
}

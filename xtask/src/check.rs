//! `check`: runs every rule, prints every breach, and then the table of sizes.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use testkit::catalogue::{self, Example};

use crate::rules::{self, Breach, budget};
use crate::source::Source;
use crate::{diff, guide, table};

/// What the rules look at.
pub struct Tree {
    root: PathBuf,
    pub examples: Vec<Example>,
    pub packages: Vec<String>,
    /// The programs: each with its package.
    pub programs: Vec<(String, String)>,
    /// The list of crates that misc/README.md should have.
    pub guide: String,
    /// Path relative to the root, and text, of every Rust, Markdown and TOML file that git knows or would take.
    pub texts: Vec<(String, String)>,
    pub sources: Vec<Source>,
}

impl Tree {
    pub fn read(root: &Path) -> Result<Tree> {
        let mut texts = Vec::new();
        let mut sources = Vec::new();
        for path in paths(root)? {
            let known = [".rs", ".md", ".toml"].iter().any(|end| path.ends_with(end)) || path == ".ci/run";
            // What git knows may be deleted and not yet committed.
            if !known || !root.join(&path).exists() {
                continue;
            }
            let text = fs::read_to_string(root.join(&path)).with_context(|| path.clone())?;
            if path.ends_with(".rs") {
                sources.push(Source::parse(&path, &text)?);
            }
            texts.push((path, text));
        }
        let metadata = cargo_metadata::MetadataCommand::new().current_dir(root).no_deps().exec()?;
        let packages = metadata.packages.iter().map(|package| package.name.to_string()).collect();
        let programs = metadata.packages.iter().flat_map(|package| {
            let programs = package.targets.iter().filter(|target| target.is_bin());
            programs.map(|target| (target.name.clone(), package.name.to_string()))
        });
        let programs = programs.collect();
        let guide = guide::render_guide(root, &guide::crates(root)?);
        Ok(Tree { root: root.into(), examples: catalogue::examples(root)?, packages, programs, guide, texts, sources })
    }

    pub fn text(&self, path: &str) -> Option<&str> {
        self.texts.iter().find(|(known, _)| known == path).map(|(_, text)| text.as_str())
    }

    /// The folder of an example relative to the root: its name, or `misc/NAME` and the like.
    pub fn folder(&self, example: &Example) -> String {
        example.dir.strip_prefix(&self.root).unwrap_or(&example.dir).display().to_string()
    }

    /// The files under `src` of an example.
    pub fn sources_of(&self, example: &Example) -> impl Iterator<Item = &Source> {
        let start = format!("{}/src/", self.folder(example));
        self.sources.iter().filter(move |source| source.path.starts_with(&start))
    }

    pub fn main_of(&self, name: &str) -> Option<&Source> {
        let path = format!("{}/src/main.rs", self.folder(self.example(name)?));
        self.sources.iter().find(|source| source.path == path)
    }

    pub fn example(&self, name: &str) -> Option<&Example> {
        self.examples.iter().find(|example| example.name == name)
    }
}

/// The files of the workspace: those that git knows or would take, or all where this is no clone, such as an archive.
fn paths(root: &Path) -> Result<Vec<String>> {
    if !root.join(".git").exists() {
        let mut found = Vec::new();
        walk(root, root, &mut found)?;
        return Ok(found);
    }
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("git ls-files")?;
    ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr).trim());
    Ok(String::from_utf8_lossy(&listed.stdout).lines().map(str::to_owned).collect())
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if !path.is_dir() {
            found.push(path.strip_prefix(root).unwrap_or(&path).display().to_string());
        } else if path != root.join("target") {
            walk(root, &path, found)?;
        }
    }
    Ok(())
}

pub fn run(root: &Path, fix: bool) -> Result<()> {
    if fix {
        table::write(root, &catalogue::examples(root)?)?;
        guide::write(root, &guide::crates(root)?)?;
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
        "{:22} {:>5} {:>8} {:>5} {:>10} {:>5} {:>6}  diff to base",
        "example", "code", "comments", "total", "longest fn", "depth", "unsafe"
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
            "{:22} {:>5} {:>8} {:>5} {longest:>10} {depth:>5} {blocks:>6}  {change}",
            example.name, size.code, size.comments, size.total
        )?;
    }
    let common = || tree.sources.iter().filter(|source| source.path.starts_with("common/src/"));
    let (code, comments) =
        common().map(Source::size).fold((0, 0), |sum, size| (sum.0 + size.code, sum.1 + size.comments));
    let items: usize = common().map(|source| budget::public_items(&source.file.items)).sum();
    writeln!(out, "{:22} {code:>5} {comments:>8}        {items} public items", "common")?;
    Ok(())
}

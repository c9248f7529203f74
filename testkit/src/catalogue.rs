//! The catalogue is the folders: each example describes itself in its own `Cargo.toml`, and nothing else lists them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cargo_metadata::{MetadataCommand, Package};
use serde::Deserialize;

/// One example, as its `[package]` and `[package.metadata.example]` tables say.
#[derive(Clone, Debug)]
pub struct Example {
    /// Package, folder and binary name.
    pub name: String,
    /// The technique in one line.
    pub description: String,
    /// Its folder.
    pub dir: PathBuf,
    /// The table.
    pub table: Table,
}

/// `[package.metadata.example]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Table {
    /// The protocol family: `byte service`, `chat`, ...
    pub family: String,
    /// Who serves a client.
    pub worker: String,
    /// What happens to a client too many.
    pub overload: Overload,
    /// Clients served at once by default.
    pub slots: usize,
    /// The option that sets the slots, where there is one.
    pub slots_flag: Option<String>,
    /// The system calls the lesson is about.
    pub syscalls: Vec<String>,
    /// Its chapter in the book.
    pub chapter: String,
    /// Ways to run it that are worth comparing.
    pub variants: Vec<Variant>,
}

/// What happens to a client too many.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Overload {
    /// It is told `ERR busy`.
    Refuse,
    /// It waits in the listener's backlog.
    Queue,
}

/// A way to run an example.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// What to call it in a table.
    pub name: String,
    /// The arguments that make it.
    pub args: Vec<String>,
}

impl std::ops::Deref for Example {
    type Target = Table;

    fn deref(&self) -> &Table {
        &self.table
    }
}

/// All examples of the workspace that `root` belongs to, by name.
///
/// # Errors
/// Where cargo fails, or a table has a key too many or too few: the error names the package and the key.
pub fn examples(root: &Path) -> Result<Vec<Example>> {
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .no_deps()
        .other_options(vec!["--offline".into()])
        .exec()
        .context("cargo metadata")?;
    let mut examples = Vec::new();
    for package in &metadata.packages {
        if let Some(table) = package.metadata.get("example") {
            let table = serde_json::from_value(table.clone())
                .with_context(|| format!("{}: [package.metadata.example]", package.name))?;
            examples.push(read(package, table)?);
        }
    }
    examples.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(examples)
}

/// The example in one folder.
///
/// # Errors
/// As [`examples`], and where the folder holds no example.
pub fn example(dir: &Path) -> Result<Example> {
    let found = examples(dir)?.into_iter().find(|example| example.dir == dir);
    found.with_context(|| format!("{}: no [package.metadata.example]", dir.display()))
}

fn read(package: &Package, table: Table) -> Result<Example> {
    let description = package.description.clone().with_context(|| format!("{}: no description", package.name))?;
    let dir = package.manifest_path.parent().context("a manifest has a folder")?;
    Ok(Example { name: package.name.to_string(), description, dir: dir.into(), table })
}

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
    /// What a chat does with a member that does not read.
    pub slow_reader: Option<SlowReader>,
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

/// What a chat does with a member that does not read.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum SlowReader {
    /// Everybody waits for it.
    Block,
    /// Its lines are kept, however many.
    Grow,
    /// Lines that do not fit are not sent to it.
    Drop,
    /// It is put out of the room.
    Kick,
}

/// A way to run an example.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// What to call it in a table.
    pub name: String,
    /// The arguments that make it.
    #[serde(default)]
    pub args: Vec<String>,
    /// The binary, if it is not the one with the name of the example.
    pub bin: Option<String>,
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

fn read(package: &Package, table: &serde_json::Value) -> Result<Example> {
    let table = Table::deserialize(table).with_context(|| format!("{}: [package.metadata.example]", package.name))?;
    let description = package.description.clone().with_context(|| format!("{}: no description", package.name))?;
    let dir = package.manifest_path.parent().context("a manifest has a folder")?;
    Ok(Example { name: package.name.to_string(), description, dir: dir.into(), table })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const TABLE: &str = r#"
family = "byte service"
worker = "one process"
overload = "refuse"
slots = 8
slots-flag = "--max-conns"
syscalls = ["fork", "_exit"]
chapter = "fork"
variants = [{ name = "small", args = ["--max-conns", "2"] }]
"#;

    /// A workspace of two examples, `b` and `a`, and a package that is none.
    fn workspace(table_of_a: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("Cargo.toml"), "[workspace]\nmembers = [\"b\", \"a\", \"c\"]\n").unwrap();
        for (name, table) in [("b", TABLE), ("a", table_of_a), ("c", "")] {
            let head = format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n");
            let table = match table {
                "" => String::new(),
                table => format!("description = \"About {name}\"\n[package.metadata.example]{table}"),
            };
            fs::create_dir_all(root.path().join(name).join("src")).unwrap();
            fs::write(root.path().join(name).join("Cargo.toml"), head + &table).unwrap();
            fs::write(root.path().join(name).join("src/lib.rs"), "").unwrap();
        }
        root
    }

    #[test]
    fn the_catalogue_is_the_folders() {
        let root = workspace(TABLE);
        let found = examples(root.path()).unwrap();
        let names: Vec<&str> = found.iter().map(|example| example.name.as_str()).collect();
        assert_eq!(names, ["a", "b"], "sorted, and without the package that has no table");
        let a = &found[0];
        assert_eq!((a.description.as_str(), a.overload, a.slots), ("About a", Overload::Refuse, 8));
        assert_eq!(
            (a.slots_flag.as_deref(), a.syscalls.as_slice()),
            (Some("--max-conns"), &["fork", "_exit"].map(String::from)[..])
        );
        assert_eq!((a.variants[0].name.as_str(), a.variants[0].args.len()), ("small", 2));
        assert_eq!(example(&a.dir).unwrap().name, "a");
        let error = example(&a.dir.with_file_name("c")).unwrap_err();
        assert!(format!("{error:#}").contains("no [package.metadata.example]"), "{error:#}");
    }

    #[test]
    fn a_wrong_table_is_an_error_that_names_package_and_key() {
        for (from, to, key) in [
            ("worker = \"one process\"", "", "worker"),
            ("chapter", "chaptre", "chaptre"),
            ("slots-flag", "slots_flag", "slots_flag"),
            ("\"refuse\"", "\"drop\"", "drop"),
            ("{ name =", "{ nmae =", "nmae"),
            ("slots = 8", "slots = -1", "-1"),
        ] {
            let error = examples(workspace(&TABLE.replace(from, to)).path()).unwrap_err();
            let text = format!("{error:#}");
            assert!(text.starts_with("a: ") && text.contains(key), "{key}: {text}");
        }
    }

    #[test]
    fn what_may_be_left_out() {
        let root = workspace(&TABLE.replace("slots-flag = \"--max-conns\"", ""));
        let found = examples(root.path()).unwrap();
        assert_eq!((found[0].slots_flag.as_deref(), found[0].slow_reader), (None, None));
        let kicks = TABLE.replace("chapter", "slow-reader = \"kick\"\nchapter");
        assert_eq!(examples(workspace(&kicks).path()).unwrap()[0].slow_reader, Some(SlowReader::Kick));
    }
}

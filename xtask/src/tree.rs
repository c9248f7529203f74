//! The workspace as the rules read it: its packages, programs and texts.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use cargo_metadata::camino::Utf8Path;
use cargo_metadata::{MetadataCommand, Target};
use testkit::catalogue::{self, Example};

use crate::source::Source;

/// What a package is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// An example with a table in its Cargo.toml: a byte service.
    Server,
    /// An example with a table in its Cargo.toml: a chat.
    Chat,
    /// A package under misc or ipc.
    Lesson,
    /// A library or a tool.
    #[default]
    Crate,
}

#[derive(Default)]
pub struct Package {
    pub name: String,
    pub description: String,
    /// Relative to the root.
    pub folder: String,
    pub kind: Kind,
    pub programs: Vec<Program>,
    /// The program that `cargo run -p NAME` runs.
    pub default_run: Option<String>,
    /// The first file of the library and of each program.
    pub roots: Vec<String>,
    /// True if there is a tests/truths.rs.
    pub has_truths: bool,
}

/// A binary target.
pub struct Program {
    pub name: String,
    /// Its first file, relative to the root.
    pub path: String,
}

impl Package {
    pub fn is_example(&self) -> bool {
        self.kind != Kind::Crate
    }

    pub fn holds(&self, path: &str) -> bool {
        path.strip_prefix(&self.folder).is_some_and(|rest| rest.starts_with('/'))
    }
}

impl Program {
    /// A program that shows a bug.
    pub fn is_naive(&self) -> bool {
        self.name.starts_with("naive-")
    }
}

pub struct Tree {
    pub packages: Vec<Package>,
    pub examples: Vec<Example>,
    /// Path relative to the root, and text, of every Rust, Markdown and TOML file.
    pub texts: Vec<(String, String)>,
    pub sources: Vec<Source>,
}

impl Tree {
    pub fn read(root: &Path) -> Result<Tree> {
        let mut paths = Vec::new();
        walk(root, root, &mut paths)?;
        paths.sort();
        let (mut texts, mut sources) = (Vec::new(), Vec::new());
        for path in paths {
            let text = fs::read_to_string(root.join(&path)).with_context(|| path.clone())?;
            if path.ends_with(".rs") {
                sources.push(Source::parse(&path, &text)?);
            }
            texts.push((path, text));
        }
        let examples = catalogue::examples(root)?;
        let packages = packages(root, &examples)?;
        Ok(Tree { packages, examples, texts, sources })
    }

    pub fn text(&self, path: &str) -> Option<&str> {
        self.texts.iter().find(|(known, _)| known == path).map(|(_, text)| text.as_str())
    }

    pub fn source(&self, path: &str) -> Option<&Source> {
        self.sources.iter().find(|source| source.path == path)
    }

    pub fn packages_that(&self, choose: fn(&Package) -> bool) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(move |package| choose(package))
    }

    pub fn package(&self, name: &str) -> Option<&Package> {
        self.packages.iter().find(|package| package.name == name || package.folder == name)
    }

    /// The package that a path lies in.
    pub fn package_of(&self, path: &str) -> Option<&Package> {
        self.packages.iter().find(|package| package.holds(path))
    }

    /// The files under `src` of a package, without the files that hold only tests.
    pub fn sources_of(&self, package: &Package) -> impl Iterator<Item = &Source> {
        let start = format!("{}/src/", package.folder);
        self.sources.iter().filter(move |source| source.path.starts_with(&start) && !source.is_test_file())
    }

    /// The programs of servers and chats without the naive twins: the examples, and edge-triggered epoll.
    pub fn lessons(&self) -> impl Iterator<Item = (&Package, &Program)> {
        let examples = self.packages.iter().filter(|package| matches!(package.kind, Kind::Server | Kind::Chat));
        let programs = examples.flat_map(|package| package.programs.iter().map(move |program| (package, program)));
        programs.filter(|(_, program)| !program.is_naive())
    }

    /// The first file of a lesson.
    pub fn main_of(&self, name: &str) -> Option<&Source> {
        let (_, program) = self.lessons().find(|(_, program)| program.name == name)?;
        self.source(&program.path)
    }
}

fn packages(root: &Path, examples: &[Example]) -> Result<Vec<Package>> {
    let metadata = MetadataCommand::new().current_dir(root).no_deps().other_options(vec!["--offline".into()]).exec()?;
    let relative = |path: &Utf8Path| path.strip_prefix(root).unwrap_or(path).to_string();
    let mut packages = Vec::new();
    for package in metadata.packages {
        let folder = relative(package.manifest_path.parent().context("a manifest has no folder")?);
        let family = examples.iter().find(|example| package.name == example.name).map(|e| e.family.as_str());
        let kind = match family {
            Some("chat") => Kind::Chat,
            Some(_) => Kind::Server,
            None if folder.starts_with("misc/") || folder.starts_with("ipc/") => Kind::Lesson,
            None => Kind::Crate,
        };
        let targets = || package.targets.iter();
        let program = |target: &Target| Program { name: target.name.clone(), path: relative(&target.src_path) };
        let programs: Vec<Program> = targets().filter(|target| target.is_bin()).map(program).collect();
        let only = programs.first().filter(|_| programs.len() == 1).map(|program| program.name.clone());
        packages.push(Package {
            name: package.name.to_string(),
            description: package.description.clone().unwrap_or_default(),
            folder,
            kind,
            default_run: package.default_run.clone().or(only),
            roots: targets().filter(|t| t.is_bin() || t.is_lib()).map(|t| relative(&t.src_path)).collect(),
            has_truths: targets().any(|target| target.is_test() && target.name == "truths"),
            programs,
        });
    }
    packages.sort_by(|one, other| one.folder.cmp(&other.folder));
    Ok(packages)
}

/// Adds the paths of the Rust, Markdown and TOML files in a folder, and of `.ci/run`.
fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let relative = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        if path.is_dir() && relative != "target" && relative != ".git" {
            walk(root, &path, found)?;
        } else if [".rs", ".md", ".toml"].iter().any(|end| relative.ends_with(end)) || relative == ".ci/run" {
            found.push(relative);
        }
    }
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A tree with one package `x`, which has one program, and with these files.
    pub fn tree(kind: Kind, files: &[(&str, &str)]) -> Tree {
        let package = Package {
            name: "x".into(),
            folder: "x".into(),
            kind,
            programs: vec![Program { name: "x".into(), path: "x/src/main.rs".into() }],
            ..Package::default()
        };
        let rust = files.iter().filter(|(path, _)| path.ends_with(".rs"));
        Tree {
            packages: vec![package],
            examples: Vec::new(),
            texts: files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect(),
            sources: rust.map(|(path, text)| Source::parse(path, text).unwrap()).collect(),
        }
    }

    #[test]
    fn second_program_of_an_example_is_a_lesson_and_naive_twin_is_none() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("Cargo.toml", "[workspace]\nmembers = [\"server02b-epoll\", \"misc/y\"]\n");
        let head = "version = \"0.1.0\"\nedition = \"2024\"\ndescription = \"what\"\n[package.metadata.example]\n\
            family = \"byte service\"\nworker = \"one\"\noverload = \"queue\"\nslots = 1\nsyscalls = []\n\
            chapter = \"c\"\nvariants = []\n";
        write("server02b-epoll/Cargo.toml", &format!("[package]\nname = \"server02b-epoll\"\n{head}"));
        write("misc/y/Cargo.toml", "[package]\nname = \"y\"\nversion = \"0.1.0\"\nedition = \"2024\"\n");
        for path in ["src/main.rs", "src/bin/server02b-edge.rs", "src/bin/naive-loop.rs"] {
            write(&format!("server02b-epoll/{path}"), "fn main() {}\n");
        }
        write("misc/y/src/main.rs", "fn main() {}\n");
        write("target/debug/build/x.rs", "no Rust");
        let tree = Tree::read(root.path()).unwrap();
        let mut lessons: Vec<&str> = tree.lessons().map(|(_, program)| program.name.as_str()).collect();
        lessons.sort_unstable();
        assert_eq!(lessons, ["server02b-edge", "server02b-epoll"]);
        assert_eq!(tree.package("y").map(|package| package.kind), Some(Kind::Lesson));
        assert_eq!(tree.main_of("server02b-edge").unwrap().path, "server02b-epoll/src/bin/server02b-edge.rs");
    }
}

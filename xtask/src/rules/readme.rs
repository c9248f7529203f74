//! READMEs, manifests and the table of examples.

use crate::breach::Breach;
use crate::limits;
use crate::table;
use crate::tree::{Package, Tree};

/// The sections of a README, which is a chapter of the book.
const SECTIONS: [&str; 9] = [
    "Idea",
    "Run",
    "Observe",
    "What goes wrong",
    "Syscalls in this lesson",
    "When to use it and what it costs",
    "Exercises",
    "References",
    "Next",
];

pub fn sections(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for package in tree.packages_that(Package::is_example) {
        let path = format!("{}/README.md", package.folder);
        match tree.text(&path) {
            Some(text) => breaches.extend(sections_of(&path, text).into_iter().chain(length_of(&path, text))),
            None => breaches.push(Breach::new(&path, 1, "there is no such file")),
        }
    }
    for (package, _) in tree.lessons() {
        let path = format!("{}/tests/conformance.rs", package.folder);
        if tree.text(&path).is_none() {
            breaches.push(Breach::new(&path, 1, "there is no such file"));
        }
    }
    breaches
}

/// Words are counted as `wc -w` does, transcripts included.
fn length_of(path: &str, text: &str) -> Option<Breach> {
    let words = text.split_whitespace().count();
    let reason = || format!("{words} words, the limit is {}", limits::WORDS);
    (words > limits::WORDS).then(|| Breach::new(path, 1, reason()))
}

fn sections_of(path: &str, text: &str) -> Vec<Breach> {
    let mut found: Vec<&str> = Vec::new();
    let (mut fenced, mut transcript) = (false, false);
    for line in text.lines() {
        // A `## ` between fences is a transcript's.
        if line.starts_with("```") {
            fenced = !fenced;
            transcript |= found.last() == Some(&"Observe");
        } else if let Some(title) = line.strip_prefix("## ").filter(|_| !fenced) {
            found.push(title);
        }
    }
    if found != SECTIONS {
        return vec![Breach::new(path, 1, format!("the sections must be {SECTIONS:?}; found {found:?}"))];
    }
    match transcript {
        true => Vec::new(),
        false => vec![Breach::new(path, 1, "Observe shows no transcript")],
    }
}

pub fn table(tree: &Tree) -> Vec<Breach> {
    let readme = tree.text("README.md").unwrap_or_default();
    match table::current(readme) {
        Some(table) if table == table::render(&tree.examples) => Vec::new(),
        _ => vec![Breach::new(
            "README.md",
            1,
            "the table of examples is not the catalogue's; run `cargo xtask check --fix`",
        )],
    }
}

/// Lints and versions come from the workspace, and no two programs have one name.
pub fn manifests(tree: &Tree) -> Vec<Breach> {
    let programs_of = |package: &Package| {
        let names = package.programs.iter().map(|program| program.name.clone());
        names.map(|name| (name, package.name.clone())).collect::<Vec<_>>()
    };
    let programs: Vec<(String, String)> = tree.packages.iter().flat_map(programs_of).collect();
    let manifests = tree.texts.iter().filter(|(path, _)| path.ends_with("/Cargo.toml"));
    manifests.flat_map(|(path, text)| manifest(path, text)).chain(twins(&programs)).collect()
}

/// Programs of the same name: each would be built over the other one in target/debug, and tests would run either.
fn twins(programs: &[(String, String)]) -> Vec<Breach> {
    let mut programs: Vec<_> = programs.iter().collect();
    programs.sort();
    let pairs = programs.windows(2).filter_map(|pair| match pair {
        [(name, one), (other, two)] if name == other => Some((name, one, two)),
        _ => None,
    });
    pairs
        .map(|(name, one, two)| Breach::new("Cargo.toml", 1, format!("{one} and {two} both have a program {name}")))
        .collect()
}

fn manifest(path: &str, text: &str) -> Vec<Breach> {
    const ONCE: &str = "a dependency is declared once, in the workspace: NAME.workspace = true";
    let mut breaches = Vec::new();
    let (mut section, mut lints) = (String::new(), false);
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_owned();
            if section.contains("dependencies.") {
                breaches.push(Breach::new(path, number, ONCE));
            }
        }
        let assigns = line.contains('=') && !line.starts_with('[');
        let inherits = line.replace(' ', "").contains("workspace=true");
        lints |= section == "lints" && line.starts_with("workspace") && inherits;
        if assigns && !inherits && section.ends_with("dependencies") {
            breaches.push(Breach::new(path, number, ONCE));
        }
    }
    if !lints {
        breaches.push(Breach::new(path, 1, "the workspace's lints are not in force: [lints] workspace = true"));
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readme(observe: &str) -> String {
        SECTIONS
            .map(|section| format!("## {section}\n\n{}\n", if section == "Observe" { observe } else { "" }))
            .concat()
    }

    #[test]
    fn readme_has_its_sections_and_a_transcript() {
        assert!(sections_of("x", &readme("```console\n$ ss\n```")).is_empty());
        assert!(sections_of("x", &readme("```console\n## not a section\n```")).is_empty());
        assert_eq!(sections_of("x", &readme("words")).len(), 1);
        assert_eq!(sections_of("x", &format!("{}\n```\n```\n", readme("words"))).len(), 1, "not in Observe");
        assert_eq!(sections_of("x", &readme("```").replace("## Run\n", "")).len(), 1);
    }

    #[test]
    fn readme_has_at_most_900_words() {
        assert_eq!(length_of("x", &"word ".repeat(900)), None);
        assert!(length_of("x", &"word ".repeat(901)).is_some());
    }

    #[test]
    fn no_two_programs_have_one_name() {
        let programs = [("race", "a"), ("fixed", "a"), ("race", "b"), ("lock", "b")];
        let programs = programs.map(|(name, package)| (name.to_owned(), package.to_owned()));
        assert_eq!(twins(&programs).len(), 1);
        assert!(twins(&programs[..2]).is_empty());
    }

    #[test]
    fn manifests_follow_the_workspace() {
        let good = "[lints]\nworkspace = true\n\n[dependencies]\nlibc.workspace = true\n[[test]]\nname = \"x\"\n";
        assert!(manifest("x", good).is_empty());
        assert_eq!(manifest("x", &good.replace("libc.workspace = true", "libc = \"0.2\"")).len(), 1);
        assert_eq!(manifest("x", "[dependencies]\n").len(), 1);
        assert!(
            manifest("x", &format!("{good}[dev-dependencies]\nmio = {{ workspace = true, features = [\"x\"] }}\n"))
                .is_empty()
        );
        for bad in [
            "[dependencies.rand]\nversion = \"0.9\"",
            "[target.'cfg(unix)'.dependencies]\nrand = \"0.9\"",
            "[dev-dependencies]\nrand = \"0.9\" # workspace = true",
        ] {
            assert_eq!(manifest("x", &format!("{good}{bad}\n")).len(), 1, "{bad}");
        }
    }
}

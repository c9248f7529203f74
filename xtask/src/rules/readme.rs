//! READMEs, manifests and the table of examples.

use crate::breach::Breach;
use crate::limits;
use crate::markers;
use crate::table;
use crate::tree::{Package, Tree};

/// The sections of a README, which is a chapter of the book.
const SECTIONS: &str = "Idea, Run, Observe, What goes wrong, Syscalls in this lesson, When to use it and what it costs, \
    Exercises, References, Next";

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
        // A `## ` between fences belongs to a transcript.
        if line.starts_with("```") {
            fenced = !fenced;
            transcript |= found.last() == Some(&"Observe");
        } else if let Some(title) = line.strip_prefix("## ").filter(|_| !fenced) {
            found.push(title);
        }
    }
    let found = found.join(", ");
    if found != SECTIONS {
        return vec![Breach::new(path, 1, format!("the sections must be: {SECTIONS}; found: {found}"))];
    }
    match transcript {
        true => Vec::new(),
        false => vec![Breach::new(path, 1, "Observe shows no transcript")],
    }
}

pub fn table(tree: &Tree) -> Vec<Breach> {
    let readme = tree.text(table::README).unwrap_or_default();
    let is_current = markers::current(readme, table::NAME) == Some(&table::render(&tree.examples));
    let reason = "the table of examples differs from the catalogue; run `cargo xtask check --fix`";
    if is_current { Vec::new() } else { vec![Breach::new(table::README, 1, reason)] }
}

/// Lints and versions come from the workspace, and no two programs have the same name.
pub fn manifests(tree: &Tree) -> Vec<Breach> {
    let packages = tree.packages.iter();
    let programs = packages.flat_map(|package| package.programs.iter().map(|program| (&*program.name, &*package.name)));
    let manifests = tree.texts.iter().filter(|(path, _)| path.ends_with("/Cargo.toml"));
    manifests.flat_map(|(path, text)| manifest(path, text)).chain(twins(programs.collect())).collect()
}

/// Programs with the same name: cargo would write both to one file in target/debug.
fn twins(mut programs: Vec<(&str, &str)>) -> Vec<Breach> {
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
    if !text.contains("[lints]\nworkspace = true\n") {
        breaches.push(Breach::new(path, 1, "the lints of the workspace are missing: [lints] workspace = true"));
    }
    let mut section = "";
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        let is_title = line.starts_with('[');
        section = if is_title { line.trim_matches(['[', ']']) } else { section };
        let declares = section.ends_with("dependencies") && !is_title && line.contains('=');
        if is_title && section.contains("dependencies.")
            || declares && !line.replace(' ', "").contains("workspace=true")
        {
            breaches.push(Breach::new(path, number, ONCE));
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Kind;
    use crate::tree::tests::tree;

    fn readme(observe: &str) -> String {
        let text = |title| if title == "Observe" { observe } else { "" };
        SECTIONS.split(", ").map(|title| format!("## {title}\n\n{}\n", text(title))).collect()
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
    fn two_programs_with_one_name_are_a_breach() {
        let programs = [("race", "a"), ("fixed", "a"), ("race", "b"), ("lock", "b")];
        assert_eq!(twins(programs.to_vec()).len(), 1);
        assert!(twins(programs[..2].to_vec()).is_empty());
    }

    #[test]
    fn manifest_without_the_workspace_is_a_breach() {
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

    #[test]
    fn missing_readme_and_missing_conformance_test_are_breaches() {
        assert_eq!(sections(&tree(Kind::Server, &[])).len(), 2);
        let files = [("x/README.md", readme("```\n```")), ("x/tests/conformance.rs", String::new())];
        let files = files.each_ref().map(|(path, text)| (*path, text.as_str()));
        assert_eq!(sections(&tree(Kind::Server, &files)), []);
    }

    #[test]
    fn old_table_of_examples_is_a_breach() {
        let current = format!("<!-- examples -->\n{}<!-- /examples -->\n", table::render(&[]));
        assert_eq!(super::table(&tree(Kind::Server, &[("README.md", &current)])), []);
        assert_eq!(super::table(&tree(Kind::Server, &[("README.md", &current.replace("Technique", "x"))])).len(), 1);
    }
}

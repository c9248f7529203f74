//! READMEs, manifests and the table of examples.

use crate::check::Tree;
use crate::rules::Breach;
use crate::table;

const SECTIONS: [&str; 6] = ["Concept", "Run", "Observe", "Syscalls in this lesson", "Exercises", "References"];
const COMMANDS: [&str; 4] = ["check", "diff", "demo", "verify"];

pub fn sections(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    let folders = tree.examples.iter().map(|example| example.name.as_str()).chain(["client"]);
    for folder in folders {
        let path = format!("{folder}/README.md");
        breaches.extend(sections_of(&path, tree.text(&path).unwrap_or_default()));
    }
    for example in &tree.examples {
        let path = format!("{}/tests/conformance.rs", example.name);
        if tree.text(&path).is_none() {
            breaches.push(Breach::new(&path, 1, "there is no such file"));
        }
    }
    breaches
}

fn sections_of(path: &str, text: &str) -> Vec<Breach> {
    let found: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    if found != SECTIONS {
        return vec![Breach::new(path, 1, format!("the sections must be {SECTIONS:?}, and are {found:?}"))];
    }
    let observe = text.split("## Observe").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap_or_default();
    match observe.contains("```") {
        true => Vec::new(),
        false => vec![Breach::new(path, 1, "Observe shows no transcript")],
    }
}

/// `cargo run -p NAME`, `cargo xtask SUB`, `cargo demo NAME` name what exists.
pub fn commands(tree: &Tree) -> Vec<Breach> {
    let readmes = tree.texts.iter().filter(|(path, _)| path.ends_with(".md"));
    readmes.flat_map(|(path, text)| commands_of(path, text, &tree.packages)).collect()
}

fn commands_of(path: &str, text: &str, packages: &[String]) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let words: Vec<&str> =
            line.split(|c: char| c.is_whitespace() || "`();,".contains(c)).filter(|w| !w.is_empty()).collect();
        for window in words.windows(3) {
            let unknown = match window {
                ["-p" | "--package", name, _] | [_, "-p" | "--package", name] if line.contains("cargo ") => {
                    let is_name = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
                    let is_number = name.parse::<u32>().is_ok();
                    is_name && !is_number && !packages.iter().any(|package| package == name)
                }
                ["cargo", "xtask", name] => !COMMANDS.contains(name),
                ["cargo", "demo", name] if name.starts_with("server") => {
                    !packages.iter().any(|package| package == name)
                }
                _ => false,
            };
            if unknown {
                breaches.push(Breach::new(
                    path,
                    number + 1,
                    format!("`{}` names nothing that exists", window.join(" ")),
                ));
                break;
            }
        }
    }
    breaches
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

/// Lints and versions come from the workspace.
pub fn manifests(tree: &Tree) -> Vec<Breach> {
    let manifests = tree.texts.iter().filter(|(path, _)| path.ends_with("/Cargo.toml"));
    manifests.flat_map(|(path, text)| manifest(path, text)).collect()
}

fn manifest(path: &str, text: &str) -> Vec<Breach> {
    let mut breaches = Vec::new();
    if !text.contains("[lints]\nworkspace = true") {
        breaches.push(Breach::new(path, 1, "the workspace's lints are not in force: [lints] workspace = true"));
    }
    let mut dependencies = false;
    for (number, line) in text.lines().enumerate() {
        if line.starts_with('[') {
            dependencies = line.trim_matches(['[', ']']).ends_with("dependencies");
        } else if dependencies && !line.is_empty() && !line.contains("workspace = true") {
            breaches.push(Breach::new(
                path,
                number + 1,
                "a dependency is declared once, in the workspace: NAME.workspace = true",
            ));
        }
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
    fn a_readme_has_six_sections_and_a_transcript() {
        assert!(sections_of("x", &readme("```console\n$ ss\n```")).is_empty());
        assert_eq!(sections_of("x", &readme("words")).len(), 1);
        assert_eq!(sections_of("x", &readme("```").replace("## Run\n", "")).len(), 1);
    }

    #[test]
    fn commands_name_what_exists() {
        let packages = ["client".to_owned(), "server01-fork".to_owned()];
        let good = "$ cargo run -p server01-fork\n$ cargo run -p client -- -i localhost -p 2000 -c 5\n`cargo xtask check --fix`";
        assert!(commands_of("x", good, &packages).is_empty(), "{:?}", commands_of("x", good, &packages));
        for bad in ["cargo run -p server99-no", "cargo xtask fly now", "cargo demo server99-no"] {
            assert_eq!(commands_of("x", bad, &packages).len(), 1, "{bad}");
        }
    }

    #[test]
    fn manifests_follow_the_workspace() {
        let good = "[lints]\nworkspace = true\n\n[dependencies]\nlibc.workspace = true\n[[test]]\nname = \"x\"\n";
        assert!(manifest("x", good).is_empty());
        assert_eq!(manifest("x", &good.replace("libc.workspace = true", "libc = \"0.2\"")).len(), 1);
        assert_eq!(manifest("x", "[dependencies]\n").len(), 1);
    }
}

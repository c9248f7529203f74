//! The table of examples in README.md, made from the catalogue.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use testkit::catalogue::{Example, Overload};

const START: &str = "<!-- examples -->\n";
const END: &str = "<!-- /examples -->";

pub fn render(examples: &[Example]) -> String {
    let mut table =
        String::from("| Example | Technique | A client too many | System calls of the lesson |\n|---|---|---|---|\n");
    for example in examples {
        let overload = match example.overload {
            Overload::Refuse => "is told `ERR busy`",
            Overload::Queue => "waits in the queue",
        };
        let calls: Vec<String> = example.syscalls.iter().map(|call| format!("`{call}`")).collect();
        let (name, technique) = (&example.name, &example.description);
        table
            .push_str(&format!("| [{name}](./{name}/README.md) | {technique} | {overload} | {} |\n", calls.join(", ")));
    }
    table
}

/// What stands between the markers.
pub fn current(readme: &str) -> Option<&str> {
    Some(readme.split_once(START)?.1.split_once(END)?.0)
}

pub fn write(root: &Path, examples: &[Example]) -> Result<()> {
    let path = root.join("README.md");
    let readme = fs::read_to_string(&path).context("README.md")?;
    let old = current(&readme).context("README.md has no <!-- examples --> markers")?;
    let (old, new) = (format!("{START}{old}{END}"), format!("{START}{}{END}", render(examples)));
    fs::write(&path, readme.replacen(&old, &new, 1)).context("README.md")
}

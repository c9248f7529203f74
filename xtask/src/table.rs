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
            Overload::Refuse if example.family == "chat" => "is told `! server-full`",
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
    let new = replaced(&readme, &render(examples)).context("README.md has no <!-- examples --> markers")?;
    fs::write(&path, new).context("README.md")
}

/// The text with another table between its markers.
fn replaced(readme: &str, table: &str) -> Option<String> {
    let (before, rest) = readme.split_once(START)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{START}{table}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let empty = format!("# Title\n{START}{END}\nmore\n");
        let one = replaced(&empty, "| one |\n").unwrap();
        assert_eq!(one, format!("# Title\n{START}| one |\n{END}\nmore\n"));
        assert_eq!(current(&one), Some("| one |\n"));
        assert_eq!(replaced(&one, "").unwrap(), empty);
        assert_eq!(replaced("# Title\n", "| one |\n"), None);
    }
}

//! The header comment of an example, and fragments that several examples share.

use std::collections::BTreeMap;

use testkit::catalogue::{Example, Overload};

use crate::breach::Breach;
use crate::tree::{Package, Tree};

const KEYS: [&str; 6] = ["Run", "Try", "Prev", "Next", "Diff base", "Overload"];
const FRAGMENTS: usize = 3;

/// The value of a key of the `//!` header; `None` also for the word `none`.
pub fn value(text: &str, key: &str) -> Option<String> {
    let value = header(text).find_map(|line| line.strip_prefix(&format!("{key}: ")).map(str::to_owned))?;
    (value != "none").then_some(value)
}

fn header(text: &str) -> impl Iterator<Item = &str> {
    text.lines().take_while(|line| line.starts_with("//!")).map(|line| line.trim_start_matches("//!").trim())
}

pub fn keys(tree: &Tree) -> Vec<Breach> {
    let is_lesson = |name: &String| tree.lessons().any(|(_, program)| program.name == *name);
    let mut breaches = Vec::new();
    for (package, program) in tree.lessons() {
        let Some(source) = tree.source(&program.path) else { continue };
        let example = tree.examples.iter().find(|example| example.name == package.name);
        let mut reasons: Vec<String> = order(&source.text).into_iter().collect();
        for key in ["Prev", "Next", "Diff base"] {
            if let Some(name) = value(&source.text, key).filter(|name| !is_lesson(name)) {
                reasons.push(format!("{key}: {name} is no example; write `none` or the name of an example"));
            }
        }
        reasons.extend(example.into_iter().flat_map(|example| policies(&source.text, example)));
        breaches.extend(reasons.into_iter().map(|reason| Breach::new(&program.path, 1, reason)));
    }
    breaches
}

/// What the header says about overload and slow readers agrees with Cargo.toml.
fn policies(text: &str, example: &Example) -> Vec<String> {
    let mut reasons = Vec::new();
    let begins_with = |key, word: &str| value(text, key).is_some_and(|value| value.starts_with(word));
    let overload = match example.overload {
        Overload::Refuse => "refuse",
        Overload::Queue => "queue",
    };
    if !begins_with("Overload", overload) {
        reasons.push(format!("Overload: must begin with `{overload}`, as in Cargo.toml"));
    }
    match example.slow_reader.map(|policy| format!("{policy:?}").to_lowercase()) {
        Some(policy) if !begins_with("Slow reader", &policy) => {
            reasons.push(format!("Slow reader: must begin with `{policy}`, as in Cargo.toml"));
        }
        None if example.family == "chat" => {
            reasons.push("the Cargo.toml of a chat must have `slow-reader`".to_owned());
        }
        _ => {}
    }
    reasons
}

/// A title, an empty line, and the keys in their order.
fn order(text: &str) -> Option<String> {
    let lines: Vec<&str> = header(text).collect();
    let title = lines.first().is_some_and(|title| !title.is_empty() && !title.contains("Run:"));
    let found: Vec<&str> =
        lines.iter().filter_map(|line| KEYS.into_iter().find(|key| line.starts_with(&format!("{key}: ")))).collect();
    (!title || found != KEYS).then(|| format!("the header must be a title and {KEYS:?}; found {found:?}"))
}

/// `// ANCHOR: name` to `// ANCHOR_END: name`: equal names are equal bytes, at most three in a file, never nested.
pub fn fragments(tree: &Tree) -> Vec<Breach> {
    let files: Vec<(&str, &str)> = tree
        .packages_that(Package::is_example)
        .flat_map(|package| tree.sources_of(package))
        .map(|source| (source.path.as_str(), source.text.as_str()))
        .collect();
    fragments_of(&files)
}

fn fragments_of(files: &[(&str, &str)]) -> Vec<Breach> {
    let mut seen: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut breaches = Vec::new();
    for (path, text) in files {
        let mut open: Option<(String, String)> = None;
        let mut count = 0;
        for (number, line) in text.lines().enumerate() {
            if let Some(name) = line.trim().strip_prefix("// ANCHOR: ") {
                count += 1;
                if open.is_some() || count > FRAGMENTS {
                    breaches.push(Breach::new(
                        path,
                        number + 1,
                        format!("anchor {name}: nested, or more than {FRAGMENTS} in a file"),
                    ));
                }
                open = Some((name.to_owned(), String::new()));
            } else if let Some(name) = line.trim().strip_prefix("// ANCHOR_END: ") {
                let Some((_, body)) = open.take().filter(|(begun, _)| begun == name) else {
                    breaches.push(Breach::new(path, number + 1, format!("anchor {name} ends and has not begun")));
                    continue;
                };
                let (first, known) = seen.entry(name.to_owned()).or_insert_with(|| ((*path).to_owned(), body.clone()));
                if *known != body {
                    breaches.push(Breach::new(
                        path,
                        number + 1,
                        format!("anchor {name} differs from the one in {first}"),
                    ));
                }
            } else if let Some((_, body)) = &mut open {
                body.push_str(line);
                body.push('\n');
            }
        }
        if let Some((name, _)) = open {
            breaches.push(Breach::new(path, 1, format!("anchor {name} never ends")));
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "//! Title.\n//!\n//! Run: a\n//! Try: b\n//! Prev: none\n//! Next: none\n//! Diff base: x\n//! Overload: queue\n\nuse a;\n";

    #[test]
    fn keys_have_an_order() {
        assert_eq!(order(GOOD), None);
        for bad in [&GOOD.replace("//! Try: b\n", ""), &GOOD.replace("Prev", "Foo"), "fn main() {}"] {
            assert!(order(bad).is_some(), "{bad}");
        }
        assert_eq!((value(GOOD, "Diff base").as_deref(), value(GOOD, "Prev")), (Some("x"), None));
    }

    #[test]
    fn equal_names_are_equal_bytes() {
        let with = |body: &str| format!("// ANCHOR: a\n{body}\n// ANCHOR_END: a\n");
        assert!(fragments_of(&[("x", &with("one")), ("y", &with("one"))]).is_empty());
        assert_eq!(fragments_of(&[("x", &with("one")), ("y", &with("two"))]).len(), 1);
        assert_eq!(fragments_of(&[("x", "// ANCHOR: a\n")]).len(), 1);
        assert_eq!(fragments_of(&[("x", "// ANCHOR: a\n// ANCHOR: b\n// ANCHOR_END: b\n")]).len(), 1);
    }
}

//! The header comment of an example, and fragments that several examples share.

use std::collections::BTreeMap;

use testkit::catalogue::Overload;

use crate::check::Tree;
use crate::rules::Breach;

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
    let mut breaches = Vec::new();
    for example in &tree.examples {
        let path = format!("{}/src/main.rs", tree.folder(example));
        let Some(source) = tree.main_of(&example.name) else {
            breaches.push(Breach::new(&path, 1, "there is no such file"));
            continue;
        };
        breaches.extend(order(&path, &source.text));
        for key in ["Prev", "Next", "Diff base"] {
            if let Some(name) = value(&source.text, key).filter(|name| tree.example(name).is_none()) {
                breaches.push(Breach::new(&path, 1, format!("{key}: {name} is no example; write `none` or its name")));
            }
        }
        let word = match example.overload {
            Overload::Refuse => "refuse",
            Overload::Queue => "queue",
        };
        if !value(&source.text, "Overload").is_some_and(|value| value.starts_with(word)) {
            breaches.push(Breach::new(&path, 1, format!("Overload: must begin with `{word}`, as Cargo.toml says")));
        }
        let policy = example.slow_reader.map(|policy| format!("{policy:?}").to_lowercase());
        if let Some(word) =
            policy.filter(|word| !value(&source.text, "Slow reader").is_some_and(|v| v.starts_with(word)))
        {
            breaches.push(Breach::new(&path, 1, format!("Slow reader: must begin with `{word}`, as Cargo.toml says")));
        }
        if example.family == "chat" && example.slow_reader.is_none() {
            breaches.push(Breach::new(&path, 1, "a chat says in Cargo.toml what becomes of a slow-reader"));
        }
    }
    breaches
}

/// A title, an empty line, and the keys in their order.
fn order(path: &str, text: &str) -> Vec<Breach> {
    let lines: Vec<&str> = header(text).collect();
    let title = lines.first().is_some_and(|title| !title.is_empty() && !title.contains("Run:"));
    let found: Vec<&str> =
        lines.iter().filter_map(|line| KEYS.into_iter().find(|key| line.starts_with(&format!("{key}: ")))).collect();
    match title && found == KEYS {
        true => Vec::new(),
        false => vec![Breach::new(path, 1, format!("the header must be a title and {KEYS:?}, and is {found:?}"))],
    }
}

/// `// ANCHOR: name` to `// ANCHOR_END: name`: equal names are equal bytes, at most three in a file, never nested.
pub fn fragments(tree: &Tree) -> Vec<Breach> {
    let files: Vec<(&str, &str)> = tree
        .examples
        .iter()
        .flat_map(|example| tree.sources_of(example))
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
        assert!(order("x", GOOD).is_empty());
        assert_eq!(order("x", &GOOD.replace("//! Try: b\n", "")).len(), 1);
        assert_eq!(order("x", &GOOD.replace("Prev", "Foo")).len(), 1);
        assert_eq!(order("x", "fn main() {}").len(), 1);
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

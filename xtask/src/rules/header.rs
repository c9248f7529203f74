//! The header comment of an example.

use testkit::catalogue::{Example, Overload};

use crate::breach::Breach;
use crate::tree::Tree;

const KEYS: [&str; 6] = ["Run", "Try", "Prev", "Next", "Diff base", "Overload"];

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

#[cfg(test)]
mod tests {
    use testkit::catalogue::{self, SlowReader};

    use super::*;
    use crate::tree::Kind;
    use crate::tree::tests::tree;

    const GOOD: &str = "//! Title.\n//!\n//! Run: a\n//! Try: b\n//! Prev: none\n//! Next: none\n//! Diff base: x\n//! Overload: queue\n\nuse a;\n";

    #[test]
    fn keys_in_another_order_are_a_breach() {
        assert_eq!(order(GOOD), None);
        for bad in [&GOOD.replace("//! Try: b\n", ""), &GOOD.replace("Prev", "Foo"), "fn main() {}"] {
            assert!(order(bad).is_some(), "{bad}");
        }
        assert_eq!((value(GOOD, "Diff base").as_deref(), value(GOOD, "Prev")), (Some("x"), None));
    }

    fn breaches(header: &str, overload: Overload, slow_reader: Option<SlowReader>) -> usize {
        let mut tree = tree(Kind::Chat, &[("x/src/main.rs", header)]);
        let table = catalogue::Table {
            family: "chat".into(),
            worker: "one process".into(),
            overload,
            slots: 1,
            slots_flag: None,
            slow_reader,
            syscalls: Vec::new(),
            chapter: "x".into(),
            variants: Vec::new(),
        };
        tree.examples.push(Example { name: "x".into(), description: String::new(), dir: "x".into(), table });
        keys(&tree).len()
    }

    #[test]
    fn header_that_differs_from_the_manifest_is_a_breach() {
        let header = GOOD.replace("queue", "queue\n//! Slow reader: kick");
        assert_eq!(breaches(&header, Overload::Queue, Some(SlowReader::Kick)), 0);
        assert_eq!(breaches(&header, Overload::Refuse, Some(SlowReader::Kick)), 1);
        assert_eq!(breaches(&header, Overload::Queue, Some(SlowReader::Drop)), 1);
        assert_eq!(breaches(&header, Overload::Queue, None), 1, "a chat without slow-reader");
    }

    #[test]
    fn key_with_an_unknown_example_is_a_breach() {
        let header = GOOD.replace("queue", "queue\n//! Slow reader: kick").replace("Prev: none", "Prev: nobody");
        assert_eq!(breaches(&header, Overload::Queue, Some(SlowReader::Kick)), 1);
    }
}

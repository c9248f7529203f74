//! Sizes: an example that grows has two ideas.

use crate::check::Tree;
use crate::diff;
use crate::rules::Breach;
use crate::source::Source;

/// Code lines of an example by the start of its name, the first that fits. The measured models of the field are half as
/// long, and cannot be stopped, limited or left alone: the start contract costs an example some 50 lines.
const CODE: &[(&str, usize)] = &[
    ("server00", 90),
    ("server01", 150),
    ("server02-", 170),
    ("server02a", 170),
    ("server02", 220),
    ("server03", 150),
    ("server04", 170),
    ("server05", 140),
    ("server06", 150),
    ("server07", 220),
    ("server", 150),
];

const FUNCTION_LINES: usize = 60;
const DEPTH: usize = 5;
/// Read in twenty minutes: options, listener, accept policy, the service with its deadlines, its blocking driver, the log.
const COMMON_CODE: usize = 600;
const COMMON_ITEMS: usize = 40;
const PROGRAM_FILE: usize = 300;
const DIFF_VARIANT: usize = 60;
const DIFF_MODEL: usize = 120;

/// Where a budget and clarity fight, clarity wins, and this table says why: path, what, how much, reason. An entry
/// that is not needed is a breach itself.
const EXCEPTIONS: &[(&str, &str, usize, &str)] = &[(
    "server01-fork",
    "diff",
    200,
    "the step from one client to many brings the table of children, reaping, the limit and the end of the family at once",
)];

fn allowed(path: &str, what: &str, budget: usize) -> usize {
    let exception = EXCEPTIONS.iter().find(|(known, kind, ..)| *known == path && *kind == what);
    exception.map_or(budget, |(_, _, most, _)| *most)
}

fn over(path: &str, what: &str, measured: usize, budget: usize) -> Option<Breach> {
    let most = allowed(path, what, budget);
    (measured > most).then(|| Breach::new(path, 1, format!("{what}: {measured} lines, the budget is {most}")))
}

pub fn code_budget(example: &str) -> usize {
    CODE.iter().find(|(start, _)| example.starts_with(start)).map_or(120, |(_, most)| *most)
}

pub fn sizes(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for example in &tree.examples {
        if let Some(source) = tree.main_of(&example.name) {
            breaches.extend(over(&example.name, "code", source.size().code, code_budget(&example.name)));
            breaches.extend(functions(source, true));
        }
    }
    let programs = ["client/src/", "testkit/src/", "xtask/src/", "common/src/", "bench/src/"];
    for source in tree.sources.iter().filter(|s| programs.iter().any(|start| s.path.starts_with(start))) {
        breaches.extend(over(&source.path, "code", source.size().code, PROGRAM_FILE));
        breaches.extend(functions(source, false));
    }
    let common = || tree.sources.iter().filter(|source| source.path.starts_with("common/src/"));
    breaches.extend(over("common", "code", common().map(|source| source.size().code).sum(), COMMON_CODE));
    breaches.extend(over("common", "public items", common().map(public_items).sum(), COMMON_ITEMS));
    breaches
}

fn functions(source: &Source, nested: bool) -> Vec<Breach> {
    let too_long = |f: &crate::source::Function| f.lines > FUNCTION_LINES || (nested && f.depth > DEPTH);
    let describe = |f: crate::source::Function| {
        let reason =
            format!("fn {}: {} lines, depth {}; at most {FUNCTION_LINES} and {DEPTH}", f.name, f.lines, f.depth);
        Breach::new(&source.path, f.line, reason)
    };
    source.functions().into_iter().filter(too_long).map(describe).collect()
}

/// Public functions, types, traits and constants at module level.
fn public_items(source: &Source) -> usize {
    use syn::{Item, Visibility};
    let is_public = |item: &&Item| {
        let visibility = match item {
            Item::Fn(item) => &item.vis,
            Item::Struct(item) => &item.vis,
            Item::Enum(item) => &item.vis,
            Item::Trait(item) => &item.vis,
            Item::Const(item) => &item.vis,
            Item::Static(item) => &item.vis,
            _ => return false,
        };
        matches!(visibility, Visibility::Public(_))
    };
    source.file.items.iter().filter(is_public).count()
}

pub fn diffs(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for example in &tree.examples {
        if let Some((_, removed, added)) = diff::to_base(tree, &example.name) {
            breaches.extend(over(&example.name, "diff", removed + added, diff_budget(&example.name)));
        }
    }
    breaches
}

/// A letter behind the number is a variant of that model.
fn diff_budget(example: &str) -> usize {
    let number = example.split('-').next().unwrap_or_default();
    match number.chars().last() {
        Some(letter) if letter.is_ascii_lowercase() => DIFF_VARIANT,
        _ => DIFF_MODEL,
    }
}

pub fn stale_exceptions(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for (path, what, ..) in EXCEPTIONS {
        let needed = match *what {
            "diff" => diff::to_base(tree, path).is_some_and(|(_, removed, added)| removed + added > diff_budget(path)),
            _ if *path == "common" => true,
            _ => match tree.main_of(path) {
                Some(source) => source.size().code > code_budget(path),
                None => tree.sources.iter().any(|source| source.path == *path && source.size().code > PROGRAM_FILE),
            },
        };
        if !needed {
            breaches.push(Breach::new(
                "xtask/src/rules/budget.rs",
                1,
                format!("the exception for {path} ({what}) is not needed"),
            ));
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_or_deep_function_is_a_breach() {
        let long = format!("fn f() {{\n{}}}\n", "    a();\n".repeat(60));
        assert_eq!(functions(&Source::parse("x.rs", &long).unwrap(), true).len(), 1);
        let deep = "fn f() { loop { loop { loop { loop { loop { } } } } } }";
        assert_eq!(functions(&Source::parse("x.rs", deep).unwrap(), true).len(), 1);
        assert!(
            functions(&Source::parse("x.rs", "fn f() { loop { loop { loop { loop { } } } } }").unwrap(), true)
                .is_empty()
        );
    }

    #[test]
    fn budgets_follow_the_name() {
        assert_eq!((code_budget("server02-select"), code_budget("server02b-epoll")), (170, 220));
        assert_eq!((diff_budget("server02a-poll"), diff_budget("server02-select")), (DIFF_VARIANT, DIFF_MODEL));
    }

    #[test]
    fn over_the_budget_is_a_breach() {
        assert!(over("server99", "code", 11, 10).is_some());
        assert!(over("server99", "code", 10, 10).is_none());
    }

    #[test]
    fn public_items_are_counted() {
        let source =
            Source::parse("x.rs", "pub fn a() {} fn b() {} pub struct C; pub(crate) fn d() {} pub mod e;").unwrap();
        assert_eq!(public_items(&source), 2);
    }
}

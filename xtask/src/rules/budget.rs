//! Sizes: an example that grows has two ideas.

use std::fmt;

use super::exceptions::{EXCEPTIONS, Exception};
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
const OTHER_CODE: usize = 120;
/// A second file of an example, which wraps one thing that the lesson needs.
const SECOND_FILE: usize = 60;
const FUNCTION_LINES: usize = 60;
const DEPTH: usize = 5;
/// Read in twenty minutes: options, listener, accept policy, the service with its deadlines, its blocking driver, the log.
const COMMON_CODE: usize = 600;
const COMMON_ITEMS: usize = 40;
const PROGRAM_FILE: usize = 300;
const DIFF_VARIANT: usize = 60;
const DIFF_MODEL: usize = 120;
const PROGRAMS: &[&str] = &["client/src/", "testkit/src/", "xtask/src/", "common/src/", "bench/src/"];

/// What a budget is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Code,
    Function,
    Depth,
    Diff,
    Items,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            What::Code => "lines of code",
            What::Function => "lines of code in one function",
            What::Depth => "levels of braces",
            What::Diff => "lines changed since the diff base",
            What::Items => "public items",
        })
    }
}

/// A figure and its budget.
struct Measured {
    subject: String,
    path: String,
    line: usize,
    what: What,
    value: usize,
    budget: usize,
}

impl Measured {
    fn new(subject: &str, path: &str, what: What, value: usize, budget: usize) -> Measured {
        Measured { subject: subject.into(), path: path.into(), line: 1, what, value, budget }
    }
}

pub fn sizes(tree: &Tree) -> Vec<Breach> {
    let mut measured = Vec::new();
    for example in &tree.examples {
        let name = &example.name;
        let main = format!("{}/src/main.rs", tree.folder(example));
        for source in tree.sources_of(example) {
            let (subject, code) = match source.path == main {
                true => (name, code_budget(name)),
                false => (&source.path, SECOND_FILE),
            };
            let size = source.size();
            measured.push(Measured::new(subject, &source.path, What::Code, size.code, code));
            measured.extend(functions(source, true));
        }
        if let Some((_, removed, added)) = diff::to_base(tree, name) {
            measured.push(Measured::new(name, &main, What::Diff, removed + added, diff_budget(name)));
        }
    }
    for source in tree.sources.iter().filter(|s| PROGRAMS.iter().any(|start| s.path.starts_with(start))) {
        measured.push(Measured::new(&source.path, &source.path, What::Code, source.size().code, PROGRAM_FILE));
        measured.extend(functions(source, false));
    }
    let common = || tree.sources.iter().filter(|source| source.path.starts_with("common/src/"));
    let code = common().map(|source| source.size().code).sum();
    measured.push(Measured::new("common", "common/src/lib.rs", What::Code, code, COMMON_CODE));
    let items = common().map(|source| public_items(&source.file.items)).sum();
    measured.push(Measured::new("common", "common/src/lib.rs", What::Items, items, COMMON_ITEMS));
    judge(&measured, EXCEPTIONS)
}

/// Figures over their budgets, and exceptions without need.
fn judge(measured: &[Measured], exceptions: &[Exception]) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for Measured { subject, path, line, what, value, budget } in measured {
        let exception = exceptions.iter().find(|e| e.subject == subject && e.what == *what);
        let most = exception.map_or(*budget, |exception| exception.most);
        if *value > most {
            breaches.push(Breach::new(path, *line, format!("{subject}: {value} {what}, the budget is {most}")));
        }
    }
    for Exception { subject, what, reason, .. } in exceptions {
        let needed = |m: &&Measured| m.subject == *subject && m.what == *what && m.value > m.budget;
        if !measured.iter().any(|m| needed(&m)) {
            let reason = format!("the exception for {subject} is not needed any more: {what}, {reason}");
            breaches.push(Breach::new("xtask/src/rules/exceptions.rs", 1, reason));
        }
    }
    breaches
}

fn functions(source: &Source, nested: bool) -> Vec<Measured> {
    let mut measured = Vec::new();
    for function in source.functions() {
        let subject = format!("{} {}", source.path, function.name);
        let mut add = |what, value, budget| {
            let figure = Measured::new(&subject, &source.path, what, value, budget);
            measured.push(Measured { line: function.line, ..figure });
        };
        add(What::Function, function.lines, FUNCTION_LINES);
        if nested {
            add(What::Depth, function.depth, DEPTH);
        }
    }
    measured
}

/// Public functions, types, traits and constants at module level.
pub fn public_items(items: &[syn::Item]) -> usize {
    use syn::{Item, Visibility};
    let count = |item: &Item| {
        let visibility = match item {
            Item::Fn(item) => &item.vis,
            Item::Struct(item) => &item.vis,
            Item::Enum(item) => &item.vis,
            Item::Trait(item) => &item.vis,
            Item::Type(item) => &item.vis,
            Item::Const(item) => &item.vis,
            Item::Static(item) => &item.vis,
            Item::Mod(module) => {
                let inner = module.content.as_ref().filter(|_| matches!(module.vis, Visibility::Public(_)));
                return inner.map_or(0, |(_, items)| public_items(items));
            }
            _ => return 0,
        };
        usize::from(matches!(visibility, Visibility::Public(_)))
    };
    items.iter().map(count).sum()
}

fn code_budget(example: &str) -> usize {
    CODE.iter().find(|(start, _)| example.starts_with(start)).map_or(OTHER_CODE, |(_, most)| *most)
}

/// A letter behind the number is a variant of that model.
fn diff_budget(example: &str) -> usize {
    let number = example.split('-').next().unwrap_or_default();
    match number.chars().last() {
        Some(letter) if letter.is_ascii_lowercase() => DIFF_VARIANT,
        _ => DIFF_MODEL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaches(text: &str) -> usize {
        judge(&functions(&Source::parse("x.rs", text).unwrap(), true), &[]).len()
    }

    #[test]
    fn a_long_or_deep_function_is_a_breach() {
        assert_eq!(breaches(&format!("fn f() {{\n{}}}\n", "    a();\n".repeat(59))), 1);
        assert_eq!(breaches(&format!("fn f() {{\n{}}}\n", "    a();\n    // why\n".repeat(58))), 0);
        assert_eq!(breaches("fn f() { loop { loop { loop { loop { loop { } } } } } }"), 1);
        assert_eq!(breaches("fn f() { loop { loop { loop { loop { } } } } }"), 0);
    }

    #[test]
    fn budgets_follow_the_name() {
        assert_eq!((code_budget("server02-select"), code_budget("server02b-epoll")), (170, 220));
        assert_eq!((diff_budget("server02a-poll"), diff_budget("server02-select")), (DIFF_VARIANT, DIFF_MODEL));
    }

    #[test]
    fn over_the_budget_is_a_breach_unless_excepted() {
        let of = |value| [Measured::new("server99", "x.rs", What::Code, value, 10)];
        let except = |what| [Exception { subject: "server99", what, most: 20, reason: "why" }];
        assert!(judge(&of(10), &[]).is_empty());
        assert_eq!(judge(&of(11), &[]).len(), 1);
        assert!(judge(&of(20), &except(What::Code)).is_empty());
        assert_eq!(judge(&of(21), &except(What::Code)).len(), 1);
        assert_eq!(judge(&of(11), &except(What::Diff)).len(), 2, "over the budget, and a stale exception");
    }

    #[test]
    fn an_exception_without_need_is_a_breach() {
        let of = |value| [Measured::new("server99", "x.rs", What::Code, value, 10)];
        let exception = [Exception { subject: "server99", what: What::Code, most: 20, reason: "why" }];
        let stale = judge(&of(10), &exception);
        assert_eq!(stale.len(), 1);
        assert!(stale[0].to_string().contains("not needed"), "{}", stale[0]);
        assert_eq!(judge(&[], &exception).len(), 1, "nor for an example that is gone");
    }

    #[test]
    fn public_items_are_counted() {
        let text =
            "pub fn a() {} fn b() {} pub struct C; pub(crate) fn d() {} pub mod e; pub mod f { pub type G = u8; }";
        assert_eq!(public_items(&syn::parse_file(text).unwrap().items), 3);
    }
}

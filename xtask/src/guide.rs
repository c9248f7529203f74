//! The two tables of the field guide: its crates (misc/README.md), and the verified kernel behaviour (misc/TRUTHS.md).
//!
//! The first table has every crate under misc, and every other crate with a tests/truths.rs. The second table has every
//! test `truth_TOPIC_STATEMENT` of these files.

use std::collections::BTreeSet;

use crate::source;
use crate::tree::{Package, Tree};

pub const TRUTHS: &str = "misc/TRUTHS.md";
pub const GUIDE: &str = "misc/README.md";
/// The name of the comments around the list of crates.
pub const NAME: &str = "guide";
const HEAD: &str = "# Verified kernel behaviour\n\n\
    `cargo xtask truths` runs these tests; `cargo xtask truths --write` writes this table. The row of\n\
    a test that fails or is skipped keeps the day and the kernel of its last pass. [The field guide](README.md) lists the\n\
    crates.\n\n";

/// The packages of the field guide: those under misc, and all others with a tests/truths.rs.
pub fn packages(tree: &Tree) -> impl Iterator<Item = &Package> {
    tree.packages_that(|package| package.has_truths || package.folder.starts_with("misc/"))
}

/// A verified kernel behaviour, from the name and the file of its test.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Truth {
    /// A letter of the list in the field guide, or a word such as `log`.
    pub topic: String,
    pub says: String,
    /// The folder of the crate, relative to the root.
    pub folder: String,
}

impl Truth {
    /// `truth_h_the_queue_holds_one_more`.
    pub fn of(test: &str, folder: &str) -> Option<Truth> {
        let (topic, words) = test.strip_prefix("truth_")?.split_once('_')?;
        let is_topic = !topic.is_empty() && topic.bytes().all(|byte| byte.is_ascii_lowercase());
        (is_topic && !words.is_empty()).then(|| Truth {
            topic: topic.to_owned(),
            says: words.replace('_', " "),
            folder: folder.to_owned(),
        })
    }

    pub fn test(&self) -> String {
        format!("truth_{}_{}", self.topic, self.says.replace(' ', "_"))
    }
}

/// The truths that a tests/truths.rs names.
pub fn truths_in(text: &str, folder: &str) -> BTreeSet<Truth> {
    names_in(text).iter().filter_map(|name| Truth::of(name, folder)).collect()
}

/// All identifiers that begin with `truth_`: functions, and names from which a macro makes functions.
pub fn names_in(text: &str) -> BTreeSet<String> {
    let names = source::names(text.parse().unwrap_or_default());
    names.iter().map(ToString::to_string).filter(|name| name.starts_with("truth_")).collect()
}

/// A row of misc/TRUTHS.md.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub truth: Truth,
    pub result: String,
    /// The day of the last pass, in UTC.
    pub day: String,
    /// The kernel of the last pass.
    pub kernel: String,
}

/// The path from misc/ to a folder.
fn link(folder: &str) -> String {
    folder.strip_prefix("misc/").map_or_else(|| format!("../{folder}"), str::to_owned)
}

fn name(folder: &str) -> &str {
    folder.rsplit('/').next().unwrap_or(folder)
}

pub fn render_truths(rows: &[Row]) -> String {
    let mut rows: Vec<&Row> = rows.iter().collect();
    rows.sort_by(|one, other| one.truth.cmp(&other.truth));
    let mut text = format!("{HEAD}|  | Truth | Shown by | Result | Last pass | Kernel |\n|---|---|---|---|---|---|\n");
    for Row { truth: Truth { topic, says, folder }, result, day, kernel } in rows {
        let (name, link) = (name(folder), link(folder));
        text.push_str(&format!("| {topic} | {says} | [{name}]({link}/README.md) | {result} | {day} | {kernel} |\n"));
    }
    text
}

/// Reads a table that [`render_truths`] made.
pub fn rows(text: &str) -> Vec<Row> {
    text.lines().filter_map(row).collect()
}

fn row(line: &str) -> Option<Row> {
    let cells: Vec<&str> = line.strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
    let [topic, says, shown_by, result, day, kernel] = cells.as_slice() else { return None };
    let link = shown_by.split_once("](")?.1.strip_suffix("/README.md)")?;
    let folder = link.strip_prefix("../").map_or_else(|| format!("misc/{link}"), str::to_owned);
    let truth = Truth { topic: (*topic).to_owned(), says: (*says).to_owned(), folder };
    Some(Row { truth, result: (*result).to_owned(), day: (*day).to_owned(), kernel: (*kernel).to_owned() })
}

pub fn render_guide(tree: &Tree) -> String {
    let mut text = String::from("| Crate | What it shows | Truths | Run |\n|---|---|---|---|\n");
    for package in packages(tree) {
        let Package { name, description, folder, .. } = package;
        let tests = tree.text(&format!("{folder}/tests/truths.rs")).unwrap_or_default();
        let topics: BTreeSet<String> = truths_in(tests, folder).into_iter().map(|truth| truth.topic).collect();
        let topics = topics.into_iter().collect::<Vec<_>>().join(" ");
        let (link, runs) = (link(folder), runs(package).join("<br>"));
        text.push_str(&format!("| [{name}]({link}/README.md) | {description} | {topics} | {runs} |\n"));
    }
    text
}

/// How to run each program of a package, the default program first.
fn runs(package: &Package) -> Vec<String> {
    let default = package.default_run.as_ref().map(|_| format!("`cargo run -p {}`", package.name));
    let others = package.programs.iter().filter(|program| Some(&program.name) != package.default_run.as_ref());
    let others = others.map(|program| format!("`cargo run -p {} --bin {}`", package.name, program.name));
    default.into_iter().chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Program;

    #[test]
    fn truth_is_read_from_the_name_of_its_test() {
        let truth = Truth::of("truth_h_the_queue_holds_one_more", "misc/backlog").unwrap();
        assert_eq!((truth.topic.as_str(), truth.says.as_str()), ("h", "the queue holds one more"));
        assert_eq!(Truth::of("truth_log_x", "x").unwrap().topic, "log");
        assert_eq!(truth.test(), "truth_h_the_queue_holds_one_more");
        for bad in
            ["truth", "truth_", "truth_h", "truth_h_", "truth_h1_x", "truth__x", "truths_h_x", "d17_x", "truth_H_x"]
        {
            assert_eq!(Truth::of(bad, "x"), None, "{bad}");
        }
    }

    #[test]
    fn truths_are_found_in_functions_and_in_macros() {
        let text = "#[test]\nfn truth_a_one() {}\nmacro_rules! m { () => {} }\nm! { truth_b_two: 1; other: 2; }\n\
            fn helper() { run(\"truth_c_not_a_name\"); } // truth_d_in_a_comment\n#[test] fn d17_x() {}";
        let found: Vec<String> = truths_in(text, "x").iter().map(Truth::test).collect();
        assert_eq!(found, ["truth_a_one", "truth_b_two"]);
    }

    #[test]
    fn table_is_read_as_it_was_written() {
        let row = |test: &str, folder: &str| Row {
            truth: Truth::of(test, folder).unwrap(),
            result: "passed".into(),
            day: "2026-01-02".into(),
            kernel: "6.18.1".into(),
        };
        let (one, two) = (row("truth_a_one_wakes", "server03-x"), row("truth_h_two", "misc/backlog"));
        let text = render_truths(&[two.clone(), one.clone()]);
        assert_eq!(rows(&text), [one, two]);
        assert!(text.contains("(backlog/README.md)") && text.contains("(../server03-x/README.md)"), "{text}");
        assert_eq!(rows("| a | b |\n# x\n"), []);
    }

    #[test]
    fn guide_lists_programs_and_topics() {
        let program = |name: &str| Program { name: name.into(), path: String::new() };
        let package = Package {
            name: "x".into(),
            description: "what".into(),
            folder: "misc/x".into(),
            programs: vec![program("x"), program("y")],
            default_run: Some("x".into()),
            has_truths: true,
            ..Package::default()
        };
        let tests = "fn truth_e_a() {} fn truth_e_b() {}".to_owned();
        let texts = vec![("misc/x/tests/truths.rs".to_owned(), tests)];
        let tree = Tree { packages: vec![package], texts, examples: Vec::new(), sources: Vec::new() };
        let line = "| [x](x/README.md) | what | e | `cargo run -p x`<br>`cargo run -p x --bin y` |\n";
        assert!(render_guide(&tree).ends_with(line), "{}", render_guide(&tree));
    }
}

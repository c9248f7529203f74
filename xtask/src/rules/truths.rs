//! The tables of the field guide agree with the folders. Days and kernels may be older.

use std::collections::BTreeSet;

use crate::breach::Breach;
use crate::guide::{self, Truth};
use crate::markers;
use crate::tree::Tree;

const END: &str = "/tests/truths.rs";

pub fn listed(tree: &Tree) -> Vec<Breach> {
    let mut there = BTreeSet::new();
    let mut breaches = Vec::new();
    for source in tree.sources.iter().filter(|source| !source.path.starts_with("xtask/")) {
        match source.path.strip_suffix(END) {
            Some(folder) => {
                there.extend(guide::truths_in(&source.text, folder));
                breaches.extend(misnamed(&source.path, &source.text));
            }
            None if source.path.contains("/tests/") => breaches.extend(elsewhere(&source.path, &source.text)),
            None => {}
        }
    }
    breaches.extend(compare(&there, tree.text(guide::TRUTHS).unwrap_or_default()));
    breaches
}

/// `cargo xtask truths` would run such a test, and no table would have it.
fn misnamed(path: &str, text: &str) -> Vec<Breach> {
    let names = guide::names_in(text);
    let bad = names.iter().filter(|name| Truth::of(name, path).is_none());
    bad.map(|name| Breach::new(path, 1, format!("{name}: the name must be truth_TOPIC_STATEMENT"))).collect()
}

/// `cargo xtask truths` would not find such a test.
fn elsewhere(path: &str, text: &str) -> Vec<Breach> {
    let stray = guide::truths_in(text, path);
    stray.iter().map(|truth| Breach::new(path, 1, format!("{} belongs in tests/truths.rs", truth.test()))).collect()
}

fn compare(there: &BTreeSet<Truth>, table: &str) -> Vec<Breach> {
    let listed: BTreeSet<Truth> = guide::rows(table).into_iter().map(|row| row.truth).collect();
    let breach = |(truths, what): (Vec<&Truth>, &str)| {
        let (count, truth) = (truths.len(), truths.first()?);
        let first = format!("{} of {}", truth.test(), truth.folder);
        let reason = format!("{count} {what}, the first is {first}; run `cargo xtask truths --write`");
        Some(Breach::new(guide::TRUTHS, 1, reason))
    };
    let missing = (there.difference(&listed).collect(), "tests are not in the table");
    let gone = (listed.difference(there).collect(), "rows of the table have no test");
    [missing, gone].into_iter().filter_map(breach).collect()
}

/// The list of crates in misc/README.md.
pub fn guide(tree: &Tree) -> Vec<Breach> {
    let readme = tree.text(guide::GUIDE).unwrap_or_default();
    let is_current = markers::current(readme, guide::NAME) == Some(&guide::render_guide(tree));
    let reason = "the list of crates differs from the folders; run `cargo xtask check --fix`";
    if is_current { Vec::new() } else { vec![Breach::new(guide::GUIDE, 1, reason)] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guide::{Row, render_truths};
    use crate::tree::Kind;
    use crate::tree::tests::tree;

    #[test]
    fn table_that_differs_from_the_tests_is_a_breach() {
        let truth = |test: &str| Truth::of(test, "misc/x").unwrap();
        let row =
            |test: &str| Row { truth: truth(test), result: "FAILED".into(), day: "never".into(), kernel: "-".into() };
        let table = render_truths(&[row("truth_a_one"), row("truth_b_two")]);
        let there = |tests: &[&str]| tests.iter().map(|test| truth(test)).collect();
        assert_eq!(compare(&there(&["truth_a_one", "truth_b_two"]), &table), []);
        let new = compare(&there(&["truth_a_one", "truth_b_two", "truth_c_three"]), &table);
        assert!(new.len() == 1 && new[0].reason.starts_with("1 tests are not in the table"), "{new:?}");
        let gone = compare(&there(&["truth_a_one"]), &table);
        assert!(gone.len() == 1 && gone[0].reason.contains("truth_b_two of misc/x"), "{gone:?}");
        assert_eq!(compare(&there(&["truth_a_one"]), "").len(), 1, "an empty table");
    }

    #[test]
    fn name_without_topic_or_statement_is_a_breach() {
        for bad in ["truth_c1_x", "truth_x", "truth_C_x"] {
            assert_eq!(misnamed("x", &format!("#[test] fn {bad}() {{}}")).len(), 1, "{bad}");
        }
        assert_eq!(misnamed("x", "#[test] fn truth_c_x() {} #[test] fn other() {}"), []);
    }

    #[test]
    fn truth_in_another_file_is_a_breach() {
        assert_eq!(elsewhere("x/tests/y.rs", "#[test] fn truth_a_one() {}").len(), 1);
        assert_eq!(elsewhere("x/tests/y.rs", "#[test] fn a_one() {}"), []);
    }

    #[test]
    fn old_list_of_crates_is_a_breach() {
        let lists = |text: &str| super::guide(&tree(Kind::Lesson, &[(guide::GUIDE, text)])).len();
        let current = guide::render_guide(&tree(Kind::Lesson, &[]));
        assert_eq!(lists(&format!("<!-- guide -->\n{current}<!-- /guide -->\n")), 0);
        assert_eq!(lists("<!-- guide -->\nold\n<!-- /guide -->\n"), 1);
    }
}

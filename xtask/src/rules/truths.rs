//! The tables of the field guide are those of the folders. Days and kernels may be older.

use std::collections::BTreeSet;

use crate::breach::Breach;
use crate::guide::{self, Truth};
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

/// It would be run, and stand in no table.
fn misnamed(path: &str, text: &str) -> Vec<Breach> {
    let names = guide::names_in(text);
    let bad = names.iter().filter(|name| Truth::of(name, path).is_none());
    bad.map(|name| Breach::new(path, 1, format!("{name}: a truth is named truth_TOPIC_WHAT_IT_SAYS"))).collect()
}

/// `cargo xtask truths` would not find it there.
fn elsewhere(path: &str, text: &str) -> Vec<Breach> {
    let stray = guide::truths_in(text, path);
    stray.iter().map(|truth| Breach::new(path, 1, format!("{} belongs in tests/truths.rs", truth.test()))).collect()
}

fn compare(there: &BTreeSet<Truth>, table: &str) -> Vec<Breach> {
    let listed: BTreeSet<Truth> = guide::rows(table).into_iter().map(|row| row.truth).collect();
    let breach = |truth: &Truth, what: &str| {
        let (test, folder) = (truth.test(), &truth.folder);
        Breach::new(guide::TRUTHS, 1, format!("{test} of {folder} {what}; run `cargo xtask truths --write`"))
    };
    let missing = there.difference(&listed).map(|truth| breach(truth, "is not in the table"));
    missing.chain(listed.difference(there).map(|truth| breach(truth, "is in the table and is gone"))).collect()
}

/// The list of crates in misc/README.md.
pub fn guide(tree: &Tree) -> Vec<Breach> {
    let readme = tree.text(guide::GUIDE).unwrap_or_default();
    match guide::current(readme) {
        Some(list) if list == guide::render_guide(tree) => Vec::new(),
        _ => {
            vec![Breach::new(guide::GUIDE, 1, "the list of crates is not the folders'; run `cargo xtask check --fix`")]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guide::{Row, render_truths};

    #[test]
    fn the_table_and_the_tests_are_the_same_truths() {
        let truth = |test: &str| Truth::of(test, "misc/x").unwrap();
        let row =
            |test: &str| Row { truth: truth(test), result: "FAILED".into(), day: "never".into(), kernel: "-".into() };
        let table = render_truths(&[row("truth_a_one"), row("truth_b_two")]);
        let there = |tests: &[&str]| tests.iter().map(|test| truth(test)).collect();
        assert_eq!(compare(&there(&["truth_a_one", "truth_b_two"]), &table), []);
        let new = compare(&there(&["truth_a_one", "truth_b_two", "truth_c_three"]), &table);
        assert!(new.len() == 1 && new[0].reason.contains("truth_c_three of misc/x is not in the table"), "{new:?}");
        let gone = compare(&there(&["truth_a_one"]), &table);
        assert!(
            gone.len() == 1 && gone[0].reason.contains("truth_b_two of misc/x is in the table and is gone"),
            "{gone:?}"
        );
        assert_eq!(compare(&there(&["truth_a_one"]), "").len(), 1, "nor is there a table at all");
    }

    #[test]
    fn a_truth_has_a_topic_and_says_something() {
        for bad in ["truth_c1_x", "truth_x", "truth_C_x"] {
            assert_eq!(misnamed("x", &format!("#[test] fn {bad}() {{}}")).len(), 1, "{bad}");
        }
        assert_eq!(misnamed("x", "#[test] fn truth_c_x() {} #[test] fn other() {}"), []);
    }

    #[test]
    fn a_truth_lives_in_tests_truths() {
        assert_eq!(elsewhere("x/tests/y.rs", "#[test] fn truth_a_one() {}").len(), 1);
        assert_eq!(elsewhere("x/tests/y.rs", "#[test] fn a_one() {}"), []);
    }
}

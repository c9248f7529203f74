//! `truths`: runs the tests of kernel behaviour, and writes their results to misc/TRUTHS.md.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};

use crate::guide::{self, Row, Truth};
use crate::markers;
use crate::print::say;
use crate::tools;
use crate::tree::{Package, Tree};

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Skipped,
    Failed,
}

impl Outcome {
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Passed => "passed",
            Outcome::Skipped => "skipped",
            Outcome::Failed => "FAILED",
        }
    }
}

/// Runs the tests of the packages `only`, or of all packages with a tests/truths.rs.
pub fn run(root: &Path, only: &[String], write: bool) -> Result<()> {
    let tree = Tree::read(root)?;
    let all: Vec<&Package> = tree.packages_that(|package| package.has_truths).collect();
    for name in only {
        ensure!(all.iter().any(|package| package.name == *name), "{name} has no tests/truths.rs");
    }
    let is_chosen = |package: &Package| only.is_empty() || only.contains(&package.name);
    let mut seen: Vec<(Truth, Outcome)> = Vec::new();
    for package in all.iter().filter(|package| is_chosen(package)) {
        seen.extend(run_tests(root, package)?);
    }
    report(&seen);
    if write {
        let path = root.join(guide::TRUTHS);
        let old = guide::rows(&fs::read_to_string(&path).unwrap_or_default());
        let is_kept = |folder: &str| all.iter().any(|package| package.folder == folder && !is_chosen(package));
        let mut rows = merge(&seen, &old, &today(), &kernel()?);
        rows.extend(old.iter().filter(|row| is_kept(&row.truth.folder)).cloned());
        fs::write(&path, guide::render_truths(&rows)).with_context(|| guide::TRUTHS.to_owned())?;
        markers::write(&root.join(guide::GUIDE), guide::NAME, &guide::render_guide(&tree))?;
        say(&format!("written: {}", guide::TRUTHS));
    }
    let failed = seen.iter().filter(|(_, outcome)| *outcome == Outcome::Failed).count();
    ensure!(failed == 0, "{failed} of {} tests failed on this machine", seen.len());
    Ok(())
}

/// Runs tests/truths.rs of one package.
fn run_tests(root: &Path, package: &Package) -> Result<Vec<(Truth, Outcome)>> {
    say(&format!("== {}", package.name));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["test", "-p", &package.name, "--test", "truths", "--", "truth_", "--show-output"]);
    command.current_dir(root).env("PATH", tools::path());
    let output = command.stdin(Stdio::null()).output().context("cargo test")?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let mut seen = Vec::new();
    for (name, outcome) in results(&text) {
        if let Some(truth) = Truth::of(&name, &package.folder) {
            say(&format!("{:3}  {:7}  {}", truth.topic, outcome.word(), truth.says));
            seen.push((truth, outcome));
        }
    }
    text.lines().filter(|line| line.starts_with("SKIPPED:")).for_each(say);
    let failed = seen.iter().any(|(_, outcome)| *outcome == Outcome::Failed);
    if failed || !output.status.success() {
        say(&text);
        // Tests that did not build, or a test program that was killed.
        ensure!(failed, "{}: {}", package.name, output.status);
    }
    Ok(seen)
}

/// The results that libtest prints: `test NAME ... ok`. A test that passed and printed SKIPPED was skipped.
fn results(text: &str) -> BTreeMap<String, Outcome> {
    let mut results = BTreeMap::new();
    let mut section = None;
    for line in text.lines() {
        if let Some((name, end)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
            let outcome = match end.trim() {
                "ok" => Outcome::Passed,
                end if end.starts_with("ignored") => Outcome::Skipped,
                _ => Outcome::Failed,
            };
            results.insert(name.to_owned(), outcome);
        } else if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            section = Some(name.to_owned());
        } else if line.starts_with("SKIPPED:")
            && let Some(outcome) = section.as_ref().and_then(|name| results.get_mut(name))
            && *outcome == Outcome::Passed
        {
            *outcome = Outcome::Skipped;
        }
    }
    results
}

/// The counts, and the names of the tests that did not pass.
fn report(seen: &[(Truth, Outcome)]) {
    let count = |what| seen.iter().filter(|(_, outcome)| *outcome == what).count();
    let (passed, skipped, failed) = (count(Outcome::Passed), count(Outcome::Skipped), count(Outcome::Failed));
    say(&format!("\n{} truths: {passed} passed, {skipped} skipped, {failed} failed", seen.len()));
    for (truth, outcome) in seen.iter().filter(|(_, outcome)| *outcome != Outcome::Passed) {
        say(&format!("{}: {} in {}", outcome.word(), truth.test(), truth.folder));
    }
}

/// The row of a test that did not pass keeps the day and the kernel of its last pass.
fn merge(seen: &[(Truth, Outcome)], old: &[Row], today: &str, kernel: &str) -> Vec<Row> {
    let row = |(truth, outcome): &(Truth, Outcome)| {
        let before = old.iter().find(|row| row.truth == *truth);
        let (day, kernel) = match (outcome, before) {
            (Outcome::Passed, _) => (today, kernel),
            (_, Some(row)) => (row.day.as_str(), row.kernel.as_str()),
            (_, None) => ("never", "-"),
        };
        Row { truth: truth.clone(), result: outcome.word().to_owned(), day: day.to_owned(), kernel: kernel.to_owned() }
    };
    seen.iter().map(row).collect()
}

fn today() -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    now.split('T').next().unwrap_or_default().to_owned()
}

/// The release without the suffix of the distribution.
fn kernel() -> Result<String> {
    const PATH: &str = "/proc/sys/kernel/osrelease";
    let release = fs::read_to_string(PATH).context(PATH)?;
    Ok(release.trim().split('-').next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIBTEST: &str = "\nrunning 4 tests\ntest truth_h_one ... ok\ntest truth_h_two ... FAILED\n\
        test truth_h_three ... ok\ntest truth_h_four ... ignored, why\n\nsuccesses:\n\n\
        ---- truth_h_one stdout ----\nsome words\n\n---- truth_h_three stdout ----\n\
        SKIPPED: truth_h_three: no network of its own\n\nfailures:\n    truth_h_two\n";

    #[test]
    fn results_of_libtest_are_read() {
        let results = results(LIBTEST);
        let of = |name: &str| results.get(name).copied();
        assert_eq!(of("truth_h_one"), Some(Outcome::Passed));
        assert_eq!(of("truth_h_two"), Some(Outcome::Failed));
        assert_eq!(of("truth_h_three"), Some(Outcome::Skipped));
        assert_eq!(of("truth_h_four"), Some(Outcome::Skipped));
        assert_eq!(results.len(), 4);
    }

    #[test]
    fn failed_test_keeps_its_last_pass() {
        let truth = |name: &str| Truth::of(name, "misc/x").unwrap();
        let old = [Row {
            truth: truth("truth_h_two"),
            result: "passed".into(),
            day: "2026-01-01".into(),
            kernel: "6.1.0".into(),
        }];
        let seen = [
            (truth("truth_h_one"), Outcome::Passed),
            (truth("truth_h_two"), Outcome::Failed),
            (truth("truth_h_three"), Outcome::Skipped),
        ];
        let rows = merge(&seen, &old, "2026-02-02", "6.18.1");
        let shown: Vec<_> =
            rows.iter().map(|row| (row.result.as_str(), row.day.as_str(), row.kernel.as_str())).collect();
        assert_eq!(
            shown,
            [("passed", "2026-02-02", "6.18.1"), ("FAILED", "2026-01-01", "6.1.0"), ("skipped", "never", "-")]
        );
    }

    #[test]
    fn today_and_kernel_have_their_forms() {
        assert_eq!(today().len(), "2026-01-01".len());
        assert!(kernel().unwrap().starts_with(|c: char| c.is_ascii_digit()));
    }
}

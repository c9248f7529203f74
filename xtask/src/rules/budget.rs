//! Sizes against their limits.

use crate::breach::Breach;
use crate::limits;
use crate::sizes::{self, CrateSize, FileSize, Lesson};
use crate::source::{self, Function, Source};
use crate::tree::{Package, Tree};

pub fn examples(tree: &Tree) -> Vec<Breach> {
    let examples = tree.packages_that(Package::is_example);
    examples.flat_map(|package| sizes::of_example(tree, package)).flat_map(|file| check_file(&file)).collect()
}

pub fn crates(tree: &Tree) -> Vec<Breach> {
    let crates = tree.packages_that(|package| !package.is_example() && limits::binds(&package.folder));
    crates.flat_map(|package| check_crate(&sizes::of_crate(tree, package))).collect()
}

/// Every line of an example's Rust files, tests included.
pub fn line_width(tree: &Tree) -> Vec<Breach> {
    let is_example = |path: &str| tree.package_of(path).is_some_and(Package::is_example);
    let sources = tree.sources.iter().filter(|source| is_example(&source.path));
    let too_wide =
        sources.flat_map(|source| source.wide_lines(limits::COLUMNS).into_iter().map(move |line| (source, line)));
    let breach = |(source, (line, columns)): (&Source, (usize, usize))| {
        Breach::new(&source.path, line, format!("{columns} columns, the limit is {}", limits::COLUMNS))
    };
    too_wide.map(breach).collect()
}

fn check_file(file: &FileSize) -> Vec<Breach> {
    let path = &file.source.path;
    let mut breaches = Vec::new();
    breaches.extend(over_row(path, file.code, file.limit, "code lines"));
    breaches.extend(file.functions.iter().flat_map(|function| check_function(path, function, true)));
    if let Some(lesson) = &file.lesson {
        breaches.extend(check_lesson(path, file.comments, lesson));
    }
    breaches
}

fn check_lesson(path: &str, comments: usize, lesson: &Lesson) -> Vec<Breach> {
    let mut breaches = Vec::new();
    match lesson.first_loop {
        None => breaches.push(Breach::new(path, 1, "no `while` and no `loop`: where is the accept or event loop?")),
        Some(line) if line > limits::FIRST_LOOP => {
            let reason = format!("the first loop begins on line {line}, the limit is line {}", limits::FIRST_LOOP);
            breaches.push(Breach::new(path, line, reason));
        }
        Some(_) => {}
    }
    if !limits::COMMENTS.contains(&comments) {
        let (least, most) = (limits::COMMENTS.start(), limits::COMMENTS.end());
        let reason = format!("{comments} comment lines per 100 code lines, the limits are {least} and {most}");
        breaches.push(Breach::new(path, 1, reason));
    }
    if let Some(diff) = &lesson.diff {
        let what = format!("lines changed since {}", diff.base);
        breaches.extend(over(path, 1, diff.changed(), diff.limit, &what));
    }
    breaches
}

fn check_crate(size: &CrateSize) -> Vec<Breach> {
    let mut breaches = Vec::new();
    let folder = &size.package.folder;
    breaches.extend(over_row(&format!("{folder}/Cargo.toml"), size.code, size.limit, "code lines in the crate"));
    for source in &size.files {
        breaches.extend(over(&source.path, 1, source.size().code, limits::FILE, "code lines"));
        breaches.extend(
            source::functions(source).iter().flat_map(|function| check_function(&source.path, function, false)),
        );
    }
    breaches
}

fn check_function(path: &str, function: &Function, is_example: bool) -> Vec<Breach> {
    let named = |what: &str| format!("{what} in fn {}", function.name);
    let long = over(path, function.line, function.lines, limits::FUNCTION, &named("code lines"));
    let deep = over(path, function.line, function.depth, limits::DEPTH, &named("levels of control flow"));
    long.into_iter().chain(deep.filter(|_| is_example)).collect()
}

/// As [`over`]; a missing limit is a breach too.
fn over_row(path: &str, value: usize, limit: Option<usize>, what: &str) -> Option<Breach> {
    match limit {
        Some(limit) => over(path, 1, value, limit, what),
        None => Some(Breach::new(path, 1, "xtask/tables/limits.txt has no row for it")),
    }
}

fn over(path: &str, line: usize, value: usize, limit: usize, what: &str) -> Option<Breach> {
    (value > limit).then(|| Breach::new(path, line, format!("{value} {what}, the limit is {limit}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sizes::Diff;
    use crate::tree::Kind;
    use crate::tree::tests::tree;

    fn of_functions(text: &str) -> usize {
        let source = Source::parse("x.rs", text).unwrap();
        source::functions(&source).iter().flat_map(|function| check_function("x.rs", function, true)).count()
    }

    #[test]
    fn long_function_is_a_breach() {
        assert_eq!(of_functions(&format!("fn f() {{\n{}}}\n", "    a();\n".repeat(44))), 1);
        assert_eq!(of_functions(&format!("fn f() {{\n{}}}\n", "    a();\n    // why\n".repeat(43))), 0);
    }

    #[test]
    fn deep_function_is_a_breach() {
        assert_eq!(of_functions("fn f() { loop { loop { loop { loop { loop { } } } } } }"), 1);
        assert_eq!(of_functions("fn f() { loop { loop { loop { loop { } } } } }"), 0);
    }

    #[test]
    fn file_over_its_limit_is_a_breach() {
        let source = Source::parse("x.rs", "fn f() {}\nfn g() {}\n").unwrap();
        let file = |limit| FileSize {
            name: "x".into(),
            source: &source,
            functions: Vec::new(),
            code: source.size().code,
            limit,
            comments: 0,
            lesson: None,
        };
        assert_eq!([Some(2), Some(1), None].map(|limit| check_file(&file(limit)).len()), [0, 1, 1]);
    }

    #[test]
    fn late_loop_few_comments_and_large_step_are_breaches() {
        let lesson = |first_loop, added| {
            let diff = Some(Diff { base: "y".into(), removed: 60, added, limit: 60 });
            Lesson { first_loop, diff }
        };
        assert_eq!(check_lesson("x", 25, &lesson(Some(60), 60)), []);
        assert_eq!(check_lesson("x", 25, &lesson(Some(61), 60)).len(), 1);
        assert_eq!(check_lesson("x", 25, &lesson(None, 60)).len(), 1);
        assert_eq!(check_lesson("x", 24, &lesson(Some(60), 60)).len(), 1);
        assert_eq!(check_lesson("x", 61, &lesson(Some(60), 60)).len(), 1);
        assert_eq!(check_lesson("x", 25, &lesson(Some(60), 61)).len(), 1);
    }

    #[test]
    fn crate_over_its_limit_and_long_file_are_breaches() {
        let text = "fn f() {}\n".repeat(301);
        let source = Source::parse("x/src/lib.rs", &text).unwrap();
        let package = Package { name: "x".into(), folder: "x".into(), ..Package::default() };
        let size = |limit| CrateSize { package: &package, files: vec![&source], code: 301, limit };
        assert_eq!(check_crate(&size(Some(301))).len(), 1, "the file");
        assert_eq!(check_crate(&size(Some(300))).len(), 2, "the file and the crate");
        assert_eq!(check_crate(&size(None)).len(), 2, "the file and the missing limit");
    }

    #[test]
    fn line_over_100_columns_is_a_breach_in_an_example_and_its_tests() {
        let wide = format!("// {}\n", "a".repeat(98));
        let files = [("x/src/main.rs", "// a\n"), ("x/tests/y.rs", wide.as_str())];
        assert_eq!(line_width(&tree(Kind::Lesson, &files)).len(), 1);
        assert_eq!(line_width(&tree(Kind::Crate, &files)), []);
        assert_eq!(line_width(&tree(Kind::Server, &[("x/src/main.rs", &wide.replacen("a", "", 1))])), []);
    }
}

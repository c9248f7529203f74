//! The limits of sizes. There is no list of exceptions: a file that does not fit does more than one thing.

use crate::tree::{Kind, Package, Program};

/// The limits of code lines: a name and a number in each line.
const TABLE: &str = include_str!("../tables/limits.txt");
/// The limits of these crates bind with the issues about them. Until then `check` only prints them.
const LATER: &[&str] = &["bench", "client", "loadgen", "testkit"];

/// Code lines of any file of a library or tool.
pub const FILE: usize = 300;
/// Code lines of any function.
pub const FUNCTION: usize = 45;
/// Levels of control flow in a function of an example.
pub const DEPTH: usize = 4;
/// The last line on which the accept or event loop of a server or chat may begin.
pub const FIRST_LOOP: usize = 60;
/// Comment lines per 100 code lines in the first file of a server or chat.
pub const COMMENTS: std::ops::RangeInclusive<usize> = 25..=60;
/// Columns of a line of an example.
pub const COLUMNS: usize = 100;
/// Words of an example's README.
pub const WORDS: usize = 900;
const DIFF_VARIANT: usize = 60;
const DIFF_MODEL: usize = 130;

pub fn binds(folder: &str) -> bool {
    !LATER.contains(&folder)
}

fn named(name: &str) -> Option<usize> {
    let rows = TABLE.lines().filter_map(|line| line.split_once(' '));
    rows.filter(|(known, _)| *known == name).find_map(|(_, limit)| limit.parse().ok())
}

/// Code lines of a program's first file, if the table has a row for it.
pub fn program(package: &Package, program: &Program) -> Option<usize> {
    match package.kind {
        _ if program.is_naive() => named("naive"),
        Kind::Lesson => named("lesson"),
        _ => named(&program.name).or_else(|| named(number(&program.name))),
    }
}

/// Code lines of another file of an example.
pub fn second_file(package: &Package, path: &str) -> Option<usize> {
    named(path).or_else(|| match package.kind {
        Kind::Server => named("second-of-server"),
        Kind::Chat => named("second-of-chat"),
        Kind::Lesson | Kind::Crate => named("second-of-lesson"),
    })
}

/// Code lines of a whole library or tool, without tests.
pub fn whole_crate(package: &Package) -> Option<usize> {
    named(&package.name)
}

/// Changed lines since the diff base. A letter after the number means: a variant of that model.
pub fn diff(program: &str) -> usize {
    match number(program).chars().last() {
        Some(letter) if letter.is_ascii_lowercase() => DIFF_VARIANT,
        _ => DIFF_MODEL,
    }
}

/// `server02b` of `server02b-epoll`.
fn number(program: &str) -> &str {
    program.split('-').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit_of(kind: Kind, name: &str) -> Option<usize> {
        let package = Package { name: name.into(), folder: name.into(), kind, ..Package::default() };
        program(&package, &Program { name: name.into(), path: String::new() })
    }

    #[test]
    fn limit_follows_the_name_of_the_program() {
        assert_eq!(limit_of(Kind::Server, "server02-select"), Some(95));
        assert_eq!(limit_of(Kind::Server, "server02b-epoll"), Some(105));
        assert_eq!(limit_of(Kind::Server, "server02b-edge"), Some(100));
        assert_eq!(limit_of(Kind::Chat, "naive-await"), Some(80));
        assert_eq!(limit_of(Kind::Lesson, "backlog"), Some(120));
        assert_eq!(limit_of(Kind::Server, "server99-new"), None);
    }

    #[test]
    fn variant_has_a_smaller_diff_limit_than_a_model() {
        assert_eq!((diff("server02a-poll"), diff("server02-select"), diff("v3-broadcast")), (60, 130, 130));
    }

    #[test]
    fn limits_of_later_crates_do_not_bind() {
        assert!(!binds("client") && binds("chat") && binds("server01-fork"));
    }
}

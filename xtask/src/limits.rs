//! The limits of sizes. There is no list of exceptions: a file that does not fit does more than one thing.

use crate::tree::{Kind, Package, Program};

/// Code lines of the first file of a server or chat, by its name or by its number.
const PROGRAMS: &[(&str, usize)] = &[
    ("server00", 45),
    ("server01", 60),
    ("server02", 95),
    ("server02a", 90),
    ("server02b-edge", 100),
    ("server02b", 105),
    ("server02c", 105),
    ("server03", 60),
    ("server03a", 170),
    ("server03b", 100),
    ("server04", 110),
    ("server05", 50),
    ("server06", 50),
    ("server06a", 90),
    ("server07", 150),
    ("server08", 95),
    ("v0", 150),
    ("v1", 125),
    ("v2", 125),
    ("v3", 135),
    ("v4", 140),
    ("v5", 150),
    ("v6", 150),
];
const NAIVE: usize = 80;
/// The first file of a program under misc or ipc.
const LESSON: usize = 120;

const SECOND_FILES: &[(&str, usize)] = &[
    ("server03a-distribution/src/tally.rs", 125),
    ("server03b-reuseport/src/board.rs", 50),
    ("server03b-reuseport/src/event_loop.rs", 110),
    ("server04-fdpass/src/fd_channel.rs", 60),
    ("server07-io-uring/src/ring.rs", 115),
    ("v0-processes/src/bus.rs", 70),
    ("v0-processes/src/hub.rs", 155),
    ("v4-async/src/rt.rs", 230),
];
const SECOND_OF_SERVER: usize = 60;
const SECOND_OF_CHAT: usize = 80;
const SECOND_OF_LESSON: usize = 200;

/// Code lines of a whole library or tool, without tests.
const CRATES: &[(&str, usize)] = &[
    ("bench", 700),
    ("chat", 1300),
    ("client", 150),
    ("common", 700),
    ("lifecycle", 600),
    ("loadgen", 6500),
    ("testkit", 4000),
    ("xtask", 2200),
];
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

/// Code lines of a program's first file. Zero, which no program can meet, if the table has no row for it.
pub fn program(package: &Package, program: &Program) -> usize {
    if program.is_naive() {
        return NAIVE;
    }
    if package.kind == Kind::Lesson {
        return LESSON;
    }
    let named = |name: &str| PROGRAMS.iter().find(|(known, _)| *known == name).map(|(_, limit)| *limit);
    named(&program.name).or_else(|| named(number(&program.name))).unwrap_or(0)
}

/// Code lines of another file of an example.
pub fn second_file(package: &Package, path: &str) -> usize {
    let named = SECOND_FILES.iter().find(|(known, _)| *known == path).map(|(_, limit)| *limit);
    named.unwrap_or(match package.kind {
        Kind::Server => SECOND_OF_SERVER,
        Kind::Chat => SECOND_OF_CHAT,
        Kind::Lesson | Kind::Crate => SECOND_OF_LESSON,
    })
}

/// Code lines of a whole library or tool, if it has a limit.
pub fn whole_crate(package: &Package) -> Option<usize> {
    CRATES.iter().find(|(name, _)| *name == package.name).map(|(_, limit)| *limit)
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

    fn limit_of(kind: Kind, name: &str) -> usize {
        let package = Package { name: name.into(), folder: name.into(), kind, programs: Vec::new(), roots: Vec::new() };
        program(&package, &Program { name: name.into(), path: String::new() })
    }

    #[test]
    fn limit_follows_the_name_of_the_program() {
        assert_eq!(limit_of(Kind::Server, "server02-select"), 95);
        assert_eq!(limit_of(Kind::Server, "server02b-epoll"), 105);
        assert_eq!(limit_of(Kind::Server, "server02b-edge"), 100);
        assert_eq!(limit_of(Kind::Chat, "naive-await"), NAIVE);
        assert_eq!(limit_of(Kind::Lesson, "backlog"), LESSON);
        assert_eq!(limit_of(Kind::Server, "server99-new"), 0);
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

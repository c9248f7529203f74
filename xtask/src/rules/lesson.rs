//! A lesson makes its calls itself: a call that "Syscalls in this lesson" or `syscalls` in Cargo.toml names is made in
//! the example's own `src`.

use crate::breach::Breach;
use crate::tree::{Package, Tree};

const SECTION: &str = "## Syscalls in this lesson";

/// System calls, and the names by which Rust code makes them.
const TABLE: &str = include_str!("../../tables/calls.txt");

pub fn calls(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for package in tree.packages_that(Package::is_example) {
        let made: Vec<String> =
            tree.sources_of(package).flat_map(|source| source.calls()).map(|(name, _)| name).collect();
        let path = format!("{}/README.md", package.folder);
        let named = named_in(tree.text(&path).unwrap_or_default());
        breaches.extend(missing(&named, &made).map(|(line, call)| Breach::new(&path, line, reason(call))));
        let example = tree.examples.iter().find(|example| example.name == package.name);
        let listed: Vec<(usize, String)> =
            example.into_iter().flat_map(|example| &example.syscalls).map(|call| (1, call.clone())).collect();
        let path = format!("{}/Cargo.toml", package.folder);
        breaches.extend(missing(&listed, &made).map(|(line, call)| Breach::new(&path, line, reason(call))));
    }
    breaches
}

fn reason(call: &str) -> String {
    format!("{call} is a call of this lesson, and nothing in src makes it")
}

/// The calls in the first column of the section's table, with their lines.
fn named_in(readme: &str) -> Vec<(usize, String)> {
    let lines = (1..).zip(readme.lines()).skip_while(|(_, line)| *line != SECTION).skip(1);
    let rows = lines.take_while(|(_, line)| !line.starts_with("## ")).filter(|(_, line)| line.starts_with('|'));
    let mut named = Vec::new();
    for (number, row) in rows {
        let cell = row.split('|').nth(1).unwrap_or_default();
        let calls = cell.split('`').skip(1).step_by(2).filter_map(|code| code.split_once('('));
        named.extend(calls.map(|(call, _)| (number, call.to_owned())));
    }
    named
}

fn missing<'a>(named: &'a [(usize, String)], made: &'a [String]) -> impl Iterator<Item = (usize, &'a str)> {
    let is_made = |call: &str| made.iter().any(|name| makes(name, call));
    named.iter().filter(move |(_, call)| !is_made(call)).map(|(line, call)| (*line, call.as_str()))
}

fn makes(name: &str, call: &str) -> bool {
    let last = name.rsplit("::").next().unwrap_or_default();
    let is_row = |(calls, _): &(&str, &str)| calls.split(' ').any(|known| known == call);
    let row = TABLE.lines().filter_map(|line| line.split_once(':')).find(is_row);
    let mut names = row.into_iter().flat_map(|(calls, names)| calls.split(' ').chain(names.split_whitespace()));
    last == call || names.any(|known| known == last || known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const README: &str = "## Idea\n| `fork(2)` | x |\n## Syscalls in this lesson\n\n| call | here |\n|---|---|\n\
        | `epoll_wait(2)`, `read(2)` | like `poll(2)` |\n## Next\n";

    #[test]
    fn calls_are_read_from_the_first_column() {
        assert_eq!(named_in(README), [(7, "epoll_wait".to_owned()), (7, "read".to_owned())]);
    }

    #[test]
    fn named_call_that_nothing_makes_is_a_breach() {
        let made = |names: &[&str]| {
            let made: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            missing(&named_in(README), &made).map(|(_, call)| call.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(made(&["wait", "read"]), Vec::<String>::new());
        assert_eq!(made(&["io::read", "Epoll::new"]), ["epoll_wait"]);
        assert_eq!(made(&[]).len(), 2);
    }

    #[test]
    fn other_names_of_a_call_count() {
        assert!(makes("Socket::new", "socket") && makes("unistd::fork", "fork") && makes("spawn", "clone"));
        assert!(!makes("Epoll::new", "socket") && !makes("new", "socket"));
    }
}

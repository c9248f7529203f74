//! Words that must not be on main.

use crate::breach::Breach;
use crate::tree::Tree;

/// Split, so that this file does not name them itself.
const BANNED: &[(&str, &str)] = &[
    ("TO", "DO"),
    ("FIX", "ME"),
    ("XX", "X"),
    ("HA", "CK"),
    ("unimpl", "emented!"),
    ("to", "do!"),
    ("this is ", "cheating"),
];

/// In sources: who wrote it and under which licence stands once, in the root.
const BLOCKS: &[(&str, &str)] = &[
    ("copy", "right"),
    ("spdx-", "license"),
    ("licensed ", "under"),
    ("permission is ", "hereby granted"),
    ("@auth", "or"),
    ("author", ": "),
    ("written ", "by "),
];

/// Folders of one machine; the last one only where a source opens it, since a fixed name there is another's to take.
const FOLDERS: &[(&str, &str)] = &[("/ho", "me/"), ("/ro", "ot/"), ("\"/t", "mp/")];

pub fn banned(tree: &Tree) -> Vec<Breach> {
    tree.texts.iter().flat_map(|(path, text)| banned_in(path, text)).collect()
}

fn banned_in(path: &str, text: &str) -> Vec<Breach> {
    let mut breaches = Vec::new();
    let is_source = path.ends_with(".rs");
    for (number, line) in text.lines().enumerate() {
        let mut add = |what: &str, why: &str| breaches.push(Breach::new(path, number + 1, format!("`{what}` {why}")));
        let comment = line.split_once("//").map(|(_, comment)| comment.to_lowercase()).unwrap_or_default();
        for word in BANNED.iter().map(joined).filter(|word| is_there(line, word)) {
            add(&word, "has no place on main");
        }
        for word in BLOCKS.iter().map(joined).filter(|word| is_source && comment.contains(word.as_str())) {
            add(&word, "is said once, in the root of the workspace");
        }
        for folder in FOLDERS.iter().map(joined).filter(|folder| begins(line, folder)) {
            if is_source || !folder.starts_with('"') {
                add(&folder, "is a folder of one machine");
            }
        }
    }
    breaches
}

fn joined((start, end): &(&str, &str)) -> String {
    [*start, *end].concat()
}

/// Where a path begins, so not in `https://example.org/home/`.
fn begins(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        !before.is_some_and(|c| c.is_alphanumeric() || "_-./}".contains(c))
    })
}

/// As a word of its own where it begins or ends with a letter.
fn is_there(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        let after = line.get(at + word.len()..).and_then(|text| text.chars().next());
        let joined = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let letters = word.chars().all(|c| c.is_ascii_alphabetic());
        !letters || !(joined(before) || joined(after))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banned_words_are_found_as_words() {
        for word in BANNED.iter().map(joined) {
            for path in ["x.rs", "x.md", "x.toml"] {
                assert_eq!(banned_in(path, &format!("// {word} later")).len(), 1, "{word}");
            }
        }
        assert!(banned_in("x.rs", "mktemp -d XXXXXX; a hackathon; MASTODON").is_empty());
    }

    #[test]
    fn sources_carry_no_blocks() {
        for word in BLOCKS.iter().map(joined) {
            assert_eq!(banned_in("x.rs", &format!("//! {} A. Name", word.to_uppercase())).len(), 1, "{word}");
            assert!(banned_in("x.md", &format!("{word} A. Name")).is_empty(), "{word}");
        }
        assert!(banned_in("x.rs", "let author = copies; // the right copy").is_empty());
    }

    #[test]
    fn no_folder_of_one_machine() {
        let [home, root, tmp] = [0, 1, 2].map(|at| joined(&FOLDERS[at]));
        for bad in [format!("`{home}x`"), format!("cd {root}x"), format!("open({tmp}x\")")] {
            assert_eq!(banned_in("x.rs", &bad).len(), 1, "{bad}");
        }
        assert!(banned_in("x.md", &format!("echo > {tmp}x\"")).is_empty());
        assert!(banned_in("x.md", &format!("https://example.org{home}x and target{root}x")).is_empty());
    }
}

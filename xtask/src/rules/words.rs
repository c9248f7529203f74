//! Words that must not be on main.

use crate::check::Tree;
use crate::rules::Breach;

/// Split, so that this file does not name them itself.
const BANNED: &[(&str, &str)] = &[
    ("TO", "DO"),
    ("FIX", "ME"),
    ("XX", "X"),
    ("HA", "CK"),
    ("unimpl", "emented!"),
    ("to", "do!("),
    ("this is ", "cheating"),
    ("SPDX-", "License"),
    ("@auth", "or"),
    ("/ho", "me/"),
    ("/ro", "ot/"),
];

pub fn banned(tree: &Tree) -> Vec<Breach> {
    tree.texts
        .iter()
        .filter(|(path, _)| !path.starts_with("LICENSE"))
        .flat_map(|(path, text)| banned_in(path, text))
        .collect()
}

fn banned_in(path: &str, text: &str) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (start, end) in BANNED {
            let word = [*start, *end].concat();
            if is_there(line, &word) {
                breaches.push(Breach::new(path, number + 1, format!("`{word}` has no place on main")));
            }
        }
    }
    breaches
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
        for (start, end) in BANNED {
            assert_eq!(banned_in("x", &format!("// {start}{end} later")).len(), 1, "{start}{end}");
        }
        assert!(banned_in("x", "mktemp -d XXXXXX; a hackathon; MASTODON").is_empty());
    }
}

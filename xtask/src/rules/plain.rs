//! Words that must not be used: plain English has a standard term for each.

use crate::breach::Breach;
use crate::limits;
use crate::tree::Tree;

/// Not a Rust file: it has the words that no Rust file may have.
const LIST: &str = include_str!("../../tables/words.txt");
/// The one standard term that contains a word of the list.
const STANDARD: &str = "thundering herd";

pub fn words(tree: &Tree) -> Vec<Breach> {
    let binds = |path: &str| limits::binds(path.split('/').next().unwrap_or_default());
    let texts = tree.texts.iter().filter(|(path, _)| (path.ends_with(".rs") || path.ends_with(".md")) && binds(path));
    texts.flat_map(|(path, text)| words_in(path, text)).collect()
}

fn words_in(path: &str, text: &str) -> Vec<Breach> {
    let mut breaches = Vec::new();
    let mut before = String::new();
    for (number, line) in (1..).zip(text.lines()) {
        let words = split(line);
        // A line may begin with the second half of the standard term.
        let line = format!("{before}{words}").replace(STANDARD, "");
        let last = words.split_whitespace().next_back().filter(|word| STANDARD.starts_with(word));
        before = last.map(|word| format!(" {word}")).unwrap_or_default();
        for (word, better) in list().filter(|(word, _)| line.contains(&format!(" {word} "))) {
            breaches.push(Breach::new(path, number, format!("`{word}`: write {better}")));
        }
    }
    breaches
}

fn list() -> impl Iterator<Item = (&'static str, &'static str)> {
    LIST.lines().filter_map(|line| line.split_once(" = "))
}

/// Words in lower case between single spaces; `full_house` and `FullHouse` are two words each.
fn split(line: &str) -> String {
    let mut words = String::from(" ");
    let mut before = ' ';
    for c in line.chars() {
        let begins = c.is_uppercase() && before.is_lowercase();
        if (begins || !c.is_alphanumeric()) && !words.ends_with(' ') {
            words.push(' ');
        }
        if c.is_alphanumeric() {
            words.extend(c.to_lowercase());
        }
        before = c;
    }
    words + " "
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_the_list_is_found() {
        assert!(list().count() > 20);
        for (word, _) in list() {
            let snake = word.replace(' ', "_");
            for text in
                [format!("// A {word}."), format!("fn {snake}() {{"), format!("const {}: u8", snake.to_uppercase())]
            {
                assert!(!words_in("x.rs", &text).is_empty(), "{text}");
            }
        }
    }

    #[test]
    fn words_in_camel_case_are_found() {
        let (word, _) = list().find(|(word, _)| word.split(' ').count() == 2).unwrap();
        let name: String = word.split(' ').map(|part| part[..1].to_uppercase() + &part[1..]).collect();
        assert_eq!(words_in("x.rs", &format!("struct {name};")).len(), 1, "{name}");
    }

    #[test]
    fn standard_term_and_parts_of_words_are_no_breach() {
        assert_eq!(words_in("x.md", "/// the thundering\n/// herd"), []);
        assert_eq!(words_in("x.md", "the Thundering herd; a secure, obscured seating plan; judgement"), []);
    }
}

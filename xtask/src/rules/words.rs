//! Words and paths that must not be used.

use crate::breach::Breach;
use crate::limits;
use crate::tree::Tree;

/// The words are not in a Rust file, which may not have them.
const LIST: &str = include_str!("../../tables/words.txt");
/// The one standard term that contains a word of the list.
const STANDARD: &str = "thundering herd";
/// Folders of one machine, in two parts, because this file may not have them. The last one counts only in Rust files:
/// another process may already have a file of a fixed name there.
const FOLDERS: [(&str, &str); 3] = [("/ho", "me/"), ("/ro", "ot/"), ("\"/t", "mp/")];

pub fn refused(tree: &Tree) -> Vec<Breach> {
    let words = tree.texts.iter().flat_map(|(path, text)| words_in(path, text));
    words.chain(tree.texts.iter().flat_map(|(path, text)| folders_in(path, text))).collect()
}

fn words_in(path: &str, text: &str) -> Vec<Breach> {
    let is_plain = limits::binds(path.split('/').next().unwrap_or_default()) && !path.ends_with(".toml");
    let mut breaches = Vec::new();
    let mut before = String::new();
    for (number, line) in (1..).zip(text.lines()) {
        let exact = split(line);
        let lower = exact.to_lowercase();
        let comment = line.split_once("//").filter(|_| path.ends_with(".rs")).map(|(_, comment)| split(comment));
        let comment = comment.unwrap_or_default().to_lowercase();
        // A line may begin with the second half of the standard term.
        let plain = format!("{before}{}", lower.trim_start_matches(" .")).replace(STANDARD, "");
        let half = lower.split_whitespace().next_back().filter(|word| STANDARD.starts_with(word));
        before = half.map(|word| format!(" {word}")).unwrap_or_default();
        let plain = if is_plain { plain } else { String::new() };
        for (section, words) in [("everywhere", exact), ("comments", comment), ("plain English", plain)] {
            let found = list(section).filter(|(word, _)| words.contains(&format!(" {word} ")));
            breaches.extend(found.map(|(word, better)| Breach::new(path, number, format!("`{word}`: write {better}"))));
        }
    }
    breaches
}

/// The entries of a section.
fn list(section: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let title = format!("[{section}]");
    let lines = LIST.lines().skip_while(move |line| *line != title).skip(1).take_while(|line| !line.starts_with('['));
    lines.filter_map(|line| line.split_once(" = "))
}

/// Words between single spaces: `max_conns` and `MaxConns` are two words each. Other punctuation becomes a dot, so
/// an entry of several words does not match across it.
fn split(line: &str) -> String {
    let mut words = String::from(" ");
    let mut before = ' ';
    for c in line.chars() {
        let begins = c.is_uppercase() && before.is_lowercase();
        if (begins || !c.is_alphanumeric()) && !words.ends_with(' ') {
            words.push(' ');
        }
        match c {
            ' ' | '_' | '-' => {}
            c if c.is_alphanumeric() => words.push(c),
            _ => words.push_str(". "),
        }
        before = c;
    }
    words + " "
}

fn folders_in(path: &str, text: &str) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let folders = FOLDERS.map(|(start, end)| format!("{start}{end}"));
        let counts = |folder: &&String| path.ends_with(".rs") || !folder.starts_with('"');
        for folder in folders.iter().filter(counts).filter(|folder| begins(line, folder)) {
            breaches.push(Breach::new(path, number, format!("`{folder}` is a folder of one machine")));
        }
    }
    breaches
}

/// True if a path begins there, which is not so in `https://example.org/home/`.
fn begins(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        !before.is_some_and(|c| c.is_alphanumeric() || "_-./}".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_the_list_is_found() {
        for (section, least) in [("everywhere", 5), ("comments", 5), ("plain English", 20)] {
            assert!(list(section).count() >= least, "{section}");
            for (word, _) in list(section) {
                let snake = word.replace(' ', "_");
                for text in [format!("// A {word}."), format!("//! [{snake}]: why")] {
                    assert!(!words_in("x.rs", &text).is_empty(), "{text}");
                }
            }
        }
    }

    #[test]
    fn words_count_in_identifiers_and_in_camel_case() {
        let (word, _) = list("plain English").find(|(word, _)| word.split(' ').count() == 2).unwrap();
        let camel: String = word.split(' ').map(|part| part[..1].to_uppercase() + &part[1..]).collect();
        let apart = word.replace(' ', " = ");
        for text in [format!("struct {camel};"), format!("fn {}() {{}}", word.replace(' ', "_"))] {
            assert_eq!(words_in("x.rs", &text).len(), 1, "{text}");
        }
        assert_eq!(words_in("x.rs", &apart), []);
    }

    #[test]
    fn plain_words_bind_where_limits_bind() {
        let (word, _) = list("plain English").next().unwrap();
        assert_eq!(words_in("server01-fork/README.md", word).len(), 1);
        assert_eq!(words_in("client/README.md", word), []);
        assert_eq!(words_in("server01-fork/Cargo.toml", word), []);
    }

    #[test]
    fn standard_term_and_parts_of_words_are_no_breach() {
        assert_eq!(words_in("x.md", &format!("/// the {}", STANDARD.replace(' ', "\n/// "))), []);
        assert_eq!(words_in("x.md", "the Thundering herd; a secure, obscured seating plan; judgement"), []);
        assert_eq!(
            words_in(
                "x.rs",
                "mktemp -d XXXXXX; let todo = hack; a hackathon; MASTODON; let author = copies; // the right copy"
            ),
            []
        );
    }

    #[test]
    fn folder_of_one_machine_is_a_breach() {
        let [home, root, tmp] = FOLDERS.map(|(start, end)| format!("{start}{end}"));
        for bad in [format!("`{home}x`"), format!("cd {root}x"), format!("open({tmp}x\")")] {
            assert_eq!(folders_in("x.rs", &bad).len(), 1, "{bad}");
        }
        assert!(folders_in("x.md", &format!("echo > {tmp}x\"")).is_empty());
        assert!(folders_in("x.md", &format!("https://example.org{home}x and target{root}x")).is_empty());
    }
}

//! The commands in READMEs and headers.

use crate::breach::Breach;
use crate::tree::Tree;

/// The names that exist.
struct Known<'a> {
    packages: Vec<&'a str>,
    examples: Vec<&'a str>,
    subcommands: Vec<String>,
}

/// `cargo run -p NAME`, `cargo demo NAME` and `cargo xtask NAME` have a name that exists.
pub fn names(tree: &Tree) -> Vec<Breach> {
    let known = Known {
        packages: tree.packages.iter().map(|package| package.name.as_str()).collect(),
        examples: tree.examples.iter().map(|example| example.name.as_str()).collect(),
        subcommands: crate::cli::subcommands(),
    };
    let mut breaches = Vec::new();
    for (path, text) in tree.texts.iter().filter(|(path, _)| path.ends_with(".md")) {
        breaches.extend(check(path, &code_of(text), &known));
    }
    for (_, program) in tree.lessons() {
        if let Some(source) = tree.source(&program.path) {
            breaches.extend(check(&source.path, &header_of(&source.text), &known));
        }
    }
    breaches
}

/// The code of a Markdown text, in fences or between backticks, with its lines.
fn code_of(text: &str) -> Vec<(usize, String)> {
    let mut code: Vec<(usize, String)> = Vec::new();
    let (mut fenced, mut inside) = (false, false);
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            inside = false;
        } else if fenced {
            code.push((number, line.to_owned()));
        } else if line.trim().is_empty() {
            // A backtick without a partner ends with its paragraph.
            inside = false;
        } else {
            for (index, part) in line.split('`').enumerate() {
                let begins = index > 0;
                inside ^= begins;
                match code.last_mut() {
                    // Code between backticks may continue on the next line.
                    Some((_, text)) if inside && !begins => *text = format!("{text} {part}"),
                    _ if inside => code.push((number, part.to_owned())),
                    _ => {}
                }
            }
        }
    }
    code
}

fn header_of(text: &str) -> Vec<(usize, String)> {
    let lines = (1..).zip(text.lines().take_while(|line| line.starts_with("//!")));
    lines.filter(|(_, line)| line.contains("cargo ")).map(|(number, line)| (number, line.to_owned())).collect()
}

fn check(path: &str, code: &[(usize, String)], known: &Known) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for (line, text) in code {
        for command in commands(text) {
            if let Some(what) = unknown(&command, known) {
                breaches.push(Breach::new(path, *line, format!("`cargo {}`: {what}", command.join(" "))));
            }
        }
    }
    breaches
}

/// The arguments of each cargo command in a piece of code, without those that cargo passes to the program.
fn commands(text: &str) -> Vec<Vec<&str>> {
    let mut commands: Vec<Vec<&str>> = Vec::new();
    let mut open = false;
    for word in text.split_whitespace() {
        match word {
            "cargo" => {
                commands.push(Vec::new());
                open = true;
            }
            "--" | "|" | "||" | "&&" | "&" | ";" | "\\" | "#" | ">" => open = false,
            word if open => commands.last_mut().into_iter().for_each(|command| command.push(word)),
            _ => {}
        }
    }
    commands
}

/// A reason if a name in the arguments does not exist.
fn unknown(arguments: &[&str], known: &Known) -> Option<String> {
    for pair in arguments.windows(2) {
        if let ["-p" | "--package", name] = pair
            && !is_placeholder(name)
            && !known.packages.contains(name)
        {
            return Some(format!("there is no package {name}"));
        }
    }
    let mut words = arguments.iter().filter(|word| !word.starts_with('-'));
    let (command, argument) = (words.next()?, words.next().filter(|word| !is_placeholder(word)));
    match (*command, argument) {
        ("demo", Some(name)) if !known.examples.contains(name) => Some(format!("there is no example {name}")),
        ("xtask", Some(name)) if !known.subcommands.iter().any(|known| known == name) => {
            Some(format!("there is no subcommand {name}"))
        }
        _ => None,
    }
}

/// `NAME`, `<name>` and `...` stand for names.
fn is_placeholder(word: &str) -> bool {
    !word.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaches(text: &str) -> Vec<Breach> {
        let subcommands = ["check", "demo", "help"].map(str::to_owned).to_vec();
        let known = Known { packages: vec!["client", "server01-fork"], examples: vec!["server01-fork"], subcommands };
        check("x.md", &code_of(text), &known)
    }

    #[test]
    fn command_with_an_unknown_name_is_a_breach() {
        for good in [
            "```console\n$ cargo run -p server01-fork -- -p 0\n$ cargo run --release -p client | head\n```",
            "`cargo xtask check --fix`, `cargo demo server01-fork` and `cargo demo NAME`; `cargo demo --list`",
            "```console\n$ cargo demo            # one server, a load\n```",
            "the cargo demo shows it, and cargo xtask too",
        ] {
            assert_eq!(breaches(good), [], "{good}");
        }
        for bad in [
            "`cargo run -p server99-no`",
            "a\n\n```console\n$ cargo test --release --package nobody\n```",
            "`cargo xtask fly`",
            "`cargo demo nosuch`",
            "`cargo build && cargo demo nosuch`",
            "`cargo\ndemo nosuch`",
        ] {
            assert_eq!(breaches(bad).len(), 1, "{bad}");
        }
        assert_eq!(breaches("a\n\n`cargo demo nosuch`")[0].line, 3);
    }

    #[test]
    fn commands_of_headers_are_checked() {
        let text = "//! Title.\n//! Run: cargo run -p nobody\n\n// cargo run -p nobody-else\n";
        assert_eq!(header_of(text).len(), 1);
    }
}

//! A function is in one example only: code that two examples have in common belongs in a library.
//!
//! The event loops of the servers repeat [`COPIES`], which consist of the calls that the lesson is about. The rule compares
//! them byte for byte, comments included. A copy is compared with every copy of the same name and signature.
//! `read_and_write` is compared without the signature: mio has a socket type of its own.

use std::collections::BTreeMap;

use crate::breach::Breach;
use crate::source::{self, Function};
use crate::tree::{Kind, Package, Tree};

const COPIES: [&str; 4] = ["read_and_write", "accept", "event", "serve"];
/// A function with fewer statements and fewer tokens is too short to compare.
const STATEMENTS: usize = 3;
const TOKENS: usize = 25;

/// A function and its place.
struct Place {
    package: String,
    is_server: bool,
    path: String,
    function: Function,
}

pub fn functions(tree: &Tree) -> Vec<Breach> {
    let mut places = Vec::new();
    for package in tree.packages_that(Package::is_example) {
        for source in tree.sources_of(package) {
            let place = |function| Place {
                package: package.name.clone(),
                is_server: package.kind == Kind::Server,
                path: source.path.clone(),
                function,
            };
            places.extend(source::functions(source).into_iter().map(place));
        }
    }
    repeated(&places).into_iter().chain(different(&places)).collect()
}

/// Equal functions in two packages.
fn repeated(places: &[Place]) -> Vec<Breach> {
    let mut groups: BTreeMap<&str, Vec<&Place>> = BTreeMap::new();
    let is_long = |function: &Function| function.statements >= STATEMENTS || function.tokens >= TOKENS;
    for place in places.iter().filter(|place| is_long(&place.function) && !is_copy(place)) {
        groups.entry(&place.function.normal).or_default().push(place);
    }
    let mut breaches = Vec::new();
    for place in groups.values().flatten() {
        let others = groups.get(place.function.normal.as_str()).into_iter().flatten();
        let others: Vec<String> =
            others.filter(|other| other.package != place.package).map(|other| name(other)).collect();
        if !others.is_empty() {
            let reason =
                format!("fn {} is equal to {}: move it into a library", place.function.name, others.join(", "));
            breaches.push(Breach::new(&place.path, place.function.line, reason));
        }
    }
    breaches
}

/// Copies that are not equal.
fn different(places: &[Place]) -> Vec<Breach> {
    let mut first: BTreeMap<(&str, &str), &Place> = BTreeMap::new();
    let mut breaches = Vec::new();
    for place in places.iter().filter(|place| place.is_server && is_copy(place)) {
        let Function { name: function, signature, head, body, line, .. } = &place.function;
        let signature = if function == "read_and_write" { "" } else { signature.as_str() };
        let known = first.entry((function, signature)).or_insert(place);
        if (&known.function.head, &known.function.body) != (head, body) {
            let reason = format!("fn {function} must be byte for byte equal to {}", name(known));
            breaches.push(Breach::new(&place.path, *line, reason));
        }
    }
    breaches
}

fn is_copy(place: &Place) -> bool {
    COPIES.contains(&place.function.name.as_str())
}

fn name(place: &Place) -> String {
    format!("fn {} of {}:{}", place.function.name, place.path, place.function.line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;

    fn places(files: &[(&str, &str)]) -> Vec<Place> {
        let of_file = |(package, text): &(&str, &str)| {
            let path = format!("{package}/src/main.rs");
            let functions = source::functions(&Source::parse(&path, text).unwrap());
            let place = |function| Place { package: (*package).into(), is_server: true, path: path.clone(), function };
            functions.into_iter().map(place).collect::<Vec<_>>()
        };
        files.iter().flat_map(of_file).collect()
    }

    #[test]
    fn equal_functions_in_two_packages_are_breaches() {
        let (one, two) = ("fn f(a: A) { a.b(); a.c(); a.d(); }", "fn g(a: A) {\n a.b(); // why\n a.c(); a.d(); }");
        assert_eq!(repeated(&places(&[("x", one), ("y", two)])).len(), 2, "one in each");
        assert_eq!(repeated(&places(&[("x", one), ("x", two)])), [], "in one package");
        assert_eq!(repeated(&places(&[("x", one), ("y", &two.replace("a.d", "a.e"))])), []);
        assert_eq!(repeated(&places(&[("x", "fn f() { a() }"), ("y", "fn f() { a() }")])), [], "short");
    }

    #[test]
    fn copies_are_equal_byte_for_byte() {
        let copy = "/// Reads.\nfn read_and_write(a: A) { a.b(); a.c(); a.d(); } // 0: end of file";
        assert_eq!(repeated(&places(&[("x", copy), ("y", copy)])), []);
        assert_eq!(different(&places(&[("x", copy), ("y", &copy.replace("a: A", "a: B"))])), []);
        for bad in [copy.replace("Reads", "Writes"), copy.replace("a.d", "/* why */ a.d"), copy.replace("a.d", "a.e")] {
            assert_eq!(different(&places(&[("x", copy), ("y", &bad)])).len(), 1, "{bad}");
        }
    }

    #[test]
    fn other_copies_are_compared_where_the_signature_is_the_same() {
        for name in ["accept", "event", "serve"] {
            let (one, two) = (format!("fn {name}(a: A) {{ a.b(); }}"), format!("fn {name}(a: A) {{ a.c(); }}"));
            assert_eq!(different(&places(&[("x", &one), ("y", &two)])).len(), 1, "{name}");
            assert_eq!(different(&places(&[("x", &one), ("y", &two.replace("a: A", "a: B"))])), [], "{name}");
        }
    }
}

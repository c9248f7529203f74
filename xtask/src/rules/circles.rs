//! The files of a library or tool use each other in one direction only.
//!
//! A file uses another one if its code names something in it by a path of modules. A `mod` declaration is
//! not a use. A `pub use` is not a use either: the rule follows its path to the file that defines the name.

use std::collections::BTreeMap;

use syn::visit::{self, Visit};

use crate::breach::Breach;
use crate::limits;
use crate::source::Source;
use crate::tree::Tree;

/// The names of modules, from the root of a crate.
type Module = Vec<String>;

/// A file of a crate.
#[derive(Default)]
struct File {
    path: String,
    /// Every path in its code, with the line.
    paths: Vec<(Module, usize)>,
    /// `pub use`: a name, and the path that it stands for.
    exports: BTreeMap<String, Module>,
}

type Files = BTreeMap<Module, File>;

pub fn files(tree: &Tree) -> Vec<Breach> {
    let crates = tree.packages_that(|package| !package.is_example() && limits::binds(&package.folder));
    let roots = crates.flat_map(|package| package.roots.iter().map(move |root| (package, root)));
    roots.flat_map(|(package, root)| circles(&files_of(tree.sources_of(package), root))).collect()
}

fn files_of<'t>(sources: impl Iterator<Item = &'t Source>, root: &str) -> Files {
    let folder = root.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut files = Files::new();
    for source in sources {
        let Some(rest) = source.path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/')) else { continue };
        let module = rest.trim_end_matches(".rs").trim_end_matches("/mod");
        let module: Module =
            if source.path == root { Module::new() } else { module.split('/').map(str::to_owned).collect() };
        let mut file = File { path: source.path.clone(), ..File::default() };
        file.visit_file(&source.file);
        file.paths.retain(|(_, line)| !source.is_test(*line));
        files.insert(module, file);
    }
    files
}

/// One breach for each file of a circle.
fn circles(files: &Files) -> Vec<Breach> {
    let mut uses: BTreeMap<&Module, BTreeMap<&Module, usize>> = BTreeMap::new();
    for (module, file) in files {
        let used = file.paths.iter().filter_map(|(path, line)| Some((resolve(files, module, path, 0)?, *line)));
        uses.insert(module, used.filter(|(used, _)| *used != module).collect());
    }
    // A file that uses no other file is in no circle, and neither is a file that no other file uses.
    loop {
        let all = uses.clone();
        uses.values_mut().for_each(|used| used.retain(|module, _| all.contains_key(module)));
        let is_used = |module: &Module| all.values().any(|used| used.contains_key(module));
        uses.retain(|module, used| !used.is_empty() && is_used(module));
        if uses.len() == all.len() {
            break;
        }
    }
    let path = |module: &Module| files.get(module).map_or("", |file| file.path.as_str());
    let breach = |(module, used): (&&Module, &BTreeMap<&Module, usize>)| {
        let names: Vec<&str> = used.keys().map(|used| path(used)).collect();
        let line = used.values().min().copied().unwrap_or(1);
        Breach::new(path(module), line, format!("a circle of files: this one uses {}", names.join(", ")))
    };
    uses.iter().map(breach).collect()
}

/// The file that a path in a module leads to.
fn resolve<'f>(files: &'f Files, from: &Module, path: &[String], depth: usize) -> Option<&'f Module> {
    let mut at = from.clone();
    let mut rest = path;
    while let [name, tail @ ..] = rest {
        match name.as_str() {
            "crate" => at.clear(),
            "super" => _ = at.pop(),
            "self" => {}
            _ => break,
        }
        rest = tail;
    }
    // A path that begins with another name leads into a module below this one, or out of the crate.
    let is_below = |name: &String| files.contains_key(&[from.as_slice(), std::slice::from_ref(name)].concat());
    let is_ours = rest.len() < path.len() || depth > 0 || path.first().is_some_and(is_below);
    if is_ours { descend(files, at, rest, depth) } else { None }
}

/// Goes down from a module while the names are files, then through a `pub use`.
fn descend<'f>(files: &'f Files, mut at: Module, names: &[String], depth: usize) -> Option<&'f Module> {
    let mut rest = names;
    while let [name, tail @ ..] = rest {
        at.push(name.clone());
        if !files.contains_key(&at) {
            at.pop();
            break;
        }
        rest = tail;
    }
    let (module, file) = files.get_key_value(&at)?;
    match rest.first().and_then(|name| file.exports.get(name)) {
        Some(export) if depth < 5 => resolve(files, module, export, depth + 1),
        _ => Some(module),
    }
}

impl<'a> Visit<'a> for File {
    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        let is_export = !matches!(item.vis, syn::Visibility::Inherited);
        self.add_use(&item.tree, &mut Module::new(), is_export);
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let names: Module = path.segments.iter().map(|part| part.ident.to_string()).collect();
        let line = path.segments.first().map_or(1, |part| part.ident.span().start().line);
        if names.len() > 1 {
            self.paths.push((names, line));
        }
        visit::visit_path(self, path);
    }
}

impl File {
    fn add_use(&mut self, tree: &syn::UseTree, before: &mut Module, is_export: bool) {
        let (ident, name) = match tree {
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.add_use(&path.tree, before, is_export);
                before.pop();
                return;
            }
            syn::UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.add_use(tree, before, is_export));
            }
            syn::UseTree::Glob(glob) => return self.paths.push((before.clone(), glob.star_token.span.start().line)),
            syn::UseTree::Name(name) => (&name.ident, &name.ident),
            syn::UseTree::Rename(rename) => (&rename.ident, &rename.rename),
        };
        let mut path = before.clone();
        if ident != "self" {
            path.push(ident.to_string());
        }
        match is_export {
            true => _ = self.exports.insert(name.to_string(), path),
            false => self.paths.push((path, ident.span().start().line)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circles_in(files: &[(&str, &str)]) -> Vec<Breach> {
        let sources: Vec<Source> = files.iter().map(|(path, text)| Source::parse(path, text).unwrap()).collect();
        circles(&files_of(sources.iter(), "x/src/lib.rs"))
    }

    #[test]
    fn circle_is_a_breach() {
        let lib = ("x/src/lib.rs", "mod a; mod b; pub use a::A;");
        let uses_b = ("x/src/a.rs", "use crate::b::B; pub struct A;");
        assert_eq!(circles_in(&[lib, uses_b, ("x/src/b.rs", "pub struct B;")]), []);
        for back in ["use crate::a::A;", "use super::a;", "fn f() { crate::a::g() }", "use crate::A;"] {
            let found = circles_in(&[lib, uses_b, ("x/src/b.rs", back)]);
            let paths: Vec<&str> = found.iter().map(|breach| breach.path.as_str()).collect();
            assert_eq!(paths, ["x/src/a.rs", "x/src/b.rs"], "{back}");
        }
    }

    #[test]
    fn child_that_uses_its_parent_is_a_breach_if_the_parent_uses_it() {
        let child = ("x/src/a/c.rs", "use super::A; pub fn f() {}");
        let parent = |text| [("x/src/lib.rs", "mod a;"), ("x/src/a.rs", text), child];
        assert_eq!(circles_in(&parent("mod c; pub struct A;")), []);
        assert_eq!(circles_in(&parent("mod c; pub use c::f; pub struct A;")), []);
        assert_eq!(circles_in(&parent("mod c; pub struct A; fn g() { c::f() }")).len(), 2);
    }

    #[test]
    fn tests_may_use_everything() {
        let tests = "pub struct B; #[cfg(test)] mod tests { use crate::a::A; }";
        assert_eq!(circles_in(&[("x/src/lib.rs", ""), ("x/src/a.rs", "use crate::b::B;"), ("x/src/b.rs", tests)]), []);
    }
}

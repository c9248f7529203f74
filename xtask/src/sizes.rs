//! The sizes that `check` prints and that the limits are about.

use crate::limits;
use crate::rules::header;
use crate::source::{self, Function, Source};
use crate::tree::{Kind, Package, Program, Tree};

/// The terminal client has no part in the limit of its crate.
const APART: &str = "chat/src/bin/";

/// A file of an example.
pub struct FileSize<'t> {
    /// The program's name, or the file's name with its folder.
    pub name: String,
    pub source: &'t Source,
    pub functions: Vec<Function>,
    pub code: usize,
    pub limit: Option<usize>,
    /// Comment lines per 100 code lines.
    pub comments: usize,
    /// The first file of a server or a chat: its loop, its comments and its diff have limits too.
    pub lesson: Option<Lesson>,
}

pub struct Lesson {
    pub first_loop: Option<usize>,
    pub diff: Option<Diff>,
}

/// The step from an example to its diff base.
pub struct Diff {
    pub base: String,
    pub removed: usize,
    pub added: usize,
    pub limit: usize,
}

impl Diff {
    /// A replaced line counts once.
    pub fn changed(&self) -> usize {
        self.removed.max(self.added)
    }
}

/// A library or a tool.
pub struct CrateSize<'t> {
    pub package: &'t Package,
    pub files: Vec<&'t Source>,
    pub code: usize,
    pub limit: Option<usize>,
}

/// The files of an example, programs first.
pub fn of_example<'t>(tree: &'t Tree, package: &'t Package) -> Vec<FileSize<'t>> {
    let program = |path: &str| package.programs.iter().find(|program| program.path == path);
    let mut files: Vec<FileSize> = tree
        .sources_of(package)
        .map(|source| match program(&source.path) {
            Some(program) => of_program(tree, package, program, source),
            None => {
                let limit = limits::second_file(package, &source.path);
                of_file(source.path.replacen("/src/", "/", 1), source, limit)
            }
        })
        .collect();
    files.sort_by_key(|file| (file.name != package.name, program(&file.source.path).is_none(), file.name.clone()));
    files
}

fn of_program<'t>(tree: &'t Tree, package: &Package, program: &Program, source: &'t Source) -> FileSize<'t> {
    let is_lesson = package.kind != Kind::Lesson && !program.is_naive();
    let lesson = is_lesson.then(|| Lesson { first_loop: source.first_loop(), diff: diff(tree, &program.name) });
    FileSize { lesson, ..of_file(program.name.clone(), source, limits::program(package, program)) }
}

fn of_file(name: String, source: &Source, limit: Option<usize>) -> FileSize<'_> {
    let size = source.size();
    let comments = (100 * size.comments).checked_div(size.code).unwrap_or(0);
    FileSize { name, source, functions: source::functions(source), code: size.code, limit, comments, lesson: None }
}

fn diff(tree: &Tree, program: &str) -> Option<Diff> {
    let source = tree.main_of(program)?;
    let base = header::value(&source.text, "Diff base")?;
    let (removed, added) = crate::diff::changed(&tree.main_of(&base)?.text, &source.text);
    Some(Diff { base, removed, added, limit: limits::diff(program) })
}

pub fn of_crate<'t>(tree: &'t Tree, package: &'t Package) -> CrateSize<'t> {
    let own = tree.sources.iter().filter(|source| package.holds(&source.path) && !source.is_test_file());
    let files: Vec<&Source> = own.collect();
    let counted = files.iter().filter(|source| !source.path.starts_with(APART));
    CrateSize {
        code: counted.map(|source| source.size().code).sum(),
        package,
        files,
        limit: limits::whole_crate(package),
    }
}

pub fn longest(functions: &[Function]) -> usize {
    functions.iter().map(|function| function.lines).max().unwrap_or(0)
}

pub fn deepest(functions: &[Function]) -> usize {
    functions.iter().map(|function| function.depth).max().unwrap_or(0)
}

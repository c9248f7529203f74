//! The calls that a library, a child after fork and a signal handler may make.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use crate::breach::Breach;
use crate::source::{self, Source};
use crate::tree::{Kind, Package, Tree};

/// The calls that examples teach. `common` and `lifecycle` must not make them.
const LESSONS: &str = "fork accept accept4 accept_raw select pselect sendmsg recvmsg spawn spawn_scoped scope mmap mkfifo \
    sendfile set_reuse_port set_linger set_tcp_cork";
/// The calls of `lifecycle`, and the calls that end a process. `common` must not make them.
const PROCESS: &str = "sigaction signal waitpid wait exit _exit abort kill flock panic! unreachable! println! \
    eprintln!";
/// Async-signal-safe system calls (signal-safety(7)), atomics, and code that only moves values.
const IN_HANDLER: &str = "libc::shutdown libc::write libc::_exit libc::alarm libc::close libc::raise waitpid libc::waitpid \
    kill libc::kill Errno::last_raw Errno::set_raw load store swap fetch_add fetch_sub compare_exchange iter find take map \
    filter get pid as_raw ok and_then Ok Some as_ptr cast len";

pub fn seam(tree: &Tree) -> Vec<Breach> {
    let library = |name: &str, calls: &str| {
        let package = tree.package(name);
        let sources = package.into_iter().flat_map(|package| tree.sources_of(package));
        sources.flat_map(|source| seam_of(source, name, calls)).collect::<Vec<_>>()
    };
    let common = library("common", &format!("{LESSONS} {PROCESS}"));
    common.into_iter().chain(library("lifecycle", LESSONS)).collect()
}

fn seam_of(source: &Source, library: &str, refused: &str) -> Vec<Breach> {
    let is_refused = |name: &str| {
        let last = last(name);
        is_in(refused, last) || last.starts_with("epoll_") || last.starts_with("io_uring_")
    };
    let breach =
        |(name, line)| Breach::new(&source.path, line, format!("{name} belongs in an example, not in {library}"));
    source.calls().into_iter().filter(|(name, _)| is_refused(name)).map(breach).collect()
}

fn is_in(words: &str, name: &str) -> bool {
    words.split_whitespace().any(|word| word == name)
}

fn is_server_or_chat(package: &Package) -> bool {
    matches!(package.kind, Kind::Server | Kind::Chat)
}

fn last(name: &str) -> &str {
    name.rsplit("::").next().unwrap_or_default()
}

pub fn child_arm(tree: &Tree) -> Vec<Breach> {
    let child_arms = |package| child_arm_of(&tree.sources_of(package).collect::<Vec<_>>());
    tree.packages_that(is_server_or_chat).flat_map(child_arms).collect()
}

/// The child's arm of `match unsafe { fork() }` is one call of a function of type `!`, and no other code calls fork.
fn child_arm_of(sources: &[&Source]) -> Vec<Breach> {
    let mut breaches = Vec::new();
    let functions = sources.iter().flat_map(|source| source::functions(source));
    let never = functions.filter(|function| function.signature.ends_with("- > !")).map(|function| function.name);
    let never: Vec<String> = never.collect();
    for source in sources {
        let mut arms = Arms { never: &never, matched: Vec::new(), bad: Vec::new() };
        arms.visit_file(&source.file);
        let forks =
            source.calls().into_iter().filter(|(name, line)| last(name) == "fork" && !arms.matched.contains(line));
        let unmatched = "fork outside `match unsafe { fork() }` with an arm for ForkResult::Child";
        breaches.extend(forks.map(|(_, line)| Breach::new(&source.path, line, unmatched)));
        let bad = "the child's arm after fork must be one call of a function that returns `!`";
        breaches.extend(arms.bad.iter().map(|line| Breach::new(&source.path, *line, bad)));
    }
    breaches
}

struct Arms<'s> {
    never: &'s [String],
    /// Lines of the forks whose result a `match` takes.
    matched: Vec<usize>,
    /// Lines of wrong arms.
    bad: Vec<usize>,
}

impl<'a> Visit<'a> for Arms<'_> {
    fn visit_expr_match(&mut self, expression: &'a syn::ExprMatch) {
        let (fork, start) = (text(expression.expr.span()), expression.expr.span().start().line);
        let forks: Vec<usize> =
            calls_in(&fork).into_iter().filter(|(name, _)| last(name) == "fork").map(|(_, line)| line).collect();
        let is_child = |arm: &&syn::Arm| text(arm.pat.span()).contains("Child");
        let children: Vec<&syn::Arm> = expression.arms.iter().filter(is_child).collect();
        if !forks.is_empty() && !children.is_empty() {
            self.matched.extend(forks.iter().map(|line| start + line - 1));
            let bad = children.iter().filter(|arm| !is_call_of(self.never, &arm.body));
            self.bad.extend(bad.map(|arm| arm.body.span().start().line));
        }
        visit::visit_expr_match(self, expression);
    }
}

fn text(span: proc_macro2::Span) -> String {
    span.source_text().unwrap_or_default()
}

fn calls_in(text: &str) -> Vec<(String, usize)> {
    source::calls(text.parse().unwrap_or_default())
}

fn is_call_of(names: &[String], body: &syn::Expr) -> bool {
    let syn::Expr::Call(call) = body else { return false };
    let syn::Expr::Path(path) = &*call.func else { return false };
    path.path.segments.last().is_some_and(|part| names.iter().any(|name| part.ident == name))
}

pub fn handlers(tree: &Tree) -> Vec<Breach> {
    let packages = tree.packages_that(is_server_or_chat);
    packages.flat_map(|package| tree.sources_of(package)).flat_map(handlers_of).collect()
}

fn handlers_of(source: &Source) -> Vec<Breach> {
    let handlers = source::functions(source).into_iter().filter(|function| function.signature.starts_with("extern"));
    let breaches = handlers.flat_map(|handler| {
        let unsafe_calls = calls_in(&handler.body).into_iter().filter(|(name, _)| !is_in(IN_HANDLER, name));
        let reason = |name| format!("{name} in a signal handler: only async-signal-safe calls, see signal-safety(7)");
        let breach = |(name, line)| Breach::new(&source.path, handler.line + line - 1, reason(name));
        unsafe_calls.map(breach).collect::<Vec<_>>()
    });
    breaches.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Source {
        Source::parse("x.rs", text).unwrap()
    }

    #[test]
    fn call_of_a_lesson_in_a_library_is_a_breach() {
        let all = format!("{LESSONS} {PROCESS}");
        for bad in [
            "fn f() { listener.accept(); }",
            "fn f() { nix::unistd::fork(); }",
            "fn f() { std::process::exit(1); }",
            "fn f() { panic!(); }",
            "fn f() { write!(out, \"{}\", unsafe { fork() }).ok(); }",
            "fn f() { libc::epoll_pwait2(a); }",
            "fn f() { std::thread::Builder::new().spawn(f); }",
        ] {
            assert_eq!(seam_of(&parse(bad), "common", &all).len(), 1, "{bad}");
        }
        for good in
            ["fn f() { accept_failed(1); thread::sleep(x); }", "#[cfg(test)] mod tests { fn f() { panic!(); } }"]
        {
            assert!(seam_of(&parse(good), "common", &all).is_empty(), "{good}");
        }
    }

    #[test]
    fn child_arm_that_can_return_is_a_breach() {
        let with = |arm: &str, kind: &str| {
            parse(&format!(
                "fn main() {{ match unsafe {{ fork() }} {{ Ok(ForkResult::Child) => {arm}, _ => {{}} }} }} fn child() {kind} {{ loop {{}} }}"
            ))
        };
        let breaches = |source: Source| child_arm_of(&[&source]).len();
        assert_eq!(breaches(with("child()", "-> !")), 0);
        assert_eq!(breaches(with("child()", "")), 1);
        assert_eq!(breaches(with("{ child(); }", "-> !")), 1);
        assert_eq!(breaches(with("serve()?", "-> !")), 1);
        assert_eq!(breaches(with("return child()", "-> !")), 1);
        let (main, other) = (with("life::child()", ""), parse("pub fn child() -> ! { loop {} }"));
        assert_eq!(child_arm_of(&[&main, &other]).len(), 0, "the function may be in another file of the example");
    }

    #[test]
    fn fork_outside_a_match_is_a_breach() {
        for bad in [
            "fn f() { if let Ok(ForkResult::Child) = unsafe { fork() } { child() } }",
            "fn f() { let pid = unsafe { libc::fork() }; }",
            "fn f() { match unsafe { fork() } { Ok(_) => child(), Err(_) => {} } }",
        ] {
            assert_eq!(child_arm_of(&[&parse(bad)]).len(), 1, "{bad}");
        }
    }

    #[test]
    fn unsafe_call_in_a_signal_handler_is_a_breach() {
        let handler = |body: &str| parse(&format!("extern \"C\" fn stop(_: c_int) {{ {body} }}"));
        assert!(handlers_of(&handler("unsafe { libc::shutdown(FD.load(SeqCst), 1) };")).is_empty());
        for bad in ["println!(\"x\");", "log.info(x);", "let s = format!(\"x\");", "Vec::with_capacity(1);"] {
            assert!(!handlers_of(&handler(bad)).is_empty(), "{bad}");
        }
        assert_eq!(handlers_of(&parse("mod m { extern \"C\" fn stop(_: c_int) { log(); } }")).len(), 1);
        assert!(handlers_of(&parse("fn main() { log(); }")).is_empty());
    }
}

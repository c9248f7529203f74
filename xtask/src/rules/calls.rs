//! Who may call what: the seam of `common`, the child's arm after fork, the calls in a signal handler.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use crate::breach::Breach;
use crate::source::{self, Source};
use crate::tree::{Kind, Package, Tree};

/// These calls are lessons, or decide over the process: not in the library.
const NOT_IN_COMMON: &[&str] = &[
    "fork",
    "accept",
    "accept4",
    "accept_raw",
    "poll",
    "ppoll",
    "select",
    "pselect",
    "sendmsg",
    "recvmsg",
    "sigaction",
    "signal",
    "waitpid",
    "wait",
    "spawn",
    "exit",
    "_exit",
    "abort",
    "set_nonblocking",
    "mmap",
    "flock",
    "kill",
    "mkfifo",
    "sendfile",
    "set_reuse_port",
    "set_linger",
    "set_tcp_cork",
    "panic!",
    "unreachable!",
    "println!",
    "eprintln!",
    "spawn_scoped",
    "scope",
];

/// What a handler may call: async-signal-safe system calls (signal-safety(7)), atomics, and code that only walks them.
const IN_HANDLER: &[&str] = &[
    "libc::shutdown",
    "libc::write",
    "libc::_exit",
    "libc::alarm",
    "libc::close",
    "libc::raise",
    "waitpid",
    "libc::waitpid",
    "kill",
    "libc::kill",
    "Errno::last_raw",
    "Errno::set_raw",
    "load",
    "store",
    "swap",
    "fetch_add",
    "fetch_sub",
    "compare_exchange",
    "iter",
    "find",
    "take",
    "map",
    "filter",
    "get",
    "pid",
    "as_raw",
    "ok",
    "and_then",
    "Some",
    "as_ptr",
    "cast",
    "len",
    "WaitPidFlag::WNOHANG",
];

pub fn seam(tree: &Tree) -> Vec<Breach> {
    tree.sources.iter().filter(|source| source.path.starts_with("common/src/")).flat_map(seam_of).collect()
}

fn seam_of(source: &Source) -> Vec<Breach> {
    let calls = source::calls(|calls| calls.visit_file(&source.file));
    let is_lesson = |name: &str| {
        let last = last(name);
        NOT_IN_COMMON.contains(&last) || last.starts_with("epoll_") || last.starts_with("io_uring_")
    };
    let banned = calls.into_iter().filter(|(name, _)| is_lesson(name));
    banned
        .map(|(name, line)| Breach::new(&source.path, line, format!("{name} belongs in an example, not in common")))
        .collect()
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

/// The child's arm of `match unsafe { fork() }` is one call of a function of type `!`, and fork is called nowhere else.
fn child_arm_of(sources: &[&Source]) -> Vec<Breach> {
    let mut breaches = Vec::new();
    let never: Vec<String> = sources.iter().flat_map(|source| functions_of_type_never(source)).collect();
    for source in sources {
        let mut arms = Arms { source, never: &never, matched: Vec::new(), breaches: Vec::new() };
        arms.visit_file(&source.file);
        breaches.append(&mut arms.breaches);
        for (_, line) in forks(|calls| calls.visit_file(&source.file)) {
            if !arms.matched.contains(&line) {
                let reason = "fork outside `match unsafe { fork() }` with an arm for ForkResult::Child";
                breaches.push(Breach::new(&source.path, line, reason));
            }
        }
    }
    breaches
}

fn forks(visit: impl FnOnce(&mut source::Calls)) -> Vec<(String, usize)> {
    let mut calls = source::calls(visit);
    calls.retain(|(name, _)| last(name) == "fork");
    calls
}

struct Arms<'s> {
    source: &'s Source,
    never: &'s [String],
    /// Lines of the forks that are matched on.
    matched: Vec<usize>,
    breaches: Vec<Breach>,
}

impl<'a> Visit<'a> for Arms<'_> {
    fn visit_expr_match(&mut self, expression: &'a syn::ExprMatch) {
        let forks = forks(|calls| calls.visit_expr(&expression.expr));
        let is_child = |arm: &&syn::Arm| arm_names(&arm.pat).iter().any(|name| name == "Child");
        let children: Vec<&syn::Arm> = expression.arms.iter().filter(is_child).collect();
        if !forks.is_empty() && !children.is_empty() {
            self.matched.extend(forks.iter().map(|(_, line)| *line));
            for arm in children.iter().filter(|arm| !is_call_of(self.never, &arm.body)) {
                let line = arm.body.span().start().line;
                let reason = "the child's arm after fork must be a single call of a function of type `!`";
                self.breaches.push(Breach::new(&self.source.path, line, reason));
            }
        }
        visit::visit_expr_match(self, expression);
    }
}

fn arm_names(pattern: &syn::Pat) -> Vec<String> {
    struct Names(Vec<String>);
    impl<'a> Visit<'a> for Names {
        fn visit_ident(&mut self, ident: &'a syn::Ident) {
            self.0.push(ident.to_string());
        }
    }
    let mut names = Names(Vec::new());
    names.visit_pat(pattern);
    names.0
}

fn functions_of_type_never(source: &Source) -> Vec<String> {
    let never = |output: &syn::ReturnType| match output {
        syn::ReturnType::Type(_, kind) => matches!(**kind, syn::Type::Never(_)),
        syn::ReturnType::Default => false,
    };
    let name = |item: &syn::Item| match item {
        syn::Item::Fn(function) if never(&function.sig.output) => Some(function.sig.ident.to_string()),
        _ => None,
    };
    source.file.items.iter().filter_map(name).collect()
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
    let mut handlers = Handlers { source, breaches: Vec::new() };
    handlers.visit_file(&source.file);
    handlers.breaches
}

struct Handlers<'s> {
    source: &'s Source,
    breaches: Vec<Breach>,
}

impl<'a> Visit<'a> for Handlers<'_> {
    fn visit_item_fn(&mut self, function: &'a syn::ItemFn) {
        if function.sig.abi.is_some() {
            for (name, line) in source::calls(|calls| calls.visit_block(&function.block)) {
                if !IN_HANDLER.contains(&name.as_str()) {
                    let reason =
                        format!("{name} in a signal handler: only async-signal-safe calls, see signal-safety(7)");
                    self.breaches.push(Breach::new(&self.source.path, line, reason));
                }
            }
        }
        visit::visit_item_fn(self, function);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Source {
        Source::parse("x.rs", text).unwrap()
    }

    #[test]
    fn the_lesson_stays_out_of_the_library() {
        for bad in [
            "fn f() { listener.accept(); }",
            "fn f() { nix::unistd::fork(); }",
            "fn f() { std::process::exit(1); }",
            "fn f() { panic!(); }",
            "fn f() { write!(out, \"{}\", unsafe { fork() }).ok(); }",
            "fn f() { libc::epoll_pwait2(a); }",
            "fn f() { std::thread::Builder::new().spawn(f); }",
        ] {
            assert_eq!(seam_of(&parse(bad)).len(), 1, "{bad}");
        }
        for good in
            ["fn f() { accept_failed(1); thread::sleep(x); }", "#[cfg(test)] mod tests { fn f() { panic!(); } }"]
        {
            assert!(seam_of(&parse(good)).is_empty(), "{good}");
        }
    }

    #[test]
    fn the_child_never_returns() {
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
        assert_eq!(child_arm_of(&[&main, &other]).len(), 0, "it may be in another file of the example");
    }

    #[test]
    fn fork_is_always_matched_on() {
        for bad in [
            "fn f() { if let Ok(ForkResult::Child) = unsafe { fork() } { child() } }",
            "fn f() { let pid = unsafe { libc::fork() }; }",
            "fn f() { match unsafe { fork() } { Ok(_) => child(), Err(_) => {} } }",
        ] {
            assert_eq!(child_arm_of(&[&parse(bad)]).len(), 1, "{bad}");
        }
    }

    #[test]
    fn a_handler_makes_safe_calls_only() {
        let handler = |body: &str| parse(&format!("extern \"C\" fn stop(_: c_int) {{ {body} }}"));
        assert!(handlers_of(&handler("unsafe { libc::shutdown(FD.load(SeqCst), 1) };")).is_empty());
        for bad in ["println!(\"x\");", "log.info(x);", "let s = format!(\"x\");", "Vec::with_capacity(1);"] {
            assert!(!handlers_of(&handler(bad)).is_empty(), "{bad}");
        }
        assert_eq!(handlers_of(&parse("mod m { extern \"C\" fn stop(_: c_int) { log(); } }")).len(), 1);
        assert!(handlers_of(&parse("fn main() { log(); }")).is_empty());
    }
}

//! Who may call what: the seam of `common`, the child's arm after fork, the calls in a signal handler.

use syn::visit::{self, Visit};

use crate::check::Tree;
use crate::rules::Breach;
use crate::source::{self, Source};

/// These calls are lessons, or decide over the process: not in the library.
const NOT_IN_COMMON: &[&str] = &[
    "fork",
    "accept",
    "accept4",
    "accept_raw",
    "epoll_create",
    "epoll_create1",
    "epoll_ctl",
    "epoll_wait",
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
];

/// What a handler may call: async-signal-safe system calls (signal-safety(7)), atomics, and code that only walks them.
const IN_HANDLER: &[&str] = &[
    "libc::shutdown",
    "libc::write",
    "libc::_exit",
    "libc::alarm",
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
    let last = |name: &str| name.rsplit("::").next().unwrap_or_default().to_owned();
    let banned = calls.into_iter().filter(|(name, _)| NOT_IN_COMMON.contains(&last(name).as_str()));
    banned
        .map(|(name, line)| Breach::new(&source.path, line, format!("{name} belongs in an example, not in common")))
        .collect()
}

pub fn child_arm(tree: &Tree) -> Vec<Breach> {
    tree.examples.iter().filter_map(|example| tree.main_of(&example.name)).flat_map(child_arm_of).collect()
}

/// The child's arm of `match unsafe { fork() }` is one call of a function of type `!`.
fn child_arm_of(source: &Source) -> Vec<Breach> {
    struct Arms<'a> {
        source: &'a Source,
        breaches: Vec<Breach>,
    }
    impl<'a> Visit<'a> for Arms<'a> {
        fn visit_expr_match(&mut self, expression: &'a syn::ExprMatch) {
            let forks = source::calls(|calls| calls.visit_expr(&expression.expr));
            if forks.iter().any(|(name, _)| name.rsplit("::").next() == Some("fork")) {
                for arm in &expression.arms {
                    let path = arm_names(&arm.pat);
                    if path.iter().any(|name| name == "Child") && !is_call_of_never(self.source, &arm.body) {
                        let line = syn::spanned::Spanned::span(&arm.body).start().line;
                        let reason = "the child's arm after fork must be a single call of a function of type `!`";
                        self.breaches.push(Breach::new(&self.source.path, line, reason));
                    }
                }
            }
            visit::visit_expr_match(self, expression);
        }
    }
    let mut arms = Arms { source, breaches: Vec::new() };
    arms.visit_file(&source.file);
    arms.breaches
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

fn is_call_of_never(source: &Source, body: &syn::Expr) -> bool {
    let syn::Expr::Call(call) = body else { return false };
    let syn::Expr::Path(path) = &*call.func else { return false };
    source.file.items.iter().any(|item| match item {
        syn::Item::Fn(function) => {
            let never =
                matches!(&function.sig.output, syn::ReturnType::Type(_, kind) if matches!(**kind, syn::Type::Never(_)));
            path.path.is_ident(&function.sig.ident) && never
        }
        _ => false,
    })
}

pub fn handlers(tree: &Tree) -> Vec<Breach> {
    tree.examples.iter().filter_map(|example| tree.main_of(&example.name)).flat_map(handlers_of).collect()
}

fn handlers_of(source: &Source) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for item in &source.file.items {
        let syn::Item::Fn(function) = item else { continue };
        if function.sig.abi.is_none() {
            continue;
        }
        for (name, line) in source::calls(|calls| calls.visit_block(&function.block)) {
            if !IN_HANDLER.contains(&name.as_str()) {
                let reason = format!("{name} in a signal handler: only async-signal-safe calls, see signal-safety(7)");
                breaches.push(Breach::new(&source.path, line, reason));
            }
        }
    }
    breaches
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
        ] {
            assert_eq!(seam_of(&parse(bad)).len(), 1, "{bad}");
        }
        assert!(seam_of(&parse("fn f() { accept_failed(1); thread::sleep(x); }")).is_empty());
    }

    #[test]
    fn the_child_never_returns() {
        let with = |arm: &str, kind: &str| {
            parse(&format!(
                "fn main() {{ match unsafe {{ fork() }} {{ Ok(ForkResult::Child) => {arm}, _ => {{}} }} }} fn child() {kind} {{ loop {{}} }}"
            ))
        };
        assert!(child_arm_of(&with("child()", "-> !")).is_empty());
        assert_eq!(child_arm_of(&with("child()", "")).len(), 1);
        assert_eq!(child_arm_of(&with("{ child(); }", "-> !")).len(), 1);
        assert_eq!(child_arm_of(&with("serve()?", "-> !")).len(), 1);
    }

    #[test]
    fn a_handler_makes_safe_calls_only() {
        let handler = |body: &str| parse(&format!("extern \"C\" fn stop(_: c_int) {{ {body} }}"));
        assert!(handlers_of(&handler("unsafe { libc::shutdown(FD.load(SeqCst), 1) };")).is_empty());
        for bad in ["println!(\"x\");", "log.info(x);", "let s = format!(\"x\");", "Vec::with_capacity(1);"] {
            assert!(!handlers_of(&handler(bad)).is_empty(), "{bad}");
        }
    }
}

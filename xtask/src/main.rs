//! The workspace's own commands. `cargo xtask --help` lists them.

mod bound;
mod breach;
mod check;
mod cli;
mod demo;
mod diff;
mod guide;
mod limits;
mod markers;
mod print;
mod rules;
mod sizes;
mod smoke;
mod source;
mod table;
mod tools;
mod tree;
mod truths;
mod verify;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command};

fn main() -> ExitCode {
    let root = root();
    let outcome = match Cli::parse().command {
        Command::Check { names, fix } => check::run(&root, &names, fix),
        Command::Diff { one, two } => diff::run(&root, &one, two.as_deref()),
        Command::Demo { list: true, .. } => demo::list(&root),
        Command::Demo { name, .. } => demo::run(&root, &name),
        Command::Truths { package, write } => truths::run(&root, &package, write),
        Command::Verify => verify::run(&root),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

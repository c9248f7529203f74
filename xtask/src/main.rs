//! The workspace's own commands. `cargo xtask --help` lists them.

mod bound;
mod check;
mod demo;
mod diff;
mod guide;
mod rules;
mod smoke;
mod source;
mod table;
mod tools;
mod truths;
mod verify;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The workspace's own commands
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Checks what a machine can judge: budgets, headers, the seam, READMEs, the table of examples
    Check {
        /// Write the table of examples in README.md and the list in misc/README.md anew instead of comparing them
        #[arg(long)]
        fix: bool,
    },
    /// Shows what changes from one example to the next
    Diff {
        /// An example, such as server01-fork or 01
        one: String,
        /// Another one; without it, ONE is compared with its diff base
        two: Option<String>,
    },
    /// Starts an example, loads it, shows its processes and the client's report, and stops it
    Demo {
        /// The example
        #[arg(default_value = "server01-fork")]
        name: String,
        /// List the examples
        #[arg(long)]
        list: bool,
    },
    /// Runs every truth test, `truth_*` in the tests/truths.rs of any crate, and says which hold on this machine
    Truths {
        /// Only of this crate; may be repeated
        #[arg(short, long, value_name = "NAME")]
        package: Vec<String>,
        /// Write misc/TRUTHS.md, and the list of crates in misc/README.md
        #[arg(long)]
        write: bool,
    },
    /// Everything that must hold: formatting, lints, rules, all tests, a smoke test of the release build
    Verify,
}

fn main() -> ExitCode {
    let root = root();
    let outcome = match Cli::parse().command {
        Command::Check { fix } => check::run(&root, fix),
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

/// What can stand behind `cargo xtask`.
fn subcommands() -> Vec<String> {
    let cli = <Cli as clap::CommandFactory>::command();
    cli.get_subcommands().map(|command| command.get_name().to_owned()).chain(["help".to_owned()]).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

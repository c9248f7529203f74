//! The command line of `cargo xtask`.

use clap::{CommandFactory, Parser, Subcommand};

/// The workspace's own commands
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run the static checks: size limits, file headers, crate boundaries, READMEs; then print the sizes
    Check {
        /// Check only these packages, such as server01-fork or 01
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// First rewrite the table of examples in README.md and the list in misc/README.md
        #[arg(long)]
        fix: bool,
    },
    /// Print the difference between two examples
    Diff {
        /// An example, such as server01-fork or 01
        one: String,
        /// A second example; the default is to compare ONE with its diff base
        two: Option<String>,
    },
    /// Start an example, put load on it, show its processes and the client's report, and stop it
    Demo {
        /// The example
        #[arg(default_value = "server01-fork")]
        name: String,
        /// List the examples
        #[arg(long)]
        list: bool,
    },
    /// Run the tests `truth_*` in the tests/truths.rs of each crate, and print which ones pass on this machine
    Truths {
        /// Run only the tests of this crate (may be repeated)
        #[arg(short, long, value_name = "NAME")]
        package: Vec<String>,
        /// Write misc/TRUTHS.md, and the list of crates in misc/README.md
        #[arg(long)]
        write: bool,
    },
    /// Run formatting, lints, rules, all tests, and a smoke test of the release build
    Verify,
}

/// The words that may follow `cargo xtask`.
pub fn subcommands() -> Vec<String> {
    let cli = Cli::command();
    cli.get_subcommands().map(|command| command.get_name().to_owned()).chain(["help".to_owned()]).collect()
}

//! The terminal client of the chats: it reads while you type, and keeps what you typed.
//!
//! On a terminal a line editor reads the keyboard, in a thread of its own. Otherwise lines come from standard input. For the
//! poll loop (`session.rs`) both are a descriptor.

mod editor;
mod screen;
mod session;
mod target;
mod terminal;

use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use chat::is_nick;
use clap::Parser;

use screen::Screen;
use session::Session;
use target::Target;
use terminal::Terminal;

/// The next step after a failed connection.
const START: &str = "cargo run -p v1-threads";

/// Talk in a chat: a line goes to all members, /help lists the commands, /quit or Ctrl-D leaves
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Server's name or address
    #[arg(short = 'i', long, default_value = "localhost", value_name = "HOST")]
    host: String,
    /// Server's port
    #[arg(short, long, default_value_t = 2000)]
    port: u16,
    /// Your nick; without it the program asks, or takes the first line of a pipe
    #[arg(long, value_parser = nick)]
    nick: Option<String>,
    /// Attempts to reconnect after a lost connection
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000))]
    reconnect: u32,
}

fn nick(text: &str) -> Result<String, String> {
    match is_nick(text) {
        true => Ok(text.to_owned()),
        false => Err("a letter, then up to 19 of A-Z a-z 0-9 _ -".into()),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let terminal = Terminal::save();
    let outcome = terminal.as_ref().map_or(Ok(()), Terminal::restore_on_signals).and_then(|()| talk(args));
    // The line editor leaves the terminal in raw mode if the program ends while it reads a line.
    if let Some(terminal) = terminal {
        terminal.restore();
    }
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let _ = writeln!(io::stderr(), "chat: {why}");
            ExitCode::FAILURE
        }
    }
}

fn talk(args: Args) -> Result<(), String> {
    let target = Target { host: args.host, port: args.port };
    // Connect first: without a server there is no reason to ask for a nick.
    let conn = target.connect().map_err(|e| format!("{e}. Check -i and -p, or start a server with `{START}`"))?;
    let editor = match io::stdin().is_terminal() && io::stdout().is_terminal() {
        true => editor::Editor::new(),
        false => None,
    };
    let Some(editor) = editor else {
        let lines: OwnedFd = io::stdin().as_fd().try_clone_to_owned().map_err(|e| format!("dup: {e}"))?;
        let nick = args.nick.unwrap_or_default();
        return Session::new(target, nick, args.reconnect, Screen::Plain, false).run(conn, &lines);
    };
    let Some((nick, editor)) = editor.ask_nick(args.nick)? else { return Ok(()) };
    let colors = screen::has_colors();
    let (lines, printer) = editor.start(colors)?;
    Session::new(target, nick, args.reconnect, Screen::Terminal { printer, colors }, true).run(conn, &lines)
}

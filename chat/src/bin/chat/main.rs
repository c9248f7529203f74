//! The terminal client of the chats: reads while you type, and keeps what you typed.
//!
//! On a terminal a line editor owns the keyboard, in a thread of its own; otherwise lines come from standard input. To
//! the one poll loop (`session.rs`) both are a descriptor.

mod editor;
mod screen;
mod session;

use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use chat::is_nick;
use clap::Parser;
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};

use screen::Screen;
use session::{Session, Target};

/// Talk in a chat: a line is said to all, /help lists the commands, /quit or Ctrl-D leaves
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Server's name or address
    #[arg(short = 'i', long, default_value = "localhost", value_name = "HOST")]
    host: String,
    /// Server's port
    #[arg(short, long, default_value_t = 2000)]
    port: u16,
    /// Your nick; without it you are asked, or the first line is it
    #[arg(long, value_parser = nick)]
    nick: Option<String>,
    /// Attempts to come back after a lost connection
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
    // A line editor leaves the terminal raw if the program ends under its hands.
    let terminal = Terminal(tcgetattr(io::stdin()).ok());
    let outcome = talk(args);
    drop(terminal);
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
    // First of all, whether there is anybody: nobody likes to be asked for a name by a wall.
    let conn = target.connect()?;
    let editor = match io::stdin().is_terminal() && io::stdout().is_terminal() {
        true => editor::Editor::new(),
        false => None,
    };
    match editor {
        Some(editor) => {
            let Some((nick, editor)) = editor.ask_nick(args.nick)? else { return Ok(()) };
            let (lines, printer) = editor.start()?;
            Session::new(target, nick, args.reconnect, Screen::terminal(printer), true).run(conn, &lines)
        }
        None => {
            let lines: OwnedFd = io::stdin().as_fd().try_clone_to_owned().map_err(|e| format!("dup: {e}"))?;
            let nick = args.nick.unwrap_or_default();
            Session::new(target, nick, args.reconnect, Screen::plain(), false).run(conn, &lines)
        }
    }
}

/// Puts the terminal back as it was.
struct Terminal(Option<Termios>);

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, before);
        }
    }
}

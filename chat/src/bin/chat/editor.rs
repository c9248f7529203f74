//! The keyboard: a line editor in a thread. Its lines come out of a descriptor.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;

use chat::is_nick;
use rustyline::error::ReadlineError;
use rustyline::{DefaultEditor, ExternalPrinter};

/// Precedes what the user types, so the line stays on the screen as the user's own.
const PROMPT: &str = "you> ";
const PROMPT_GREEN: &str = "\x1b[32myou>\x1b[0m ";

pub type Printer = Box<dyn ExternalPrinter + Send>;

pub struct Editor {
    editor: DefaultEditor,
    printer: Printer,
}

impl Editor {
    /// None: the terminal is too simple for a line editor (`TERM=dumb`).
    pub fn new() -> Option<Editor> {
        let mut editor = DefaultEditor::new().ok()?;
        let printer = Box::new(editor.create_external_printer().ok()?);
        Some(Editor { editor, printer })
    }

    /// The nick from the command line, or from the keyboard. None: the user has left.
    pub fn ask_nick(mut self, given: Option<String>) -> Result<Option<(String, Editor)>, String> {
        if let Some(nick) = given {
            return Ok(Some((nick, self)));
        }
        loop {
            match self.editor.readline("your nick: ") {
                Ok(line) if is_quit(line.trim()) => return Ok(None),
                Ok(line) if is_nick(line.trim()) => return Ok(Some((line.trim().to_owned(), self))),
                Ok(_) => drop(writeln!(io::stdout(), "a letter, then up to 19 of A-Z a-z 0-9 _ -; or /quit")),
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(None),
                Err(e) => return Err(format!("terminal: {e}")),
            }
        }
    }

    /// Starts the editor. Its lines come out of the descriptor; the end of file is `/quit`, Ctrl-D or Ctrl-C. The printer
    /// prints text above the line that is being typed.
    pub fn start(self, colors: bool) -> Result<(OwnedFd, Printer), String> {
        let (mut lines, out) = UnixStream::pair().map_err(|e| format!("socketpair: {e}"))?;
        let Editor { mut editor, printer } = self;
        let prompt = (PROMPT, if colors { PROMPT_GREEN } else { PROMPT });
        editor.set_helper(Some(())); // without a helper the editor prints no color
        let read_lines = move || {
            while let Ok(line) = editor.readline(&prompt) {
                let _ = editor.add_history_entry(line.as_str());
                // After `/quit` there is no further prompt, so the shell's prompt begins on a clean line.
                if lines.write_all(format!("{line}\n").as_bytes()).is_err() || is_quit(&line) {
                    return;
                }
            }
        };
        thread::Builder::new().spawn(read_lines).map_err(|e| format!("clone: {e}"))?;
        Ok((out.into(), printer))
    }
}

/// True if the user leaves with this line.
pub fn is_quit(line: &str) -> bool {
    matches!(line.split(' ').next(), Some("/quit" | "/exit"))
}

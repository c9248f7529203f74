//! What the user sees.

use std::env;
use std::io::{self, Write};

use crate::editor::Printer;

/// A terminal, where lines go above the one being typed and have colors; or plain output, where they are as they came.
pub enum Screen {
    Terminal { printer: Printer, colors: bool },
    Plain,
}

impl Screen {
    pub fn terminal(printer: Printer) -> Screen {
        Screen::Terminal { printer, colors: env::var_os("NO_COLOR").is_none() }
    }

    pub fn plain() -> Screen {
        Screen::Plain
    }

    /// A line of the server, already escaped.
    ///
    /// # Errors
    /// Nobody looks any more.
    pub fn show(&mut self, line: &str) -> Result<(), String> {
        match self {
            Screen::Plain => writeln!(io::stdout(), "{line}").map_err(|e| format!("stdout: {e}")),
            Screen::Terminal { printer, colors } => {
                let line = for_people(line);
                let text = match color(&line).filter(|_| *colors) {
                    Some(color) => format!("\x1b[{color}m{line}\x1b[0m\n"),
                    None => format!("{line}\n"),
                };
                printer.print(text).map_err(|e| format!("terminal: {e}"))
            }
        }
    }

    /// Words of this program. Plain output is the server's: they go to stderr.
    pub fn note(&mut self, text: &str) {
        let _ = match self {
            Screen::Plain => writeln!(io::stderr(), "-- {text}").map_err(|e| e.to_string()),
            Screen::Terminal { .. } => self.show(&format!("-- {text}")),
        };
    }
}

/// `<alice> /me waves` is what alice does, not what she says.
fn for_people(line: &str) -> String {
    let action = line.split_once("> /me ").filter(|(nick, _)| nick.starts_with('<') && !nick.contains(' '));
    match action {
        Some((nick, text)) => format!("<{}> ~ {text} ~", nick.trim_start_matches('<')),
        None => line.to_owned(),
    }
}

fn color(line: &str) -> Option<&'static str> {
    match line.as_bytes().first()? {
        b'*' | b'~' => Some("2"),
        b'!' => Some("31"),
        b'-' if line.starts_with("-- ") => Some("33"),
        b'-' | b'>' => Some("35"),
        b'=' => Some("36"),
        _ => None,
    }
}

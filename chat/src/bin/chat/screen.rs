//! What the user sees.

use std::env;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::time::UNIX_EPOCH;

use crate::editor::Printer;

/// A terminal, where lines are printed above the line that is being typed; or plain output, where lines are as the server
/// sent them.
pub enum Screen {
    Terminal { printer: Printer, colors: bool },
    Plain,
}

/// True if a terminal gets colors. See no-color.org: NO_COLOR, set and not empty, means no color.
pub fn has_colors() -> bool {
    env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

impl Screen {
    /// Shows a line of the server, which is already escaped. `nick`: the user's.
    ///
    /// # Errors
    /// The output is closed.
    pub fn show(&mut self, line: &str, nick: &str) -> Result<(), String> {
        let Screen::Terminal { printer, colors } = self else {
            return writeln!(io::stdout(), "{line}").map_err(|e| format!("stdout: {e}"));
        };
        let text = for_people(line);
        let text = match color(line, nick).filter(|_| *colors) {
            Some(color) => format!("\x1b[{color}m{text}\x1b[0m\n"),
            None => format!("{text}\n"),
        };
        // The printer fails after the editor has ended. Then there is no line that is being typed.
        printer.print(text.clone()).or_else(|_| write!(io::stdout(), "{text}")).map_err(|e| format!("terminal: {e}"))
    }

    /// Shows a message of this program. Plain output belongs to the server, so there the message goes to stderr.
    pub fn note(&mut self, text: &str) {
        let _ = match self {
            Screen::Plain => writeln!(io::stderr(), "-- {text}").map_err(|e| e.to_string()),
            Screen::Terminal { .. } => self.show(&format!("-- {text}"), ""),
        };
    }
}

/// Private messages say who sends and who gets them, and times are local. No line of another member can look like that:
/// these lines begin with `<`.
fn for_people(line: &str) -> String {
    if let Some((time, rest)) = line.strip_prefix("~ ").and_then(|rest| rest.split_once(' ')) {
        let time = local_time(time).unwrap_or_else(|| time.to_owned());
        return format!("~ {time} {rest}");
    }
    let tagged = |open, close| line.strip_prefix(open)?.split_once(close).filter(|(nick, _)| !nick.contains(' '));
    if let Some((nick, text)) = tagged('-', "- ").filter(|(nick, _)| !nick.is_empty()) {
        return format!("[private from {nick}] {text}");
    }
    if let Some((nick, text)) = tagged('>', "< ") {
        return format!("[private to {nick}] {text}");
    }
    line.to_owned()
}

/// A time of the server, `2026-01-31T12:00:00.123Z`, in the time zone of this machine.
fn local_time(time: &str) -> Option<String> {
    let since = humantime::parse_rfc3339(time).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let seconds = libc::time_t::try_from(since.as_secs()).ok()?;
    let mut local = MaybeUninit::uninit();
    // SAFETY: localtime_r reads the number and writes to `local`; both outlive the call.
    if unsafe { libc::localtime_r(&seconds, local.as_mut_ptr()) }.is_null() {
        return None;
    }
    // SAFETY: localtime_r has not failed, so it has written all fields.
    let local: libc::tm = unsafe { local.assume_init() };
    let (year, month, day) = (local.tm_year + 1900, local.tm_mon + 1, local.tm_mday);
    let (hour, minute, second) = (local.tm_hour, local.tm_min, local.tm_sec);
    Some(format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}"))
}

/// The SGR code of a line: own lines are green like the prompt, private ones bold and magenta.
fn color(line: &str, nick: &str) -> Option<&'static str> {
    match line.as_bytes().first()? {
        b'*' | b'~' => Some("2"),
        b'!' => Some("31"),
        b'-' if line.starts_with("-- ") => Some("33"),
        b'-' | b'>' => Some("1;35"),
        b'=' => Some("36"),
        b'<' if line
            .strip_prefix('<')
            .is_some_and(|rest| rest.split_once("> ").is_some_and(|(name, _)| name == nick)) =>
        {
            Some("32")
        }
        _ => None,
    }
}

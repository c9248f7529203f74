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

impl Screen {
    pub fn terminal(printer: Printer) -> Screen {
        // See no-color.org: set and not empty means no color.
        Screen::Terminal { printer, colors: env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) }
    }

    pub fn plain() -> Screen {
        Screen::Plain
    }

    /// Shows a line of the server, which is already escaped.
    ///
    /// # Errors
    /// The output is closed.
    pub fn show(&mut self, line: &str) -> Result<(), String> {
        match self {
            Screen::Plain => writeln!(io::stdout(), "{line}").map_err(|e| format!("stdout: {e}")),
            Screen::Terminal { printer, colors } => {
                let text = for_people(line);
                let text = match color(line).filter(|_| *colors) {
                    Some(color) => format!("\x1b[{color}m{text}\x1b[0m\n"),
                    None => format!("{text}\n"),
                };
                printer.print(text).map_err(|e| format!("terminal: {e}"))
            }
        }
    }

    /// Shows a message of this program. Plain output belongs to the server, so there the message goes to stderr.
    pub fn note(&mut self, text: &str) {
        let _ = match self {
            Screen::Plain => writeln!(io::stderr(), "-- {text}").map_err(|e| e.to_string()),
            Screen::Terminal { .. } => self.show(&format!("-- {text}")),
        };
    }
}

/// Private messages say who sends and who gets them, `/me` is shown as an action, and times are local.
fn for_people(line: &str) -> String {
    if let Some((time, rest)) = line.strip_prefix("~ ").and_then(|rest| rest.split_once(' ')) {
        let time = local_time(time).unwrap_or_else(|| time.to_owned());
        return format!("~ {time} {}", for_people(rest));
    }
    let tagged = |open, close| line.strip_prefix(open)?.split_once(close).filter(|(nick, _)| !nick.contains(' '));
    if let Some((nick, action)) = tagged('<', "> /me ") {
        return format!("<{nick}> ~ {action} ~");
    }
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

fn color(line: &str) -> Option<&'static str> {
    match line.as_bytes().first()? {
        b'*' | b'~' => Some("2"),
        b'!' => Some("31"),
        b'-' if line.starts_with("-- ") => Some("33"),
        b'-' | b'>' => Some("1;35"),
        b'=' => Some("36"),
        _ => None,
    }
}

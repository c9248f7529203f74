//! What happens to a client.

use serde::{Deserialize, Serialize};

/// What happens to a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// It has sent a line: escaped, without its end.
    Line(String),
    /// It has sent a line that is no text.
    NotUtf8,
    /// It has sent more than a line may hold.
    TooLong,
    /// It has sent more than it may for too long.
    TooFast,
    /// It does not read what it is sent.
    TooSlow,
    /// It has said nothing for too long.
    Silent,
    /// End of file: it has closed, or at least said its last word.
    Closed,
    /// A reset, or another error of the connection.
    Lost,
    /// Whoever served it is dead.
    Crashed,
    /// The server stops.
    GoingDown,
    /// It is one too many.
    Full,
}

impl Event {
    /// For an event that ends a conversation: the reason, as the others read it, and the last words.
    pub(crate) fn farewell(&self, is_member: bool) -> Option<(&'static str, &'static str)> {
        Some(match self {
            Event::NotUtf8 | Event::TooLong if !is_member => ("", NICK_BAD),
            Event::Line(_) | Event::NotUtf8 => return None,
            Event::TooLong => ("line too long", "! line-too-long 1024 bytes are the most"),
            Event::TooFast => ("too fast", "! too-fast write slower, or say less"),
            Event::TooSlow => ("slow reader", "! slow-reader read faster, or say less"),
            Event::Silent if is_member => ("idle", "! idle and no line for too long"),
            Event::Silent => ("", "! idle and no nick for too long"),
            Event::Closed => ("closed", ""),
            Event::Lost => ("connection lost", ""),
            Event::Crashed => ("crashed", ""),
            Event::GoingDown if is_member => ("", "* server is going down"),
            Event::GoingDown => ("", "! going-down the server stops"),
            Event::Full => ("", "! server-full try again later"),
        })
    }
}

/// The first line was no nick.
pub(crate) const NICK_BAD: &str = "! nick-bad the first line is your nick: a letter, then up to 19 of A-Z a-z 0-9 _ -";

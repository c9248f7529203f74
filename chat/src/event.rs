//! What happens to a client, and what it is sent at the end.

use serde::{Deserialize, Serialize};

/// What happens to a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The client has sent a line: escaped, without its line end.
    Line(String),
    /// The client has sent a line that is not UTF-8.
    NotUtf8,
    /// The client has sent more bytes than a line may have.
    TooLong,
    /// The client has exceeded its rate for longer than `--flood-timeout`.
    TooFast,
    /// The client does not read what the server sends.
    TooSlow,
    /// The client has sent no line before its timeout.
    Silent,
    /// End of file: the client has closed its sending half, or the whole connection.
    Closed,
    /// A reset, or another error of the connection.
    Lost,
    /// The process that served the client has ended.
    Crashed,
    /// The server stops.
    GoingDown,
    /// The room is full.
    Full,
}

impl Event {
    /// For an event that ends a session: the reason, as the other members read it, and the final message to the client.
    pub(crate) fn ending(&self, is_member: bool) -> Option<(&'static str, &'static str)> {
        Some(match self {
            Event::NotUtf8 | Event::TooLong if !is_member => ("", NICK_BAD),
            Event::Line(_) | Event::NotUtf8 => return None,
            Event::TooLong => ("line too long", "! line-too-long a line has at most 1024 bytes"),
            Event::TooFast => ("too fast", "! too-fast write slower, or say less"),
            Event::TooSlow => ("slow reader", "! slow-reader read faster, or say less"),
            Event::Silent if is_member => ("idle", "! idle no line before the timeout"),
            Event::Silent => ("", "! idle no nick before the timeout"),
            Event::Closed => ("closed", ""),
            Event::Lost => ("connection lost", ""),
            Event::Crashed => ("crashed", ""),
            Event::GoingDown if is_member => ("", "* server is going down"),
            Event::GoingDown => ("", "! going-down the server stops"),
            Event::Full => ("", "! server-full try again later"),
        })
    }
}

/// The first line to every client.
pub const GREETING: &str = "* your nick? (letters, digits, _ and -; at most 20)";
/// The answer to a first line that is not a nick.
pub(crate) const NICK_BAD: &str = "! nick-bad the first line is your nick: a letter, then up to 19 of A-Z a-z 0-9 _ -";

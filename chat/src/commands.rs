//! What a line means: the nick, a command, or something said to the room.

use std::time::Instant;

use crate::client::ClientId;
use crate::event::NICK_BAD;
use crate::room::Room;

/// The longest nick.
pub const NICK_MAX: usize = 20;
/// Lines in the answer to `/history` without a number.
const HISTORY_DEFAULT: usize = 20;
/// Length after which a list of nicks continues in the next line.
const LIST_WIDTH: usize = 900;

const NO_ACCOUNTS: &str = "! login-failed this server has no accounts";

const USAGES: &[(&str, &str)] = &[
    ("nick", "/nick NEW"),
    ("list", "/list"),
    ("pm", "/pm NICK TEXT"),
    ("me", "/me TEXT"),
    ("history", "/history [N]"),
    ("echo", "/echo on|off"),
    ("help", "/help"),
];

pub(crate) const HELP: &str = "\
= help /nick NEW        change your nick
= help /list            list the members
= help /pm NICK TEXT    send to one member only
= help /me TEXT         say what you do
= help /history [N]     the last lines, at most 100
= help /echo on|off     also get your own lines
= help /quit [TEXT]     leave (also /exit)
= end help";

impl<H: Clone + Default> Room<H> {
    /// A line of a client without a nick.
    pub(crate) fn first_line(&mut self, id: ClientId, text: &str, now: Instant) {
        let nick = match text.split_once(' ') {
            None => text,
            Some(("/nick", nick)) => nick,
            Some(("/login", _)) => return self.send(id, NO_ACCOUNTS, now),
            Some(_) => return self.leave_with(id, "", NICK_BAD, now),
        };
        if !is_nick(nick) {
            return self.leave_with(id, "", NICK_BAD, now);
        }
        if !self.take_nick(id, nick) {
            return self.send(id, &format!("! nick-taken {nick} is here already"), now);
        }
        let here = self.nicks.len();
        self.send(id, &format!("* welcome {nick}; {here} here, /help lists the commands"), now);
        self.broadcast(Some(id), &format!("* {nick} joined"), now);
    }

    /// Gives a client a nick, if no other client has it.
    fn take_nick(&mut self, id: ClientId, nick: &str) -> bool {
        let key = nick.to_ascii_lowercase();
        if self.nicks.get(&key).is_some_and(|owner| *owner != id) {
            return false;
        }
        if let Some(client) = self.clients.get_mut(&id) {
            if let Some(old) = client.nick.replace(nick.to_owned()) {
                self.nicks.remove(&old.to_ascii_lowercase());
            }
            self.nicks.insert(key, id);
        }
        true
    }

    /// A line of a member.
    pub(crate) fn command(&mut self, id: ClientId, text: &str, now: Instant) {
        if text.is_empty() {
            return;
        }
        let Some(command) = text.strip_prefix('/') else { return self.say(id, text, now) };
        let (word, rest) = command.split_once(' ').unwrap_or((command, ""));
        let rest = rest.trim_matches(' ');
        let answer = match (word, rest) {
            ("nick", nick) if !nick.is_empty() => return self.rename(id, nick, now),
            ("me", action) if !action.is_empty() => return self.say(id, &format!("/me {action}"), now),
            ("pm", _) if rest.contains(' ') => return self.private(id, rest, now),
            ("quit" | "exit", "") => return self.leave_with(id, "quit", "* bye", now),
            ("quit" | "exit", why) => return self.leave_with(id, why, "* bye", now),
            ("list", "") => self.list(),
            ("history", "") => self.history.answer(HISTORY_DEFAULT),
            ("history", n) if n.parse::<usize>().is_ok() => self.history.answer(n.parse().unwrap_or_default()),
            ("echo", "on" | "off") => {
                if let Some(client) = self.clients.get_mut(&id) {
                    client.echo = rest == "on";
                }
                format!("= echo {rest}")
            }
            ("help", "") => HELP.to_owned(),
            ("login", _) => NO_ACCOUNTS.to_owned(),
            _ => match USAGES.iter().find(|(known, _)| *known == word) {
                Some((_, usage)) => format!("! usage {usage}"),
                None => format!("! no-such-command /{word}; /help lists the commands"),
            },
        };
        self.send(id, &answer, now);
    }

    /// Said to the room. The sender does not get its own line, except after `/echo on`.
    fn say(&mut self, id: ClientId, text: &str, now: Instant) {
        let Some(client) = self.clients.get(&id) else { return };
        let line = format!("<{}> {text}", client.nick.as_deref().unwrap_or_default());
        let except = if client.echo { None } else { Some(id) };
        self.broadcast(except, &line, now);
        self.record(line);
    }

    fn rename(&mut self, id: ClientId, nick: &str, now: Instant) {
        let old = self.nick(id).to_owned();
        if !is_nick(nick) {
            self.send(id, "! nick-bad a letter, then up to 19 of A-Z a-z 0-9 _ -", now);
        } else if self.take_nick(id, nick) {
            self.broadcast(None, &format!("* {old} is now {nick}"), now);
        } else {
            self.send(id, &format!("! nick-taken {nick} is here already"), now);
        }
    }

    /// Said to one member, and confirmed to the sender. It is neither in the history nor in the log.
    fn private(&mut self, id: ClientId, rest: &str, now: Instant) {
        let (nick, text) = rest.split_once(' ').unwrap_or((rest, ""));
        let Some(to) = self.nicks.get(&nick.to_ascii_lowercase()).copied() else {
            return self.send(id, &format!("! no-such-nick {nick}"), now);
        };
        let (from, nick) = (self.nick(id).to_owned(), self.nick(to).to_owned());
        let text = text.trim_start_matches(' ');
        self.send(to, &format!("-{from}- {text}"), now);
        self.send(id, &format!(">{nick}< {text}"), now);
    }

    /// All nicks, in as many lines as needed. Each line except the last ends in `...`, which is not a nick.
    fn list(&self) -> String {
        let mut text = String::from("= list");
        let mut width = text.len();
        for nick in self.nicks.values().map(|id| self.nick(*id)) {
            if width + nick.len() >= LIST_WIDTH {
                text += " ...\n= list";
                width = 0;
            }
            text = text + " " + nick;
            width += 1 + nick.len();
        }
        text
    }

    fn nick(&self, id: ClientId) -> &str {
        self.clients.get(&id).and_then(|client| client.nick.as_deref()).unwrap_or_default()
    }
}

/// True for a letter, followed by up to 19 letters, digits, `_` or `-`.
pub fn is_nick(text: &str) -> bool {
    text.len() <= NICK_MAX
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

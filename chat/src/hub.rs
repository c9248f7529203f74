//! The room: who is in it, what is said to whom. No socket, no thread, no clock; see the crate's page for its use.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::cli::Limits;
use crate::history::Said;

/// A connection, as the server numbers it. Never used twice: a descriptor's number is, and would name a stranger.
pub type ConnId = u64;

/// Longest nick.
pub const NICK_MAX: usize = 20;
/// Most lines that `/history` answers with.
pub const HISTORY_MOST: usize = 100;
/// Lines that `/history` answers with, unless asked for more.
const HISTORY_USUAL: usize = 20;
/// Most bytes of an answer to `/history`: it must not make a reader slow by itself.
const HISTORY_BYTES: usize = 64 * 1024;
/// Where a list of nicks goes on in the next line.
const LIST_WIDTH: usize = 900;

/// What happened to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It has been accepted.
    Connected(IpAddr),
    /// It has sent a line: escaped, without its end. From [`Input::next`](crate::Input::next).
    Line(String),
    /// It has sent a line that is no text. From [`Input::next`](crate::Input::next).
    NotUtf8,
    /// It has sent more than a line may hold. From [`Input::next`](crate::Input::next).
    TooLong,
    /// It has sent more than it may for too long. From [`Input::next`](crate::Input::next).
    TooFast,
    /// Its outbox overflowed or did not move. From [`Outbox`](crate::Outbox).
    TooSlow,
    /// Its [`deadline`](Hub::deadline_of) may be over.
    Tick,
    /// Its connection is gone.
    Gone(Why),
}

/// Why a connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// End of file: it has closed, or at least said its last word.
    Closed,
    /// A reset, or another error of the connection.
    Lost,
    /// Its worker died.
    Crashed,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::Closed => "closed",
            Why::Lost => "connection lost",
            Why::Crashed => "crashed",
        })
    }
}

/// To whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// One client, who need not have a nick yet.
    One(ConnId),
    /// All in the room.
    All,
    /// All in the room but one.
    AllBut(ConnId),
    /// The chat log: hand the bytes to [`history::Log::append`](crate::history::Log::append), in this order.
    Log,
}

/// What happens to the receivers afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The conversation goes on.
    Keep,
    /// These were the last words: flush, FIN, close. The hub has forgotten the client and its events mean nothing.
    Close,
}

/// Whole lines, ready for the wire, to be shared by all who receive them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Out {
    /// The receivers.
    pub to: To,
    /// The lines. Empty in a bare [`Then::Close`].
    pub bytes: Arc<[u8]>,
    /// What follows.
    pub then: Then,
}

#[derive(Debug)]
struct Client {
    address: IpAddr,
    /// None until the handshake is done.
    nick: Option<String>,
    echo: bool,
    deadline: Instant,
    /// Where it stands in the timers: never later than the deadline.
    timer: Instant,
}

/// The room.
#[derive(Debug)]
pub struct Hub {
    limits: Limits,
    clients: BTreeMap<ConnId, Client>,
    /// Nicks in lower case: two that differ in case only are one.
    nicks: BTreeMap<String, ConnId>,
    /// One entry for each client. A line moves the deadline, not the entry: that happens when it fires.
    timers: BTreeSet<(Instant, ConnId)>,
    said: VecDeque<Said>,
    number: u64,
    /// One moment on both clocks; the time of day follows from it.
    epoch: (Instant, SystemTime),
    going_down: bool,
}

macro_rules! line {
    ($($arg:tt)*) => { Arc::<[u8]>::from(format!("{}\n", format_args!($($arg)*)).into_bytes()) };
}

impl Out {
    fn keep(to: To, bytes: Arc<[u8]>) -> Out {
        Out { to, bytes, then: Then::Keep }
    }

    fn close(to: To, bytes: Arc<[u8]>) -> Out {
        Out { to, bytes, then: Then::Close }
    }
}

impl Hub {
    /// An empty room. `now` and `time_of_day` are the same moment.
    pub fn new(limits: &Limits, now: Instant, time_of_day: SystemTime) -> Hub {
        Hub {
            limits: limits.clone(),
            clients: BTreeMap::new(),
            nicks: BTreeMap::new(),
            timers: BTreeSet::new(),
            said: VecDeque::new(),
            number: 0,
            epoch: (now, time_of_day),
            going_down: false,
        }
    }

    /// What was said before the server started ([`history::Log::open`](crate::history::Log::open)).
    pub fn recall(&mut self, said: impl IntoIterator<Item = Said>) {
        for said in said {
            self.number = self.number.max(said.number);
            self.keep(said);
        }
    }

    /// Something happened to a client: what is to be sent, in this order. Resolve receivers with
    /// [`receivers`](Self::receivers) before the next call. An event of a client that has had its last words, or was
    /// never connected, means nothing.
    pub fn handle(&mut self, id: ConnId, event: Event, now: Instant) -> Vec<Out> {
        if let Event::Connected(address) = event {
            return self.connected(id, address, now);
        }
        let Some(client) = self.clients.get(&id) else { return Vec::new() };
        let joined = client.nick.is_some();
        match event {
            Event::Connected(_) => Vec::new(),
            Event::Gone(why) => self.leave(id, &why.to_string(), None),
            Event::Tick if client.deadline > now => Vec::new(),
            Event::Tick if joined => self.leave(id, "idle", Some("! idle and no line for too long")),
            Event::Tick => self.leave(id, "", Some("! idle and no nick for too long")),
            Event::TooSlow => self.leave(id, "slow reader", Some("! slow-reader read faster, or say less")),
            Event::TooFast => self.leave(id, "too fast", Some("! too-fast write slower, or say less")),
            Event::Line(text) if !joined => self.greet(id, &text, now),
            Event::NotUtf8 | Event::TooLong if !joined => self.refuse_nick(id),
            Event::TooLong => self.leave(id, "line too long", Some("! line-too-long 1024 bytes are the most")),
            Event::NotUtf8 => {
                self.alive(id, now);
                vec![Out::keep(To::One(id), line!("! not-utf8 say it in UTF-8"))]
            }
            Event::Line(text) => {
                self.alive(id, now);
                self.line(id, &text, now)
            }
        }
    }

    /// When [`expire`](Self::expire) has something to do: an event loop sleeps no longer than that.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// When [`Event::Tick`] has something to do for this client, where each client has a thread, task or process.
    pub fn deadline_of(&self, id: ConnId) -> Option<Instant> {
        self.clients.get(&id).map(|client| client.deadline)
    }

    /// Ends the clients whose time is over.
    pub fn expire(&mut self, now: Instant) -> Vec<Out> {
        let mut outs = Vec::new();
        while let Some((_, id)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.pop_first();
            outs.extend(self.handle(id, Event::Tick, now));
            if let Some(client) = self.clients.get_mut(&id) {
                client.timer = client.deadline;
                self.timers.insert((client.timer, id));
            }
        }
        outs
    }

    /// The server stops: everybody's last words. Who connects later is told so too.
    pub fn shut_down(&mut self) -> Vec<Out> {
        self.going_down = true;
        let bytes = line!("! going-down the server stops");
        let waiting = self.clients.iter().filter(|(_, client)| client.nick.is_none());
        let mut outs: Vec<Out> = waiting.map(|(id, _)| Out::close(To::One(*id), Arc::clone(&bytes))).collect();
        let bytes = line!("* server is going down");
        outs.extend(self.nicks.values().map(|id| Out::close(To::One(*id), Arc::clone(&bytes))));
        self.clients.clear();
        self.nicks.clear();
        self.timers.clear();
        outs
    }

    /// Who is meant. Empty for the log.
    pub fn receivers(&self, to: To) -> impl Iterator<Item = ConnId> {
        let (one, but) = match to {
            To::One(id) => (Some(id), None),
            To::All => (None, None),
            To::AllBut(id) => (None, Some(id)),
            To::Log => (None, None),
        };
        let room = matches!(to, To::All | To::AllBut(_)).then_some(&self.nicks);
        one.into_iter()
            .chain(room.into_iter().flat_map(|room| room.values().copied()).filter(move |id| Some(*id) != but))
    }

    /// The clients, with and without a nick.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// True if nobody is connected.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// The nick of a client, for the server's own log.
    pub fn nick(&self, id: ConnId) -> Option<&str> {
        self.clients.get(&id)?.nick.as_deref()
    }

    fn connected(&mut self, id: ConnId, address: IpAddr, now: Instant) -> Vec<Out> {
        if self.going_down {
            return vec![Out::close(To::One(id), line!("! going-down the server stops"))];
        }
        let full = self.clients.len() >= self.limits.max_conns as usize;
        let neighbors = || self.clients.values().filter(|client| client.address == address).count();
        if full || (!address.is_loopback() && neighbors() >= self.limits.max_per_addr as usize) {
            return vec![Out::close(To::One(id), line!("! server-full try again later"))];
        }
        let deadline = now + Duration::from_millis(self.limits.handshake_timeout);
        self.timers.insert((deadline, id));
        self.clients.insert(id, Client { address, nick: None, echo: false, deadline, timer: deadline });
        Vec::new()
    }

    /// A line before the nick is accepted.
    fn greet(&mut self, id: ConnId, text: &str, now: Instant) -> Vec<Out> {
        let nick = match text.split_once(' ') {
            None => text,
            Some(("/nick", nick)) => nick,
            Some(("/login", _)) => {
                return vec![Out::keep(To::One(id), line!("! login-failed there are no accounts here"))];
            }
            Some(_) => return self.refuse_nick(id),
        };
        if !is_nick(nick) {
            return self.refuse_nick(id);
        }
        if let Err(taken) = self.take_nick(id, nick) {
            return vec![Out::keep(To::One(id), taken)];
        }
        self.alive(id, now);
        let here = self.nicks.len();
        vec![
            Out::keep(To::One(id), line!("* welcome {nick}; {here} here, /help lists the commands")),
            Out::keep(To::AllBut(id), line!("* {nick} joined")),
        ]
    }

    fn refuse_nick(&mut self, id: ConnId) -> Vec<Out> {
        self.leave(id, "", Some("! nick-bad the first line is your nick: a letter, then up to 19 of A-Z a-z 0-9 _ -"))
    }

    /// Gives a client a nick, if it is free.
    fn take_nick(&mut self, id: ConnId, nick: &str) -> Result<(), Arc<[u8]>> {
        let key = nick.to_ascii_lowercase();
        if self.nicks.get(&key).is_some_and(|owner| *owner != id) {
            return Err(line!("! nick-taken {nick} is here already"));
        }
        if let Some(client) = self.clients.get_mut(&id) {
            if let Some(old) = client.nick.replace(nick.to_owned()) {
                self.nicks.remove(&old.to_ascii_lowercase());
            }
            self.nicks.insert(key, id);
        }
        Ok(())
    }

    /// A sign of life. The timer stays where it is.
    fn alive(&mut self, id: ConnId, now: Instant) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.deadline = now + Duration::from_millis(self.limits.idle_timeout);
        }
    }

    /// Forgets a client; the others are told, once, if they had been told that it came.
    fn leave(&mut self, id: ConnId, why: &str, last: Option<&str>) -> Vec<Out> {
        let last = last.map(|last| line!("{last}")).unwrap_or_else(|| Arc::new([]));
        let mut outs = vec![Out::close(To::One(id), last)];
        let Some(client) = self.clients.remove(&id) else { return Vec::new() };
        self.timers.remove(&(client.timer, id));
        if let Some(nick) = client.nick {
            self.nicks.remove(&nick.to_ascii_lowercase());
            outs.push(Out::keep(To::All, line!("* {nick} left ({why})")));
        }
        outs
    }

    /// A line of a member.
    fn line(&mut self, id: ConnId, text: &str, now: Instant) -> Vec<Out> {
        if text.is_empty() {
            return Vec::new();
        }
        let Some(command) = text.strip_prefix('/') else { return self.say(id, text, now) };
        let (word, rest) = command.split_once(' ').unwrap_or((command, ""));
        let rest = rest.trim_matches(' ');
        let answer = match (word, rest) {
            ("nick", nick) if !nick.is_empty() => return self.rename(id, nick),
            ("me", action) if !action.is_empty() => return self.say(id, &format!("/me {action}"), now),
            ("pm", _) if rest.contains(' ') => return self.private(id, rest),
            ("quit" | "exit", _) => {
                let why = if rest.is_empty() { "quit" } else { rest };
                return self.leave(id, why, Some("* bye"));
            }
            ("list", "") => self.list(),
            ("history", "") => self.history(HISTORY_USUAL),
            ("history", n) => match n.parse() {
                Ok(n) => self.history(n),
                Err(_) => line!("! usage /history [N]"),
            },
            ("echo", "on" | "off") => {
                if let Some(client) = self.clients.get_mut(&id) {
                    client.echo = rest == "on";
                }
                line!("= echo {rest}")
            }
            ("help", "") => HELP.as_bytes().into(),
            ("login", _) => line!("! login-failed there are no accounts here"),
            _ => match USAGES.iter().find(|(known, _)| *known == word) {
                Some((_, usage)) => line!("! usage {usage}"),
                None => line!("! no-such-command /{word}; /help lists them"),
            },
        };
        vec![Out::keep(To::One(id), answer)]
    }

    /// Said to the room. The sender knows what it said, unless it asked for `/echo on`.
    fn say(&mut self, id: ConnId, text: &str, now: Instant) -> Vec<Out> {
        let Some(client) = self.clients.get(&id) else { return Vec::new() };
        let nick = client.nick.as_deref().unwrap_or_default();
        let to = if client.echo { To::All } else { To::AllBut(id) };
        self.number += 1;
        let time = self.epoch.1 + now.saturating_duration_since(self.epoch.0);
        let said = Said::new(time, self.number, format!("<{nick}> {text}"));
        let outs = vec![Out::keep(to, line!("{}", said.line)), Out::keep(To::Log, said.record().into())];
        self.keep(said);
        outs
    }

    fn keep(&mut self, said: Said) {
        self.said.push_back(said);
        if self.said.len() > self.limits.history {
            self.said.pop_front();
        }
    }

    fn rename(&mut self, id: ConnId, nick: &str) -> Vec<Out> {
        if !is_nick(nick) {
            let text = line!("! nick-bad a letter, then up to 19 of A-Z a-z 0-9 _ -");
            return vec![Out::keep(To::One(id), text)];
        }
        let old = self.nick(id).unwrap_or_default().to_owned();
        match self.take_nick(id, nick) {
            Ok(()) => vec![Out::keep(To::All, line!("* {old} is now {nick}"))],
            Err(taken) => vec![Out::keep(To::One(id), taken)],
        }
    }

    /// Said to one, and confirmed to the sender. Neither in the history nor in the log.
    fn private(&self, id: ConnId, rest: &str) -> Vec<Out> {
        let (nick, text) = rest.split_once(' ').unwrap_or((rest, ""));
        let Some(to) = self.nicks.get(&nick.to_ascii_lowercase()) else {
            return vec![Out::keep(To::One(id), line!("! no-such-nick {nick}"))];
        };
        let (from, nick) = (self.nick(id).unwrap_or_default(), self.nick(*to).unwrap_or(nick));
        let text = text.trim_start_matches(' ');
        vec![Out::keep(To::One(*to), line!("-{from}- {text}")), Out::keep(To::One(id), line!(">{nick}< {text}"))]
    }

    /// All nicks, in as many lines as it takes.
    fn list(&self) -> Arc<[u8]> {
        let mut text = String::from("= list");
        let mut width = text.len();
        for nick in self.nicks.values().filter_map(|id| self.nick(*id)) {
            if width + nick.len() >= LIST_WIDTH {
                text += "\n= list";
                width = 0;
            }
            text = text + " " + nick;
            width += 1 + nick.len();
        }
        line!("{text}\n= end list")
    }

    fn history(&self, n: usize) -> Arc<[u8]> {
        let mut room = HISTORY_BYTES;
        let fits = |said: &&Said| {
            let size = said.line.len() + 64;
            room = room.saturating_sub(size);
            room > 0
        };
        let last: Vec<&Said> = self.said.iter().rev().take(n.min(HISTORY_MOST)).take_while(fits).collect();
        let text: String = last.iter().rev().map(|said| format!("~ {} {}\n", said.time, said.line)).collect();
        line!("{text}= end history")
    }
}

/// A letter, then up to 19 letters, digits, `_` or `-`.
fn is_nick(text: &str) -> bool {
    text.len() <= NICK_MAX
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

const USAGES: &[(&str, &str)] = &[
    ("nick", "/nick NEW"),
    ("list", "/list"),
    ("pm", "/pm NICK TEXT"),
    ("me", "/me TEXT"),
    ("history", "/history [N]"),
    ("echo", "/echo on|off"),
    ("help", "/help"),
];

const HELP: &str = "\
= help /nick NEW        another nick
= help /list            who is here
= help /pm NICK TEXT    to one only
= help /me TEXT         what you do
= help /history [N]     the last lines, at most 100
= help /echo on|off     your own lines, too
= help /quit [TEXT]     leave (also /exit)
= end help
";

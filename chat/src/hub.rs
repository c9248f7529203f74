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

    /// Instead of [`Event::Connected`], where the server lacks something for this client: a thread, a small number.
    pub fn refuse(&self, id: ConnId) -> Vec<Out> {
        vec![Out::close(To::One(id), line!("! server-full try again later"))]
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
            return self.refuse(id);
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

    /// A sign of life. The timer stays where it is, unless the deadline is nearer: that of the handshake may be farther.
    fn alive(&mut self, id: ConnId, now: Instant) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.deadline = now + Duration::from_millis(self.limits.idle_timeout);
            if client.deadline < client.timer {
                self.timers.remove(&(client.timer, id));
                client.timer = client.deadline;
                self.timers.insert((client.timer, id));
            }
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

    /// All nicks, in as many lines as it takes; all but the last end in `...`, which is no nick.
    fn list(&self) -> Arc<[u8]> {
        let mut text = String::from("= list");
        let mut width = text.len();
        for nick in self.nicks.values().filter_map(|id| self.nick(*id)) {
            if width + nick.len() >= LIST_WIDTH {
                text += " ...\n= list";
                width = 0;
            }
            text = text + " " + nick;
            width += 1 + nick.len();
        }
        line!("{text}")
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
pub fn is_nick(text: &str) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::{Input, Next};
    use proptest::prelude::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// A room, and what each client would have read.
    struct Room {
        hub: Hub,
        now: Instant,
        inputs: BTreeMap<ConnId, Input>,
        read: BTreeMap<ConnId, String>,
        closed: BTreeSet<ConnId>,
        log: String,
    }

    impl Room {
        fn new(limits: &Limits) -> Room {
            let now = Instant::now();
            let hub = Hub::new(limits, now, SystemTime::UNIX_EPOCH);
            let none = BTreeMap::new;
            Room { hub, now, inputs: none(), read: BTreeMap::new(), closed: BTreeSet::new(), log: String::new() }
        }

        fn with(nicks: &[&str]) -> Room {
            let mut room = Room::new(&Limits::default());
            for (id, nick) in (1..).zip(nicks) {
                room.connect(id);
                room.send(id, format!("{nick}\n").as_bytes());
            }
            room.read.clear();
            room
        }

        fn event(&mut self, id: ConnId, event: Event) {
            let outs = self.hub.handle(id, event, self.now);
            self.deliver(outs);
        }

        fn deliver(&mut self, outs: Vec<Out>) {
            for out in outs {
                let text = String::from_utf8(out.bytes.to_vec()).unwrap();
                if out.to == To::Log {
                    self.log += &text;
                }
                for to in self.hub.receivers(out.to).collect::<Vec<_>>() {
                    assert!(!self.closed.contains(&to), "{text:?} after the last words of {to}");
                    self.read.entry(to).or_default().push_str(&text);
                    if out.then == Then::Close {
                        self.closed.insert(to);
                    }
                }
            }
        }

        fn connect(&mut self, id: ConnId) {
            self.inputs.insert(id, Input::new(&Limits::default(), self.now));
            self.event(id, Event::Connected(HERE));
        }

        fn send(&mut self, id: ConnId, bytes: &[u8]) {
            self.inputs.get_mut(&id).unwrap().feed(bytes);
            loop {
                match self.inputs.get_mut(&id).unwrap().next(self.now) {
                    Next::Tell(event) => self.event(id, event),
                    Next::Read => return,
                    Next::Wait(until) => self.now = until,
                }
            }
        }

        fn take(&mut self, id: ConnId) -> String {
            self.read.remove(&id).unwrap_or_default()
        }

        /// What 1 and 2 read after 1 sent this.
        fn said(&mut self, bytes: &[u8]) -> (String, String) {
            self.send(1, bytes);
            (self.take(1), self.take(2))
        }
    }

    fn two(own: &str, other: &str) -> (String, String) {
        (own.into(), other.into())
    }

    #[test]
    fn k1_a_nick_is_a_welcome() {
        for first in ["bob\n", "/nick bob\n", "bob\r\n"] {
            let mut room = Room::with(&["alice"]);
            room.connect(2);
            room.send(2, first.as_bytes());
            assert_eq!(room.take(2), "* welcome bob; 2 here, /help lists the commands\n");
            assert_eq!(room.take(1), "* bob joined\n");
        }
    }

    #[test]
    fn k2_k4_no_nick_no_entry() {
        let long = "x".repeat(600);
        for first in [
            b"\n".as_slice(),
            b"a b\n",
            b"bob\x1b[31m\n",
            b"b\0b\n",
            b"\xc3\xa9ric\n",
            b"\xff\n",
            b"abcdefghijklmnopqrstu\n",
            b"1bob\n",
            b"-bob\n",
            b"SYSTEM:\n",
            b"* bob\n",
            b"<bob>\n",
            b"/nick \n",
            b"/quit\n",
            b"POST / HTTP/1.1\r\nHost: x\r\n\r\nhello\r\n",
            long.as_bytes(),
        ] {
            let mut room = Room::with(&["alice"]);
            room.connect(2);
            room.send(2, first);
            let text = room.take(2);
            assert!(text.starts_with("! nick-bad ") && text.lines().count() == 1, "{first:?}: {text}");
            assert!(room.closed.contains(&2) && room.take(1).is_empty(), "{first:?}");
        }
        let mut room = Room::with(&["alice"]);
        room.connect(2);
        room.send(2, b"abcdefghijklmnopqr-_\n");
        assert!(room.take(2).starts_with("* welcome abcdefghijklmnopqr-_; "));
    }

    #[test]
    fn k3_a_nick_is_one_whatever_its_case() {
        let mut room = Room::with(&["bob"]);
        room.connect(2);
        for taken in ["bob\n", "BOB\n", "/nick Bob\n"] {
            room.send(2, taken.as_bytes());
            assert!(room.take(2).starts_with("! nick-taken "));
        }
        room.send(2, b"rob\n");
        assert!(room.take(2).starts_with("* welcome rob; 2 here"));
        room.event(1, Event::Gone(Why::Closed));
        room.send(2, b"/nick BOB\n");
        assert_eq!(room.take(2), "* bob left (closed)\n* rob is now BOB\n");
    }

    #[test]
    fn k5_to_k10_what_is_said() {
        let full = [b'y'; 1023];
        let mut room = Room::with(&["bob", "alice"]);
        assert_eq!(room.said(b"hi\r\n"), two("", "<bob> hi\n"));
        assert_eq!(
            room.said("\x1b[2J\x1b]0;pwn\x07 \u{202e}\u{200b}\u{9b} a\rb\n".as_bytes()),
            two("", "<bob> \\x1b[2J\\x1b]0;pwn\\x07 \\u{202e}\\u{200b}\\x9b a\\x0db\n")
        );
        let (own, other) = room.said(b"x\xff\xfe\n");
        assert!(own.starts_with("! not-utf8 ") && other.is_empty());
        room.send(1, b"caf\xc3");
        assert_eq!(room.said(b"\xa9\n"), two("", "<bob> caf\u{e9}\n"));
        assert_eq!(room.said(b"hi\n* root joined\n"), two("", "<bob> hi\n<bob> * root joined\n"));
        room.send(1, &full);
        assert_eq!(room.said(b"\n").1.len(), 6 + 1024);
        room.send(1, &full);
        let (own, other) = room.said(b"y\n");
        assert!(own.starts_with("! line-too-long ") && room.closed.contains(&1));
        assert_eq!(other, "* bob left (line too long)\n");
    }

    #[test]
    fn k11_half_a_line_is_none() {
        let mut room = Room::with(&["bob", "alice"]);
        room.send(1, b"half a line");
        room.event(1, Event::Gone(Why::Lost));
        room.event(1, Event::Gone(Why::Closed));
        room.event(1, Event::TooSlow);
        assert_eq!(room.take(2), "* bob left (connection lost)\n");
    }

    #[test]
    fn k12_a_thousand_lines_in_order() {
        let mut room = Room::with(&["bob", "alice"]);
        let lines: String = (0..1000).map(|nth| format!("line {nth}\n")).collect();
        let (_, other) = room.said(lines.as_bytes());
        let expected: String = (0..1000).map(|nth| format!("<bob> line {nth}\n")).collect();
        assert_eq!(other, expected);
    }

    #[test]
    fn commands() {
        let mut room = Room::with(&["bob", "alice"]);
        for (sent, own, other) in [
            ("/list", "= list alice bob\n", ""),
            ("/me waves", "", "<bob> /me waves\n"),
            ("/pm ALICE  psst, you", ">alice< psst, you\n", "-bob- psst, you\n"),
            ("/pm nobody hi", "! no-such-nick nobody\n", ""),
            ("/pm alice", "! usage /pm NICK TEXT\n", ""),
            ("/pm", "! usage /pm NICK TEXT\n", ""),
            ("/me", "! usage /me TEXT\n", ""),
            ("/me ", "! usage /me TEXT\n", ""),
            ("/nick", "! usage /nick NEW\n", ""),
            ("/nick a b", "! nick-bad a letter, then up to 19 of A-Z a-z 0-9 _ -\n", ""),
            ("/nick Alice", "! nick-taken Alice is here already\n", ""),
            ("/nick Bob", "* bob is now Bob\n", "* bob is now Bob\n"),
            ("/nick rob", "* Bob is now rob\n", "* Bob is now rob\n"),
            ("/nick bob", "* rob is now bob\n", "* rob is now bob\n"),
            ("/echo", "! usage /echo on|off\n", ""),
            ("/echo on", "= echo on\n", ""),
            ("heard", "<bob> heard\n", "<bob> heard\n"),
            ("/echo off", "= echo off\n", ""),
            ("", "", ""),
            ("/help", HELP, ""),
            ("/dance", "! no-such-command /dance; /help lists them\n", ""),
            ("/", "! no-such-command /; /help lists them\n", ""),
            ("/history x", "! usage /history [N]\n", ""),
            ("/history -1", "! usage /history [N]\n", ""),
            ("/history 0", "= end history\n", ""),
            ("/history 1", "~ 1970-01-01T00:00:00.000Z <bob> heard\n= end history\n", ""),
            (
                "/history 99999999",
                "~ 1970-01-01T00:00:00.000Z <bob> /me waves\n~ 1970-01-01T00:00:00.000Z <bob> heard\n= end history\n",
                "",
            ),
        ] {
            room.now += Duration::from_secs(10);
            room.hub.epoch.0 = room.now;
            for said in &mut room.hub.said {
                said.time = "1970-01-01T00:00:00.000Z".into();
            }
            assert_eq!(room.said(format!("{sent}\n").as_bytes()), two(own, other), "{sent}");
        }
        assert_eq!(room.said(b"/quit gone fishing\nmore\n"), two("* bye\n", "* bob left (gone fishing)\n"));
        let mut room = Room::with(&["bob", "alice"]);
        assert_eq!(room.said(b"/exit\n"), two("* bye\n", "* bob left (quit)\n"));
        assert!(room.closed.contains(&1));
    }

    #[test]
    fn time_ends_who_says_nothing() {
        let limits = Limits::default();
        let mut room = Room::with(&["bob", "alice"]);
        room.connect(3);
        assert_eq!(room.hub.deadline(), Some(room.now + Duration::from_millis(limits.handshake_timeout)));
        room.now += Duration::from_millis(limits.handshake_timeout);
        let outs = room.hub.expire(room.now);
        room.deliver(outs);
        assert!(room.take(3).starts_with("! idle ") && room.take(1).is_empty(), "nobody knew of it");
        room.send(1, b"\n");
        room.now += Duration::from_millis(limits.idle_timeout - 1);
        let outs = room.hub.expire(room.now);
        room.deliver(outs);
        assert!(room.take(2).starts_with("! idle "));
        assert_eq!(room.take(1), "* alice left (idle)\n");
        let deadline = room.hub.deadline_of(1).unwrap();
        assert_eq!(room.hub.deadline(), Some(deadline));
        room.now = deadline;
        room.event(1, Event::Tick);
        assert!(room.take(1).starts_with("! idle ") && room.hub.deadline().is_none());
    }

    #[test]
    fn an_idle_timeout_shorter_than_that_of_the_handshake() {
        let limits = Limits { idle_timeout: 600, ..Limits::default() };
        assert!(limits.idle_timeout < limits.handshake_timeout);
        let mut room = Room::new(&limits);
        room.connect(1);
        room.send(1, b"bob\n");
        assert_eq!(room.hub.deadline(), room.hub.deadline_of(1), "a loop sleeps no longer than to the first deadline");
    }

    #[test]
    fn a_full_house_and_a_closing_one() {
        let limits = Limits { max_conns: 3, max_per_addr: 1, ..Limits::default() };
        let mut room = Room::new(&limits);
        let far: IpAddr = [192, 0, 2, 1].into();
        room.event(1, Event::Connected(far));
        room.event(2, Event::Connected(far));
        assert!(room.take(2).starts_with("! server-full "), "one of an address");
        room.connect(3);
        room.connect(4);
        room.connect(5);
        assert!(room.take(5).starts_with("! server-full ") && room.closed.contains(&5));
        assert_eq!(room.hub.len(), 3);
        room.send(3, b"bob\n");
        room.read.clear();
        let outs = room.hub.shut_down();
        room.deliver(outs);
        assert_eq!(
            (room.take(3), room.take(4)),
            ("* server is going down\n".into(), "! going-down the server stops\n".into())
        );
        room.connect(6);
        assert!(room.take(6).starts_with("! going-down ") && room.hub.is_empty());
    }

    #[test]
    fn a_long_list_goes_on() {
        let nicks: Vec<String> = (0..200).map(|n| format!("member-number-{n}")).collect();
        let mut room = Room::with(&nicks.iter().map(String::as_str).collect::<Vec<_>>());
        let (text, _) = room.said(b"/list\n");
        assert!(text.lines().count() > 2 && text.lines().all(|line| line.len() <= 1024));
        let (last, rest) = text.lines().rev().collect::<Vec<_>>().split_first().map(|(a, b)| (*a, b.to_vec())).unwrap();
        assert!(rest.iter().all(|line| line.ends_with(" ...")) && !last.ends_with("..."));
        let listed = text.split_whitespace().filter(|word| word.starts_with("member")).count();
        assert_eq!(listed, 200);
    }

    #[test]
    fn the_past_is_recalled_and_goes_on() {
        let mut room = Room::with(&["bob"]);
        room.send(1, b"one\n");
        let old: Vec<Said> = room.hub.said.iter().cloned().collect();
        let mut room = Room::with(&["alice"]);
        room.hub.recall(old);
        room.send(1, b"two\n");
        assert!(room.log.contains(" 2 <alice> two\n"), "{}", room.log);
        room.send(1, b"/history\n");
        let text = room.take(1);
        assert!(text.contains(" <bob> one\n") && text.contains(" <alice> two\n"), "{text}");
    }

    #[test]
    fn an_answer_does_not_make_a_reader_slow() {
        let mut room = Room::with(&["bob", "alice"]);
        for _ in 0..120 {
            room.send(1, &[[1; 1000].as_slice(), b"\n"].concat());
        }
        room.read.clear();
        let (text, _) = room.said(b"/history 100\n");
        assert!((30_000..=crate::cli::OUTBOX / 2).contains(&text.len()), "{}", text.len());
        assert!(text.lines().all(|line| line.len() < crate::line::SENT_MAX));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Connect,
        Send(usize, String),
        Gone(usize),
        Slow(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let text = prop_oneof![
            6 => "[a-z]{1,3}", 2 => "/(echo (on|off)|list|me x|quit|nick [a-c]{1,2}|history|pm [a-c] x)", 1 => "\\PC{0,8}"
        ];
        prop_oneof![
            2 => Just(Step::Connect),
            12 => (0usize..8, text).prop_map(|(who, text)| Step::Send(who, text)),
            1 => (0usize..8).prop_map(Step::Gone),
            1 => (0usize..8).prop_map(Step::Slow),
        ]
    }

    proptest! {
        /// Every line said while X is in the room arrives at X exactly once, in the order of the hub, which is that of
        /// the log; joins and leaves are told once each; nobody reads anything before its welcome.
        #[test]
        fn whatever_the_order_of_events(steps in prop::collection::vec(step(), 1..120)) {
            let mut room = Room::new(&Limits::default());
            // What each member is to hear from its welcome on, and the steps' clients, of which some are gone.
            let mut expected: BTreeMap<ConnId, Vec<String>> = BTreeMap::new();
            let mut echo: BTreeSet<ConnId> = BTreeSet::new();
            let mut ids = 0;
            let mut logged = 0;
            for (count, step) in steps.into_iter().enumerate() {
                let before: BTreeSet<ConnId> = room.hub.nicks.values().copied().collect();
                let actor = match step {
                    Step::Connect => {
                        ids += 1;
                        room.connect(ids);
                        ids
                    }
                    Step::Send(who, text) => {
                        let id = who as ConnId + 1;
                        if room.inputs.contains_key(&id) {
                            let text = if text.starts_with('/') { text } else { format!("{text}{count}") };
                            room.send(id, format!("{text}\n").as_bytes());
                            if before.contains(&id) && text.starts_with("/echo ") {
                                if text == "/echo on" { echo.insert(id); } else { echo.remove(&id); }
                            }
                        }
                        id
                    }
                    Step::Gone(who) => {
                        room.event(who as ConnId + 1, Event::Gone(Why::Lost));
                        who as ConnId + 1
                    }
                    Step::Slow(who) => {
                        room.event(who as ConnId + 1, Event::TooSlow);
                        who as ConnId + 1
                    }
                };
                let fresh: Vec<String> = room.log.lines().skip(logged).map(str::to_owned).collect();
                logged += fresh.len();
                for record in fresh {
                    let line = record.splitn(3, ' ').nth(2).unwrap().to_owned();
                    for id in before.iter().filter(|id| **id != actor || echo.contains(id)) {
                        expected.entry(*id).or_default().push(line.clone());
                    }
                }
                let after: BTreeSet<ConnId> = room.hub.nicks.values().copied().collect();
                prop_assert!(before.symmetric_difference(&after).count() <= 1);
                prop_assert_eq!(room.hub.timers.len(), room.hub.len());
            }
            for id in 1..=ids {
                let text = room.take(id);
                let heard: Vec<&str> = text.lines().filter(|line| line.starts_with('<')).collect();
                let lines = expected.remove(&id).unwrap_or_default();
                prop_assert_eq!(heard, lines.iter().map(String::as_str).collect::<Vec<_>>());
                if let Some(first) = text.lines().find(|line| !line.starts_with('!')) {
                    prop_assert!(first.starts_with("* welcome "), "{}", first);
                }
            }
        }
    }
}

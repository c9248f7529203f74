use super::*;
use crate::event::Event;
use proptest::prelude::*;
use std::collections::BTreeSet;

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// A room, and what its clients have read.
struct Bench {
    room: Room,
    now: Instant,
    read: BTreeMap<ClientId, String>,
    closed: BTreeSet<ClientId>,
    log: String,
}

impl Bench {
    fn new(limits: &Limits) -> Bench {
        let mut room = Room::open(limits, &Report::default(), Slow::Kick).unwrap();
        room.records = Some(Vec::new());
        Bench { room, now: Instant::now(), read: BTreeMap::new(), closed: BTreeSet::new(), log: String::new() }
    }

    fn with(nicks: &[&str]) -> Bench {
        let mut room = Bench::new(&Limits::default());
        for (id, nick) in (1..).zip(nicks) {
            room.connect(id);
            room.send(id, format!("{nick}\n").as_bytes());
        }
        room.read.clear();
        room
    }

    fn event(&mut self, id: ClientId, event: Event) {
        self.room.handle(id, event, self.now);
        self.read_all();
    }

    fn read_all(&mut self) {
        self.log += &String::from_utf8(self.room.take_records()).unwrap();
        while let Some(id) = self.room.next_changed() {
            let session = self.room.session_mut(id).unwrap();
            let text = String::from_utf8(session.pending().to_vec()).unwrap();
            assert!(text.is_empty() || !self.closed.contains(&id), "{text:?} after the final message to {id}");
            session.sent(&Ok(text.len()), self.now);
            self.read.entry(id).or_default().push_str(&text);
            if session.finish(self.now) {
                self.closed.insert(id);
            }
        }
    }

    fn connect(&mut self, id: ClientId) {
        self.room.connect(id, HERE, self.now);
        self.read_all();
        let text = self.take(id);
        self.read.insert(id, text.strip_prefix(&format!("{GREETING}\n")).unwrap_or(&text).to_owned());
    }

    fn send(&mut self, id: ClientId, bytes: &[u8]) {
        self.room.receive(id, bytes, self.now);
        self.read_all();
        while let Some(until) = self.room.session(id).and_then(|session| session.paused_until()) {
            self.now = until;
            self.tick();
        }
    }

    fn tick(&mut self) {
        self.room.tick(self.now);
        self.read_all();
    }

    fn take(&mut self, id: ClientId) -> String {
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
        let mut room = Bench::with(&["alice"]);
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
        let mut room = Bench::with(&["alice"]);
        room.connect(2);
        room.send(2, first);
        let text = room.take(2);
        assert!(text.starts_with("! nick-bad ") && text.lines().count() == 1, "{first:?}: {text}");
        assert!(room.closed.contains(&2) && room.take(1).is_empty(), "{first:?}");
    }
    let mut room = Bench::with(&["alice"]);
    room.connect(2);
    room.send(2, b"abcdefghijklmnopqr-_\n");
    assert!(room.take(2).starts_with("* welcome abcdefghijklmnopqr-_; "));
}

#[test]
fn k3_a_nick_is_one_whatever_its_case() {
    let mut room = Bench::with(&["bob"]);
    room.connect(2);
    for taken in ["bob\n", "BOB\n", "/nick Bob\n"] {
        room.send(2, taken.as_bytes());
        assert!(room.take(2).starts_with("! nick-taken "));
    }
    room.send(2, b"rob\n");
    assert!(room.take(2).starts_with("* welcome rob; 2 here"));
    room.event(1, Event::Closed);
    room.send(2, b"/nick BOB\n");
    assert_eq!(room.take(2), "* bob left (closed)\n* rob is now BOB\n");
}

#[test]
fn k5_to_k10_what_is_said() {
    let full = [b'y'; 1023];
    let mut room = Bench::with(&["bob", "alice"]);
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
    let mut room = Bench::with(&["bob", "alice"]);
    room.send(1, b"half a line");
    room.event(1, Event::Lost);
    room.event(1, Event::Closed);
    room.event(1, Event::TooSlow);
    assert_eq!(room.take(2), "* bob left (connection lost)\n");
}

#[test]
fn k12_a_thousand_lines_in_order() {
    let mut room = Bench::with(&["bob", "alice"]);
    let lines: String = (0..1000).map(|nth| format!("line {nth}\n")).collect();
    let (_, other) = room.said(lines.as_bytes());
    let expected: String = (0..1000).map(|nth| format!("<bob> line {nth}\n")).collect();
    assert_eq!(other, expected);
}

#[test]
fn commands() {
    let mut room = Bench::with(&["bob", "alice"]);
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
        ("/help", &format!("{}\n", crate::commands::HELP), ""),
        ("/dance", "! no-such-command /dance; /help lists the commands\n", ""),
        ("/", "! no-such-command /; /help lists the commands\n", ""),
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
        room.room.history.make_old();
        assert_eq!(room.said(format!("{sent}\n").as_bytes()), two(own, other), "{sent}");
    }
    assert_eq!(room.said(b"/quit gone fishing\nmore\n"), two("* bye\n", "* bob left (gone fishing)\n"));
    let mut room = Bench::with(&["bob", "alice"]);
    assert_eq!(room.said(b"/exit\n"), two("* bye\n", "* bob left (quit)\n"));
    assert!(room.closed.contains(&1));
}

#[test]
fn time_ends_who_says_nothing() {
    let limits = Limits::default();
    let mut room = Bench::with(&["bob", "alice"]);
    room.connect(3);
    assert_eq!(room.room.deadline(), Some(room.now + Duration::from_millis(limits.handshake_timeout)));
    room.now += Duration::from_millis(limits.handshake_timeout);
    room.tick();
    assert!(room.take(3).starts_with("! idle ") && room.take(1).is_empty(), "nobody knew of it");
    room.send(1, b"\n");
    room.now += Duration::from_millis(limits.idle_timeout - 1);
    room.tick();
    assert!(room.take(2).starts_with("! idle "));
    assert_eq!(room.take(1), "* alice left (idle)\n");
    room.room.remove(3, room.now);
    let deadline = room.room.session(1).unwrap().deadline();
    assert_eq!(room.room.deadline(), Some(deadline));
    room.now = deadline;
    room.tick();
    assert!(room.take(1).starts_with("! idle "));
}

/// The earliest deadline of all sessions, found the slow way.
fn earliest(room: &Room) -> Option<Instant> {
    room.clients.values().map(|client| client.session.deadline()).min()
}

#[test]
fn deadline_is_right_before_next_changed_is_called() {
    let limits = Limits { idle_timeout: 600, ..Limits::default() };
    let mut room: Room = Room::open(&limits, &Report::default(), Slow::Kick).unwrap();
    let now = Instant::now();
    assert_eq!(room.deadline(), None);
    room.connect(1, HERE, now);
    assert_eq!(
        room.deadline(),
        Some(now + Duration::from_millis(limits.write_timeout)),
        "the greeting waits to be sent"
    );
    room.received(1, &Ok(4), b"bob\n", now);
    assert_eq!(room.deadline(), Some(now + Duration::from_millis(600)), "the idle timeout is the shortest");
    let session = room.session_mut(1).unwrap();
    session.sent(&Ok(session.pending().len()), now);
    assert_eq!(room.deadline(), earliest(&room));
    room.received(1, &Ok(2), b"x\n", now + Duration::from_millis(100));
    assert_eq!(room.deadline(), Some(now + Duration::from_millis(700)), "no wake-up for the old deadline");
    room.remove(1, now);
    assert_eq!((room.deadline(), room.timers.len(), room.touched.len()), (None, 0, 0));
}

#[test]
fn deadline_of_a_sent_line_is_forgotten() {
    let mut room = Bench::with(&["bob", "alice"]);
    let before = room.room.deadline();
    room.room.received(1, &Ok(3), b"hi\n", room.now);
    room.read_all();
    assert_eq!(room.room.deadline(), before, "no wake-up when the write timeout of a sent line is over");
}

#[test]
fn error_of_any_call_ends_the_session() {
    let failed = || io::Error::from_raw_os_error(libc::ECONNRESET);
    for call in ["read", "send", "other"] {
        let mut room = Bench::with(&["bob", "alice"]);
        match call {
            "read" => room.room.received(1, &Err(failed()), &[], room.now),
            "send" => assert!(!room.room.session_mut(1).unwrap().sent(&Err(failed()), room.now)),
            _ => room.room.session_mut(1).unwrap().fail(),
        }
        assert!(room.room.session(1).unwrap().is_over(), "{call}");
        room.room.remove(1, room.now);
        room.read_all();
        assert_eq!(room.take(2), "* bob left (connection lost)\n", "{call}");
    }
}

#[test]
fn error_after_the_final_message_ends_the_session_at_once() {
    let mut room = Bench::with(&["bob"]);
    room.send(1, b"/quit\n");
    assert!(room.closed.contains(&1) && !room.room.session(1).unwrap().is_over(), "the client has not closed yet");
    room.room.received(1, &Err(io::Error::from_raw_os_error(libc::ECONNRESET)), &[], room.now);
    assert!(room.room.session(1).unwrap().is_over());
    assert_eq!(room.room.next_changed(), Some(1));
}

#[test]
fn next_step_reaches_the_end_of_a_silent_client() {
    let mut room = Bench::with(&["bob"]);
    room.now += Duration::from_millis(crate::cli::IDLE_TIMEOUT_MS);
    let mut steps = Vec::new();
    use crate::Step;
    // The client reads its final message, and does not close.
    while steps.len() < 20 && steps.last() != Some(&Step::Over) {
        let step = room.room.next_step(1, room.now);
        match step {
            Step::Wake => _ = room.room.take_changed(),
            Step::Write(_) => _ = room.room.send_with(1, |bytes| Ok(bytes.len())).unwrap(),
            Step::Wait(until) => room.now = until,
            Step::Finish | Step::Over => {}
        }
        steps.push(step);
    }
    let kinds = steps.iter().filter(|step| **step != Step::Wake).count();
    assert!(kinds == 4 && steps.len() <= 7 && steps.contains(&Step::Finish), "{steps:?}");
}

#[test]
fn full_kernel_buffer_is_not_an_error() {
    let mut room = Bench::with(&["bob", "alice"]);
    room.room.received(1, &Ok(3), b"hi\n", room.now);
    let (now, session) = (room.now, room.room.session_mut(2).unwrap());
    assert!(session.sent(&Err(io::ErrorKind::Interrupted.into()), now), "send again");
    assert!(!session.sent(&Err(io::ErrorKind::WouldBlock.into()), now), "wait until the socket is writable");
    assert!(session.sent(&Ok(3), now) && session.wants_write());
    assert_eq!(room.room.deadline(), Some(now + Duration::from_millis(crate::cli::WRITE_TIMEOUT_MS)));
    room.now += Duration::from_millis(crate::cli::WRITE_TIMEOUT_MS);
    room.room.tick(room.now);
    assert!(room.room.session(2).unwrap().is_closing(), "a slow reader");
}

#[test]
fn client_that_reads_no_final_message_is_over_after_the_shutdown_timeout() {
    let mut room = Bench::with(&["bob"]);
    room.room.shut_down(room.now);
    room.now += Duration::from_millis(crate::cli::GRACE_MS);
    room.room.tick(room.now);
    assert!(room.room.session(1).unwrap().is_over());
    assert_eq!(room.room.next_changed(), Some(1));
    room.room.remove(1, room.now);
    assert!(room.room.is_done());
}

#[test]
fn client_that_connects_is_greeted() {
    let mut room = Bench::new(&Limits::default());
    room.room.connect(1, HERE, room.now);
    room.read_all();
    assert_eq!(room.take(1), "* your nick? (letters, digits, _ and -; at most 20)\n");
}

#[test]
fn full_or_stopping_room_rejects_clients() {
    let limits = Limits { max_conns: 3, max_per_addr: 1, ..Limits::default() };
    let mut room = Bench::new(&limits);
    let far: IpAddr = [192, 0, 2, 1].into();
    room.room.connect(1, far, room.now);
    room.room.connect(2, far, room.now);
    room.read_all();
    assert!(room.take(2).starts_with("! server-full "), "one of an address");
    room.connect(3);
    room.connect(4);
    room.connect(5);
    assert!(room.take(5).starts_with("! server-full ") && room.closed.contains(&5));

    room.send(3, b"bob\n");
    room.read.clear();
    room.room.shut_down(room.now);
    room.read_all();
    assert_eq!(
        (room.take(3), room.take(4)),
        ("* server is going down\n".into(), "! going-down the server stops\n".into())
    );
    room.connect(6);
    assert!(room.take(6).starts_with("! going-down ") && room.closed.contains(&6));
}

#[test]
fn a_long_list_goes_on() {
    let nicks: Vec<String> = (0..200).map(|n| format!("member-number-{n}")).collect();
    let mut room = Bench::with(&nicks.iter().map(String::as_str).collect::<Vec<_>>());
    let (text, _) = room.said(b"/list\n");
    assert!(text.lines().count() > 2 && text.lines().all(|line| line.len() <= 1024));
    let (last, rest) = text.lines().rev().collect::<Vec<_>>().split_first().map(|(a, b)| (*a, b.to_vec())).unwrap();
    assert!(rest.iter().all(|line| line.ends_with(" ...")) && !last.ends_with("..."));
    let listed = text.split_whitespace().filter(|word| word.starts_with("member")).count();
    assert_eq!(listed, 200);
}

#[test]
fn the_past_is_recalled_and_goes_on() {
    let mut room = Bench::with(&["bob"]);
    room.send(1, b"one\n");
    let old: Vec<crate::history::Said> = room.room.history.lines().collect();
    let mut room = Bench::with(&["alice"]);
    room.room.history = History::new(1000, old);
    room.send(1, b"two\n");
    assert!(room.log.contains(" 2 <alice> two\n"), "{}", room.log);
    room.send(1, b"/history\n");
    let text = room.take(1);
    assert!(text.contains(" <bob> one\n") && text.contains(" <alice> two\n"), "{text}");
}

#[test]
fn an_answer_does_not_make_a_reader_slow() {
    let mut room = Bench::with(&["bob", "alice"]);
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
    /// the log; joins and leaves are announced once each; nobody reads anything before its welcome.
    #[test]
    fn whatever_the_order_of_events(steps in prop::collection::vec(step(), 1..120)) {
        let mut room = Bench::new(&Limits::default());
        // What each member is to hear from its welcome on, and the steps' clients, of which some are gone.
        let mut expected: BTreeMap<ClientId, Vec<String>> = BTreeMap::new();
        let mut echo: BTreeSet<ClientId> = BTreeSet::new();
        let mut ids = 0;
        let mut logged = 0;
        for (count, step) in steps.into_iter().enumerate() {
            let before: BTreeSet<ClientId> = room.room.nicks.values().copied().collect();
            let actor = match step {
                Step::Connect => {
                    ids += 1;
                    room.connect(ids);
                    ids
                }
                Step::Send(who, text) => {
                    let id = who as ClientId + 1;
                    if room.room.session(id).is_some() {
                        let text = if text.starts_with('/') { text } else { format!("{text}{count}") };
                        room.send(id, format!("{text}\n").as_bytes());
                        if before.contains(&id) && text.starts_with("/echo ") {
                            if text == "/echo on" { echo.insert(id); } else { echo.remove(&id); }
                        }
                    }
                    id
                }
                Step::Gone(who) => {
                    room.event(who as ClientId + 1, Event::Lost);
                    who as ClientId + 1
                }
                Step::Slow(who) => {
                    room.event(who as ClientId + 1, Event::TooSlow);
                    who as ClientId + 1
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
            let after: BTreeSet<ClientId> = room.room.nicks.values().copied().collect();
            prop_assert!(before.symmetric_difference(&after).count() <= 1);
            prop_assert_eq!(room.room.deadline(), earliest(&room.room));
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

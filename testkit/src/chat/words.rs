//! What is said: the bad-input table K5 to K11, framing, and what may be shown.

use std::thread;
use std::time::Duration;

use super::{FAST, LOG, Room, Row, Subject};
use crate::oracle;
use crate::peer::End;
use crate::server::eventually;

/// Between two segments that must arrive apart.
const APART: Duration = Duration::from_millis(3);

pub const ROWS: &[Row] = &[
    ("K05_carriage_return", |s| heard(s, b"hi\r\n", &["<bob> hi"])),
    ("K06_controls_are_escaped", controls),
    ("K07_not_utf8", |s| {
        s.abused(&FAST, |room| {
            let [mut alice, mut bob] = room.gather(["alice", "bob"]);
            for bad in [b"x\xff\xfe\n".as_slice(), b"\x80\n", b"\xc0\xaf\n", b"\xed\xa0\x80\n", b"caf\xc3\n"] {
                bob.send(bad);
                let line = bob.line();
                assert!(line.starts_with("! not-utf8"), "{}: {line}", bad.escape_ascii());
            }
            bob.say("still here");
            alice.expect("<bob> still here");
        })
    }),
    ("K08_character_in_two_segments", |s| {
        s.abused(&[], |room| {
            let [mut alice, mut bob] = room.gather(["alice", "bob"]);
            bob.send(b"caf\xc3");
            thread::sleep(APART);
            assert_eq!(alice.sync(), [""; 0], "half a line was heard");
            bob.send(b"\xa9\n");
            alice.expect("<bob> café");
        })
    }),
    ("K09_forged_system_line", |s| {
        heard(s, b"hi\n* root joined\n<root> hi\n", &["<bob> hi", "<bob> * root joined", "<bob> <root> hi"])
    }),
    ("K10_longest_line", longest_line),
    ("K11_half_a_line", |s| {
        s.abused(&[], |room| {
            let [mut alice, mut bob] = room.gather(["alice", "bob"]);
            bob.send("half a li");
            drop(bob);
            let (before, _) = alice.until("bob's leave line", |line| line.starts_with("* bob left ("));
            assert_eq!(before, [""; 0], "half a line was heard");
        })
    }),
    ("framing_split_at_every_byte", split_everywhere),
    ("framing_twenty_lines_in_one_segment", |s| {
        let lines: Vec<String> = (0..20).map(|i| format!("line {i}")).collect();
        let wanted: Vec<String> = lines.iter().map(|line| format!("<bob> {line}")).collect();
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        heard(s, (lines.join("\n") + "\n").as_bytes(), &wanted);
    }),
    ("framing_empty_lines_are_nothing", |s| heard(s, b"\n\r\n\nhi\n\n", &["<bob> hi"])),
    ("framing_endless_line", endless_line),
    ("text_of_the_world_passes", |s| {
        heard(s, "naïve — 日本 🙂 “q” ½ Ж ≤\n".as_bytes(), &["<bob> naïve — 日本 🙂 “q” ½ Ж ≤"]);
    }),
];

/// What bob sends is what alice hears, and no more.
fn heard(subject: &Subject, bytes: &[u8], lines: &[&str]) {
    subject.abused(&[], |room| {
        let [mut alice, mut bob] = room.gather(["alice", "bob"]);
        bob.send(bytes);
        bob.sync();
        assert_eq!(alice.sync(), lines);
    });
}

fn controls(subject: &Subject) {
    subject.abused(&["-v", "--log", LOG], |room| {
        let [mut alice, mut bob] = room.gather(["alice", "bob"]);
        let marks = "\x1b[2J\x1b]0;pwn\x07 \u{202e} \u{200b} \u{9b}2J a\rb \x08\x7f \u{feff}";
        bob.say(marks);
        let line = alice.line();
        assert!(line.starts_with(r"<bob> \x1b[2J"), "{line:?}");
        assert!(line.contains("202e"), "a direction mark is made visible: {line:?}");
        let log = || room.log_file();
        eventually("the line is in the log", || log().contains(r"<bob> \x1b[2J").then_some(()));
        for (place, text) in [("to the others", line), ("in the log", log()), ("to the operator", room.server.log())] {
            let hidden = |c: &char| c.is_control() && *c != '\n' || "\u{202e}\u{200b}\u{feff}".contains(*c);
            assert_eq!(text.chars().find(hidden), None, "{place}: {text:?}");
        }
        let lines = log().lines().filter(|line| line.contains("<bob>")).count();
        assert_eq!(lines, 1, "one event is one line of the log: {}", log());
    });
}

fn longest_line(subject: &Subject) {
    subject.abused(&[], |room| {
        let [mut alice, mut bob, mut carol] = room.gather(["alice", "bob", "carol"]);
        let longest = "x".repeat(1023);
        bob.say(&longest);
        alice.expect(&format!("<bob> {longest}"));
        bob.send(format!("{}\r\n", "y".repeat(1022)));
        alice.expect(&format!("<bob> {}", "y".repeat(1022)));
        for (nick, mut member, bytes) in [("bob", bob, "z".repeat(1024)), ("carol", carol, "z".repeat(1025))] {
            member.send(bytes + "\nnever heard\n");
            let (lines, end) = member.rest();
            let told = lines.last().is_some_and(|line| line.starts_with("! line-too-long"));
            assert!(told && end == End::Eof, "{lines:?}, {end:?}");
            let (before, _) = alice.until("the leave line", |line| line.starts_with(&format!("* {nick} left (")));
            assert_eq!(before, [""; 0], "a part of it was heard");
        }
        carol = room.join("carol");
        carol.say("all is well");
        alice.until("others go on", |line| line == "<carol> all is well");
    });
}

fn split_everywhere(subject: &Subject) {
    subject.abused(&FAST, |room| {
        let [mut alice, mut bob] = room.gather(["alice", "bob"]);
        let line = "hello, wörld 🙂\r\n".as_bytes();
        for at in 1..line.len() {
            let (first, second) = line.split_at(at);
            bob.send(first);
            thread::sleep(APART);
            bob.send(second);
            alice.expect("<bob> hello, wörld 🙂");
        }
        for byte in "one at a time\n".bytes() {
            bob.send([byte]);
            thread::sleep(APART);
        }
        alice.expect("<bob> one at a time");
        let first_words = b"carol\nhi\n";
        for at in 1..first_words.len() {
            let (first, second) = first_words.split_at(at);
            let mut carol = eventually("the nick is free", || Some(room.connect()));
            carol.send(first);
            thread::sleep(APART);
            carol.send(second);
            alice.expect("* carol joined");
            alice.expect("<carol> hi");
            drop(carol);
            alice.until("the leave line", |line| line.starts_with("* carol left ("));
        }
    });
}

/// However long, a line without an end costs no memory, and the one who sends it is closed.
fn endless_line(subject: &Subject) {
    subject.abused(&[], |room: &Room| {
        let [mut alice, mut bob, mut carol] = room.gather(["alice", "bob", "carol"]);
        let before = oracle::memory(&room.server);
        bob.send(vec![b'x'; 60 * 1024]);
        assert!(bob.line().starts_with("! line-too-long"));
        let grown = oracle::memory(&room.server).saturating_sub(before);
        assert!(grown <= 256 * 1024, "{grown} bytes for a line without an end");
        assert_eq!(bob.rest(), (Vec::new(), End::Eof));
        let sender = carol.peer.send_in_background(vec![b'x'; 1 << 20], false);
        carol.until("why it is closed", |line| line.starts_with("! line-too-long"));
        assert_ne!(carol.rest().1, End::Silence);
        sender.join().unwrap();
        let grown = oracle::memory(&room.server).saturating_sub(before);
        assert!(grown <= 256 * 1024, "{grown} bytes for 1 MiB without an end");
        let mut left: Vec<String> = (0..2).map(|_| alice.line()).collect();
        left.sort_unstable();
        assert!(left[0].starts_with("* bob left (") && left[1].starts_with("* carol left ("), "{left:?}");
    });
}

//! The first line: nicks good, bad, taken and free again.

use super::commands::list;
use super::member::GREETING;
use super::{Member, Row, Subject};
use crate::peer::{End, Peer};
use crate::server::eventually;

pub const ROWS: &[Row] = &[
    ("K01_join", join),
    ("K02_bad_nicks", |s| {
        let endless = "a".repeat(600);
        let bad: [&[u8]; 12] = [
            b"\n",
            b"a b\n",
            b"bob\x1b[31m\n",
            b"b\x00b\n",
            b"\xc3\xa9ric\n",
            b"abcdefghijklmnopqrstu\n",
            b"1bob\n",
            b"-bob\n",
            b"SYSTEM:\n",
            b"b\xffb\n",
            b"/nick\n",
            endless.as_bytes(),
        ];
        refused_nicks(s, &bad);
    }),
    ("K03_taken_nick", taken_nick),
    ("K04_http_post", |s| {
        let post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\nmallory\nhello\n";
        refused_nicks(s, &[post, b"GET / HTTP/1.1\r\n\r\n"]);
    }),
    ("handshake_greeting", |s| {
        s.abused(&[], |room| {
            let mut peer = Peer::connect(room.server.addr);
            let greeting = format!("{GREETING}\n");
            assert_eq!(peer.read_exactly(greeting.len()), greeting.as_bytes(), "before the client has sent anything");
        })
    }),
    ("handshake_with_slash_nick", |s| {
        s.abused(&[], |room| {
            let mut alice = room.join("alice");
            let mut bob = room.connect();
            bob.say("/nick bob");
            assert!(bob.line().starts_with("* welcome"));
            alice.expect("* bob joined");
        })
    }),
    ("handshake_nick_of_one_and_of_twenty", |s| {
        s.abused(&[], |room| {
            let mut alice = room.join("alice");
            for nick in ["a", "Z9", "abcdefghijklmnopqrst", "a_-9"] {
                let _member = room.join(nick);
                alice.expect(&format!("* {nick} joined"));
                drop(_member);
                alice.until("its leave line", |line| line.starts_with(&format!("* {nick} left (")));
            }
        })
    }),
    ("handshake_and_words_in_one_segment", |s| {
        s.abused(&[], |room| {
            let mut alice = room.join("alice");
            let mut bob = room.connect();
            bob.send("bob\nhi\nhow are you\n");
            ["* bob joined", "<bob> hi", "<bob> how are you"].iter().for_each(|line| alice.expect(line));
        })
    }),
    ("handshake_timeout", |s| {
        s.abused(&["--handshake-timeout", "400"], |room| {
            let mut alice = room.join("alice");
            let (mut silent, mut half) = (room.connect(), room.connect());
            half.send("bo");
            for late in [&mut silent, &mut half] {
                let (lines, end) = late.rest();
                assert!(lines.len() == 1 && lines[0].starts_with("! idle") && end == End::Eof, "{lines:?}, {end:?}");
            }
            assert_eq!(alice.sync(), [""; 0], "nobody is told of one who was never here");
        })
    }),
    ("handshake_nick_is_free_after_leaving", |s| {
        s.abused(&[], |room| {
            for _ in 0..10 {
                let mut bob = room.join("bob");
                bob.say("/quit");
                bob.rest();
                eventually("the nick is free", || Member::try_join(room.server.addr, "bob").ok()).reset();
                eventually("the nick is free", || Member::try_join(room.server.addr, "BOB").ok()).say("/quit");
                eventually("the nick is free", || Member::try_join(room.server.addr, "bob").ok());
                eventually("the room is empty", || {
                    let mut probe = Member::try_join(room.server.addr, "Probe").ok()?;
                    probe.sync();
                    probe.say("/list");
                    (list(&mut probe) == ["Probe"]).then_some(())
                });
            }
        })
    }),
];

fn join(subject: &Subject) {
    subject.abused(&[], |room| {
        let mut alice = room.join("alice");
        assert_eq!(alice.sync().iter().filter(|line| line.contains("joined")).count(), 0, "one's own joined line");
        let mut bob = room.join("bob");
        alice.expect("* bob joined");
        bob.sync();
        bob.say("hi");
        alice.expect("<bob> hi");
        alice.say("hello");
        bob.expect("<alice> hello");
    });
}

/// Each first line is refused and closed, and alice never hears of it.
fn refused_nicks(subject: &Subject, first_lines: &[&[u8]]) {
    subject.abused(&[], |room| {
        let [mut alice] = room.gather(["alice"]);
        for bytes in first_lines {
            let mut bad = room.connect();
            bad.send(bytes);
            let (lines, end) = bad.rest();
            let told = lines.len() == 1 && lines[0].starts_with("! nick-bad") && end == End::Eof;
            assert!(told, "{}: {lines:?}, {end:?}", bytes.escape_ascii());
        }
        assert_eq!(alice.sync(), [""; 0], "somebody was told");
    });
}

fn taken_nick(subject: &Subject) {
    subject.abused(&[], |room| {
        let [_bob, mut alice] = room.gather(["bob", "alice"]);
        let mut late = room.connect();
        for taken in ["bob", "BOB", "/nick Bob"] {
            late.say(taken);
            let line = late.line();
            assert!(line.starts_with("! nick-taken"), "{taken}: {line}");
        }
        assert_eq!(alice.sync(), [""; 0], "somebody was told");
        late.say("carol");
        assert!(late.line().starts_with("* welcome"), "may try again");
        alice.expect("* carol joined");
    });
}

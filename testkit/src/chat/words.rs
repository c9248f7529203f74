//! What is said: the bad-input table K1 to K12, the handshake, the commands.

use std::thread;
use std::time::Duration;

use super::{FAST, Member, Room, Row, Subject};
use crate::oracle;
use crate::peer::End;
use crate::server::eventually;

/// Between two segments that must arrive apart.
const APART: Duration = Duration::from_millis(3);

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
    ("sender_is_not_echoed", |s| {
        s.abused(&[], |room| {
            let [mut alice, mut bob] = room.gather(["alice", "bob"]);
            bob.say("hi");
            bob.say("/me waves");
            assert_eq!(bob.sync(), [""; 0]);
            alice.expect("<bob> hi");
            alice.expect("<bob> /me waves");
        })
    }),
    ("command_list", |s| {
        s.abused(&[], |room| {
            let [_alice, _bob, mut carol] = room.gather(["alice", "bob", "Carol"]);
            carol.say("/list");
            assert_eq!(list(&mut carol), ["Carol", "alice", "bob"]);
        })
    }),
    ("command_list_of_a_crowd", |s| {
        let args = [&FAST[..], &["--max-conns", "64"]].concat();
        s.abused(&args, |room| {
            let nicks: Vec<String> = (0..60).map(|i| format!("a-member-with-nr-{i:02}")).collect();
            let mut members: Vec<Member> = nicks.iter().map(|nick| room.join(nick)).collect();
            members[0].sync();
            members[0].say("/list");
            assert_eq!(list(&mut members[0]), nicks);
        })
    }),
    ("command_pm", private),
    ("command_nick", rename),
    ("command_history", |s| {
        s.abused(&FAST, |room| {
            let [mut alice, mut bob] = room.gather(["alice", "bob"]);
            for i in 0..150 {
                alice.say(&format!("line {i}"));
            }
            bob.until("the last line", |line| line == "<alice> line 149");
            let all = history(&mut bob, "/history");
            assert!(all.len() <= 100, "{} lines", all.len());
            assert_eq!(all.last().map(String::as_str), Some("<alice> line 149"));
            assert_eq!(history(&mut bob, "/history 2"), ["<alice> line 148", "<alice> line 149"]);
            assert!(history(&mut bob, "/history 1000").len() <= 100, "never more than the answer's limit");
            bob.say("/history many");
            assert!(bob.line().starts_with("! usage"));
            bob.say("/pm alice secret");
            bob.expect(">alice< secret");
            alice.until("the private line", |line| line == "-bob- secret");
            let all = history(&mut bob, "/history");
            assert!(!all.iter().any(|line| line.contains("secret")), "a private line in the history");
        })
    }),
    ("command_echo", |s| {
        s.abused(&[], |room| {
            let mut bob = room.join("bob");
            bob.sync();
            bob.say("/echo on");
            bob.expect("= echo on");
            bob.say("hi");
            bob.expect("<bob> hi");
            bob.say("/echo off");
            bob.expect("= echo off");
            bob.say("hi");
            assert_eq!(bob.sync(), [""; 0]);
            bob.say("/echo perhaps");
            assert!(bob.line().starts_with("! usage"));
        })
    }),
    ("command_help_names_the_others", |s| {
        s.abused(&[], |room| {
            let [mut bob] = room.gather(["bob"]);
            bob.say("/help");
            let lines = bob.sync();
            assert!(!lines.is_empty() && lines.iter().all(|line| line.starts_with("= ")), "{lines:?}");
            for command in ["/nick", "/list", "/pm", "/me", "/history", "/echo", "/quit"] {
                assert!(lines.iter().any(|line| line.contains(command)), "{command} is not in {lines:?}");
            }
        })
    }),
    ("command_unknown", |s| {
        s.abused(&[], |room| {
            let [mut alice, mut bob] = room.gather(["alice", "bob"]);
            for unknown in ["/dance", "/", "/LISTEN now", "//", "/nickel"] {
                bob.say(unknown);
                let line = bob.line();
                assert!(line.starts_with("! no-such-command"), "{unknown}: {line}");
            }
            assert_eq!(alice.sync(), [""; 0]);
        })
    }),
    ("command_quit", quit),
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

fn controls(subject: &Subject) {
    subject.abused(&["-v"], |room| {
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

fn private(subject: &Subject) {
    subject.abused(&FAST, |room| {
        let [mut alice, mut bob, mut carol] = room.gather(["alice", "bob", "carol"]);
        bob.say("/pm ALICE psst, a secret");
        alice.expect("-bob- psst, a secret");
        bob.expect(">alice< psst, a secret");
        assert_eq!(carol.sync(), [""; 0], "carol heard it");
        bob.say("/pm dave hello");
        assert!(bob.line().starts_with("! no-such-nick"));
        for short in ["/pm", "/pm alice", "/pm alice "] {
            bob.say(short);
            let line = bob.line();
            assert!(line.starts_with("! usage"), "{short}: {line}");
        }
        assert_eq!(alice.sync(), [""; 0]);
    });
}

fn rename(subject: &Subject) {
    subject.abused(&FAST, |room| {
        let [mut alice, mut bob, mut carol] = room.gather(["alice", "bob", "carol"]);
        bob.say("/nick Robert");
        for member in [&mut alice, &mut bob, &mut carol] {
            member.expect("* bob is now Robert");
        }
        bob.say("hi");
        alice.expect("<Robert> hi");
        carol.expect("<Robert> hi");
        bob.say("/nick ROBERT");
        bob.expect("* Robert is now ROBERT");
        for (wish, code) in [("ALICE", "! nick-taken"), ("b b", "! nick-bad"), ("1", "! nick-bad")] {
            bob.say(&format!("/nick {wish}"));
            let line = bob.line();
            assert!(line.starts_with(code), "{wish}: {line}");
        }
        bob.say("still here");
        alice.until("it stays", |line| line == "<ROBERT> still here");
        let mut second = room.join("bob");
        second.say("the old nick is free");
        alice.until("the second bob", |line| line == "<bob> the old nick is free");
        drop(bob);
        alice.until("it leaves under its last nick", |line| line.starts_with("* ROBERT left ("));
    });
}

/// The nicks of an answer to /list, sorted; a line that goes on ends in ` ...`.
fn list(member: &mut Member) -> Vec<String> {
    let mut nicks = Vec::new();
    loop {
        let line = member.line();
        let rest = line.strip_prefix("= list").expect(&line);
        nicks.extend(rest.split_whitespace().filter(|nick| *nick != "...").map(str::to_owned));
        if !line.ends_with(" ...") {
            nicks.sort_unstable();
            return nicks;
        }
    }
}

/// The lines of an answer to /history, without their time, which is checked.
pub fn history(member: &mut Member, command: &str) -> Vec<String> {
    member.say(command);
    let (lines, _) = member.until("the end of the history", |line| line == "= end history");
    let untimed = |line: &String| {
        let (time, text) = line.strip_prefix("~ ").and_then(|rest| rest.split_once(' ')).expect(line);
        let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(shape, "0000-00-00T00:00:00.000Z", "{line}");
        text.to_owned()
    };
    lines.iter().map(untimed).collect()
}

fn quit(subject: &Subject) {
    subject.abused(&[], |room| {
        let [mut alice] = room.gather(["alice"]);
        for (words, why) in [("/quit", "("), ("/exit", "("), ("/quit gone fishing", "(gone fishing)")] {
            let mut bob = eventually("the nick is free", || Member::try_join(room.server.addr, "bob").ok());
            bob.sync();
            bob.send(format!("{words}\nafter the end\n"));
            let (lines, end) = bob.rest();
            let bye = lines.len() == 1 && lines[0].contains("bye") && lines[0].starts_with(['*', '=']);
            assert!(bye && end == End::Eof, "{words}: {lines:?}, {end:?}");
            let (before, line) = alice.until("the leave line", |line| line.starts_with("* bob left"));
            assert!(line.starts_with(&format!("* bob left {why}")) && line.ends_with(')'), "{words}: {line}");
            assert_eq!(before, ["* bob joined"], "{words}");
        }
    });
}

//! The commands, and what is answered to whom.

use super::{FAST, Member, Row, Subject};
use crate::peer::End;
use crate::server::eventually;

pub const ROWS: &[Row] = &[
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
pub fn list(member: &mut Member) -> Vec<String> {
    let mut nicks = Vec::new();
    loop {
        let (_, line) = member.until("the list", |line| line.starts_with("= list"));
        let rest = line.strip_prefix("= list").unwrap_or_default();
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

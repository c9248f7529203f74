//! What members do to a room: leave in every way, come in crowds, flood it.

use std::thread;
use std::time::{Duration, Instant};

use super::{FAST, LOGGED, Member, Room, Row, Subject};
use crate::oracle;
use crate::peer::{End, Peer};
use crate::server::eventually;

pub const ROWS: &[Row] = &[
    ("K12_flood_is_slowed_and_not_lost", flood),
    ("rate_at_its_default", |s| {
        s.abused(&[], |room| {
            let [mut alice, mut bob] = room.gather(["alice", "bob"]);
            let start = Instant::now();
            bob.send((0..35).map(|i| format!("line {i}\n")).collect::<String>());
            (0..35).for_each(|i| alice.expect(&format!("<bob> line {i}")));
            // 20 at once, of which the mark above took one, then 10 a second.
            assert!(start.elapsed() > Duration::from_millis(1200), "35 lines in {:?}", start.elapsed());
        })
    }),
    ("flood_without_end_is_ended", |s| {
        s.abused(&["--rate", "100", "--burst", "5", "--flood-timeout", "500"], |room| {
            let [mut alice, mut bob] = room.gather(["alice", "bob"]);
            let sender = bob.peer.send_in_background("again\n".repeat(20_000).into_bytes(), false);
            let (heard, line) = alice.until("the leave line", |line| line.starts_with("* bob left ("));
            assert_eq!(line, "* bob left (too fast)");
            assert!(heard.iter().all(|line| line == "<bob> again"), "{heard:?}");
            assert!((10..1000).contains(&heard.len()), "{} lines in half a second at 100 a second", heard.len());
            let (lines, end) = bob.rest();
            assert!(lines == ["! too-fast write slower, or say less"] || end == End::Reset, "{lines:?}, {end:?}");
            sender.join().unwrap();
        })
    }),
    ("leave_line_once_whatever_the_cause", leaves),
    ("half_close_means_leave", |s| {
        s.abused(&[], |room| {
            let [mut alice, mut bob] = room.gather(["alice", "bob"]);
            bob.send("last words\n");
            bob.half_close();
            let (lines, end) = bob.rest();
            assert_eq!(end, End::Eof, "{lines:?}");
            alice.expect("<bob> last words");
            assert!(alice.line().starts_with("* bob left ("));
        })
    }),
    ("last_words_before_the_end_are_heard", |s| {
        s.abused(&FAST, |room| {
            let [mut alice] = room.gather(["alice"]);
            for round in 0..20 {
                let mut bob = eventually("the nick is free", || Member::try_join(room.server.addr, "bob").ok());
                bob.send(format!("one {round}\ntwo {round}\n"));
                drop(bob);
                alice.expect("* bob joined");
                alice.expect(&format!("<bob> one {round}"));
                alice.expect(&format!("<bob> two {round}"));
                assert!(alice.line().starts_with("* bob left ("));
            }
        })
    }),
    ("silent_member", silent_member),
    ("two_senders_one_order", one_order),
    ("log_has_the_order_of_the_room", log_order),
    ("three_hundred_join_at_once", join_storm),
    ("one_member_too_many", one_too_many),
    ("two_hundred_come_and_go", |s| {
        s.abused(&FAST, |room| {
            let [mut alice] = room.gather(["alice"]);
            let mut before = 0;
            for round in 0..250 {
                if round == 50 {
                    before = oracle::memory(&room.server);
                }
                let mut bob = room.join(&format!("bob{round}"));
                bob.say("hi");
                match round % 4 {
                    0 => drop(bob),
                    1 => bob.reset(),
                    2 => bob.say("/quit"),
                    _ => bob.half_close(),
                }
                alice.until("the leave line", |line| line.starts_with(&format!("* bob{round} left (")));
            }
            // What a fiftieth member costs, the two-hundred-and-fiftieth costs no more.
            eventually("memory returns", || (oracle::memory(&room.server) <= before + 256 * 1024).then_some(()));
        })
    }),
    ("connections_that_never_speak", |s| {
        s.abused(&[], |room| {
            let [mut alice] = room.gather(["alice"]);
            (0..60).for_each(|_| drop(room.connect()));
            (0..60).for_each(|_| room.connect().reset());
            assert_eq!(alice.sync(), [""; 0], "nobody is told of one who was never here");
        })
    }),
];

fn flood(subject: &Subject) {
    subject.abused(&["--rate", "250", "--burst", "20"], |room| {
        let [mut alice, mut bob, mut carol] = room.gather(["alice", "bob", "carol"]);
        let start = Instant::now();
        bob.send((0..1000).map(|i| format!("line {i}\n")).collect::<String>());
        thread::scope(|scope| {
            scope.spawn(|| {
                for i in 0..1000 {
                    carol.until("the flood", |line| line == format!("<bob> line {i}"));
                    if i > 0 && i % 80 == 0 && i <= 640 {
                        carol.say(&format!("at {i}"));
                    }
                }
            });
            let lines: Vec<String> = (0..1008).map(|_| alice.line()).collect();
            let took = start.elapsed();
            let (pings, flood): (Vec<&String>, Vec<&String>) = lines.iter().partition(|l| l.starts_with("<carol>"));
            assert!(flood.iter().enumerate().all(|(i, line)| **line == format!("<bob> line {i}")), "not in order");
            assert_eq!(pings.len(), 8);
            // 980 lines at 250 a second; the others' words came in between and not after it.
            assert!(took > Duration::from_millis(3500), "not slowed: 1000 lines in {took:?}");
            assert!(lines.last().is_some_and(|line| line.starts_with("<bob>")), "the others waited for the flood");
        });
    });
}

/// A way to leave, and the nick that names it.
type Way = (&'static str, fn(Member));

/// Every way to leave gives the others one line, and only one.
fn leaves(subject: &Subject) {
    subject.abused(&FAST, |room| {
        let [mut alice] = room.gather(["alice"]);
        let ways: [Way; 6] = [
            ("quits", |mut m| m.say("/quit")),
            ("closes", drop),
            ("halfcloses", |mut m| {
                m.half_close();
                m.rest();
            }),
            ("resets", Member::reset),
            ("overlong", |mut m| {
                m.send(vec![b'x'; 3000]);
                m.rest();
            }),
            ("halfline", |mut m| m.send("half a line")),
        ];
        for (nick, way) in ways {
            let mut member = room.join(nick);
            member.sync();
            way(member);
            let left = format!("* {nick} left (");
            let (before, line) = alice.until(&left, |line| line.starts_with(&left));
            assert!(line.ends_with(')'), "{line}");
            assert_eq!(before, [format!("* {nick} joined")], "{nick}");
        }
        thread::sleep(Duration::from_millis(100)); // the measure: a second line would come within
        let more = alice.sync();
        assert!(!more.iter().any(|line| line.contains(" left (")), "a leave line twice: {more:?}");
    });
}

fn silent_member(subject: &Subject) {
    let args = [&FAST[..], &["--idle-timeout", "600"]].concat();
    subject.abused(&args, |room| {
        let [mut alice, mut silent] = room.gather(["alice", "silent"]);
        let start = Instant::now();
        let leaver = thread::scope(|scope| {
            let waiting = scope.spawn(|| silent.rest());
            // Whoever speaks stays, however long.
            while start.elapsed() < Duration::from_millis(1800) || !waiting.is_finished() {
                alice.say("still here");
                thread::sleep(Duration::from_millis(60));
            }
            waiting.join().unwrap()
        });
        // Not by the handshake's deadline of 30 s.
        assert!(start.elapsed() < Duration::from_secs(20), "a silent member went after {:?}", start.elapsed());
        let (lines, end) = leaver;
        assert!(lines.last().is_some_and(|line| line.starts_with("! idle")) && end == End::Eof, "{lines:?}, {end:?}");
        let heard = alice.sync();
        assert!(heard.len() == 1 && heard[0].starts_with("* silent left ("), "{heard:?}");
    });
}

fn one_order(subject: &Subject) {
    subject.abused(&FAST, |room| {
        let [mut ann, mut bob, mut carol, mut dave, mut eve] = room.gather(["ann", "bob", "carol", "dave", "eve"]);
        thread::scope(|scope| {
            for sender in [&mut ann, &mut bob] {
                scope.spawn(move || {
                    (0..300).for_each(|i| sender.say(&format!("line {i}")));
                    drop(sender.sync());
                });
            }
            let read = |member: &mut Member| -> Vec<String> { (0..600).map(|_| member.line()).collect() };
            let others = [&mut carol, &mut dave].map(|member| scope.spawn(move || read(member)));
            let order = read(&mut eve);
            for nick in ["ann", "bob"] {
                let mine: Vec<&String> = order.iter().filter(|l| l.starts_with(&format!("<{nick}>"))).collect();
                let wanted: Vec<String> = (0..300).map(|i| format!("<{nick}> line {i}")).collect();
                assert!(mine.iter().zip(&wanted).all(|(a, b)| *a == b) && mine.len() == 300, "{nick}'s own order");
            }
            for other in others {
                let other = other.join().unwrap();
                let differs = order.iter().zip(&other).position(|(a, b)| a != b);
                assert_eq!(differs, None, "two orders");
            }
        });
    });
}

fn join_storm(subject: &Subject) {
    let args = [&FAST[..], &["--max-conns", "320", "--max-per-addr", "320"]].concat();
    subject.abused(&args, |room| {
        let mut members: Vec<Member> = (0..300).map(|_| room.connect()).collect();
        for (i, member) in members.iter_mut().enumerate() {
            member.say(&format!("member{i}"));
        }
        for member in &mut members {
            let line = member.line();
            assert!(line.starts_with("* welcome"), "{line}");
        }
        let mut orders: Vec<Vec<String>> = members.iter_mut().map(Member::sync).collect();
        orders.iter_mut().for_each(|lines| lines.retain(|line| line.ends_with(" joined")));
        // The first one saw all others, the next ones each one less, in the same order.
        orders.sort_by_key(Vec::len);
        let lengths: Vec<usize> = orders.iter().map(Vec::len).collect();
        assert_eq!(lengths, (0..300).collect::<Vec<_>>(), "each is told of those who came after it");
        assert!(orders.iter().all(|lines| orders[299].ends_with(lines)), "two orders of joining");
    });
}

/// What the room heard is what the log holds.
fn log_order(subject: &Subject) {
    subject.abused(&[FAST.as_slice(), &LOGGED].concat(), |room| {
        let [mut ann, mut bob, mut eve] = room.gather(["ann", "bob", "eve"]);
        thread::scope(|scope| {
            for sender in [&mut ann, &mut bob] {
                scope.spawn(move || (0..200).for_each(|i| sender.say(&format!("line {i}"))));
            }
        });
        let order: Vec<String> = (0..400).map(|_| eve.line()).collect();
        let logged = || {
            let text = room.log_file();
            text.lines().filter_map(|line| Some(line[line.find('<')?..].to_owned())).collect::<Vec<_>>()
        };
        eventually("all is in the log", || (logged().len() >= 400).then_some(()));
        assert!(logged() == order, "the log has another order");
    });
}

/// Told that the house is full, and closed.
fn refused(room: &Room) {
    let mut late = room.connect();
    let _ = late.try_send("late\n");
    let (lines, end) = late.rest();
    let told = lines.len() == 1 && lines[0].starts_with("! server-full") && end == End::Eof;
    assert!(told, "{lines:?}, {end:?}");
}

fn one_too_many(subject: &Subject) {
    subject.abused(&["--max-conns", "4"], |room| {
        let [mut alice, bob, _carol] = room.gather(["alice", "bob", "carol"]);
        let silent = Peer::connect(room.server.addr);
        for _ in 0..5 {
            refused(room);
        }
        assert_eq!(alice.sync(), [""; 0]);
        drop(bob);
        let mut dave =
            eventually("a place that is free is given away", || Member::try_join(room.server.addr, "dave").ok());
        dave.say("hi");
        alice.until("the new one", |line| line == "<dave> hi");
        drop(silent);
    });
}

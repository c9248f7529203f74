//! Members that talk while others are killed, stopped and reset at random, and the history of it all.

use std::thread;
use std::time::UNIX_EPOCH;

use super::history::{Heard, Life, Said, check};
use super::{FAST, Member, Room, Row, Subject, fresh_nick};
use crate::catalogue::SlowReader;
use crate::server::eventually;

/// Drivers, the members that each of them plays, and what each of them does.
const DRIVERS: u64 = 4;
const MEMBERS: usize = 4;
const ACTS: usize = 120;

pub const ROWS: &[Row] = &[("history_under_a_nemesis", nemesis)];

fn nemesis(subject: &Subject) {
    let given = std::env::var("TESTKIT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(|| UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    eprintln!("history_under_a_nemesis: TESTKIT_SEED={seed}");
    subject.abused(&FAST, |room| {
        let mut witness = room.join("witness");
        witness.sync();
        let (order, lives) = thread::scope(|scope| {
            let watching = scope.spawn(move || {
                let (order, _) = witness.until("the end", |line| line.ends_with("> the end of it all"));
                (order, witness)
            });
            let policy = subject.slow_reader();
            let drivers: Vec<_> = (0..DRIVERS)
                .map(|i| {
                    let random = Random(seed.wrapping_add(i).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
                    scope.spawn(move || {
                        Driver { room, random, policy, cast: Vec::new(), past: Vec::new(), said: 0 }.run()
                    })
                })
                .collect();
            let played: Vec<(Vec<Player>, Vec<Life>)> = drivers.into_iter().map(|it| it.join().unwrap()).collect();
            let mut crier = room.join("crier");
            crier.say("the end of it all");
            let (mut order, mut witness) = watching.join().unwrap();
            order.retain(|line| line != "* crier joined");
            // Everybody reads to the same line; only then may one of them leave.
            let (cast, past): (Vec<_>, Vec<_>) = played.into_iter().unzip();
            let stayed: Vec<(Life, Member)> = cast.into_iter().flatten().map(Player::stays).collect();
            let lives: Vec<Life> =
                past.into_iter().flatten().chain(stayed.iter().map(|(life, _)| life.clone())).collect();
            drop(stayed);
            witness.say("/quit");
            witness.rest();
            (order, lives)
        });
        let faults = check(&order, &lives);
        let first = faults.iter().take(5).map(String::as_str).collect::<Vec<_>>().join("; ");
        assert!(faults.is_empty(), "TESTKIT_SEED={seed}: {} lives, {} faults: {first}", lives.len(), faults.len());
        let lines = order.iter().filter(|line| line.starts_with('<')).count();
        assert!(lines > 300 && lives.len() > 40, "too little happened: {lines} lines, {} lives", lives.len());
    });
}

/// One who plays members, one act after the other; all of them run at once.
struct Driver<'a> {
    room: &'a Room,
    random: Random,
    policy: SlowReader,
    cast: Vec<Player>,
    past: Vec<Life>,
    said: u64,
}

/// A member, and what it has said and heard so far.
struct Player {
    member: Member,
    life: Life,
    /// Acts left for which it does not read.
    stopped: u64,
}

impl Driver<'_> {
    fn run(mut self) -> (Vec<Player>, Vec<Life>) {
        for _ in 0..ACTS {
            while self.cast.len() < MEMBERS {
                self.cast.push(Player::enter(self.room));
            }
            for player in &mut self.cast {
                player.stopped = player.stopped.saturating_sub(1);
                if player.stopped == 0 {
                    player.listen();
                }
            }
            let at = self.random.below(MEMBERS as u64) as usize;
            match self.random.below(20) {
                0..=11 => self.speak(at),
                12 | 13 => self.cast[at].stopped = 2 + self.random.below(10),
                14 => self.leave(at, Player::quit),
                15 => self.leave(at, Player::close),
                16 | 17 => self.leave(at, Player::reset),
                18 => self.leave(at, Player::half_close),
                _ => self.leave(at, Player::half_line),
            }
        }
        self.cast.iter_mut().for_each(Player::settle);
        (self.cast, self.past)
    }

    /// A few lines, in as many or as few segments as it falls out.
    fn speak(&mut self, at: usize) {
        let player = &mut self.cast[at];
        let mut bytes = String::new();
        for _ in 0..=self.random.below(6) {
            self.said += 1;
            let filling = "x".repeat(self.random.below(60) as usize);
            let text = format!("{} {} {filling}.", player.life.nick, self.said);
            bytes += &format!("{text}\n");
            player.life.said.push(text);
        }
        let split = self.random.below(bytes.len() as u64) as usize;
        player.member.send(&bytes[..split]);
        player.member.send(&bytes[split..]);
    }

    fn leave(&mut self, at: usize, how: fn(Player) -> Life) {
        let mut life = how(self.cast.swap_remove(at));
        life.stays = false;
        // Under this policy the lines that one misses are no fault, and which they are nobody knows.
        if self.policy == SlowReader::Drop {
            life.must_hear = Heard::Part;
        }
        self.past.push(life);
    }
}

impl Player {
    fn enter(room: &Room) -> Player {
        let nick = fresh_nick();
        let member = eventually("a new member", || Member::try_join(room.server.addr, &nick).ok());
        let life = Life {
            nick,
            said: Vec::new(),
            heard: Vec::new(),
            must_hear: Heard::All,
            must_be_heard: Said::All,
            stays: true,
        };
        Player { member, life, stopped: 0 }
    }

    /// Takes what has come.
    fn listen(&mut self) {
        while self.member.has_more() {
            match self.member.next() {
                Ok(line) => self.life.heard.push(line),
                Err(end) => panic!("{}: {end:?} in the middle of it", self.life.nick),
            }
        }
    }

    /// Waits until all that it has said is in the room, or the crier might be faster.
    fn settle(&mut self) {
        let heard = self.member.sync();
        self.life.heard.extend(heard);
    }

    /// The rest of the lines; the last one belongs to the conversation's end.
    fn take_rest(&mut self) {
        let (lines, _) = self.member.rest();
        self.life.heard.extend(lines.into_iter().filter(|line| !line.contains("bye") || !line.starts_with(['*', '='])));
    }

    fn quit(mut self) -> Life {
        self.member.say("/quit");
        self.take_rest();
        self.life
    }

    fn half_close(mut self) -> Life {
        self.member.half_close();
        self.take_rest();
        self.life
    }

    /// Unread bytes make a reset of a close, and that may eat what was said.
    fn close(mut self) -> Life {
        self.life.must_hear = Heard::Beginning;
        self.life.must_be_heard = Said::Beginning;
        self.life
    }

    fn reset(mut self) -> Life {
        self.life.must_hear = Heard::Beginning;
        self.life.must_be_heard = Said::Beginning;
        self.member.reset();
        self.life
    }

    fn half_line(mut self) -> Life {
        self.member.send("never to be finish");
        self.half_close()
    }

    /// Reads up to the crier's line.
    fn stays(mut self) -> (Life, Member) {
        let (lines, _) = self.member.until("the end", |line| line.ends_with("> the end of it all"));
        self.life.heard.extend(lines.into_iter().filter(|line| line != "* crier joined"));
        (self.life, self.member)
    }
}

/// xorshift64*: the same acts for the same seed. What the kernel makes of them is another matter.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }
}

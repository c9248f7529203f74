//! Clients that misbehave, beside those that are measured: in a thread and an epoll instance of their own, so that what
//! they cost this program is not in the latencies of the others.

use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::crew::Crew;
use super::epoll::{BOTH, Epoll, News};
use super::nanos;
use crate::misbehave::{Fates, Habit, Misbehave};
use crate::plan::Plan;
use crate::random::Random;
use crate::workload::Talk;

/// One abuser connects again no sooner than this: they shall be a nuisance, not a flood.
const AGAIN: Duration = Duration::from_millis(10);
/// Between two looks whether the run is over.
const GLANCE: u64 = 10_000_000;
/// What a slow reader takes at once.
const SIP: usize = 64;
/// What those ask for who want the server to be stuck in a long answer.
const LONG: u32 = 1_000_000;

/// One of them.
#[derive(Default)]
struct Abuser {
    socket: Option<Socket>,
    connected: bool,
    began: u64,
    /// When it does the next thing: connect, send a byte, read a sip.
    due: Option<u64>,
    sent: usize,
    got: u64,
    /// The answer begins as an error line does.
    error_line: bool,
}

/// All of them.
struct Mob<'a> {
    crew: &'a Crew,
    addr: SocketAddr,
    habit: Habit,
    text: Vec<u8>,
    want: u64,
    epoll: Epoll,
    abusers: Vec<Abuser>,
    fates: Fates,
    way: u64,
}

/// Misbehaves from the first connection of a good client until the run is stopped.
pub fn run(plan: &Plan, misbehave: &Misbehave, crew: &Crew) -> Fates {
    let Some(addr) = crew.wait_for_addr() else { return Fates::default() };
    let Ok(epoll) = Epoll::new(256) else { return Fates::default() };
    let (text, want) = text(plan, misbehave.habit);
    let abusers = (0..misbehave.clients).map(|_| Abuser { due: Some(0), ..Abuser::default() }).collect();
    let habit = misbehave.habit;
    let mut mob = Mob { crew, addr, habit, text, want, epoll, abusers, fates: Fates::default(), way: 0 };
    while !crew.is_stopped() && mob.turn().is_ok() {}
    mob.fates.open += mob.abusers.iter().filter(|abuser| abuser.connected).count() as u64;
    mob.fates
}

/// What is sent, and how long the answer would be.
fn text(plan: &Plan, habit: Habit) -> (Vec<u8>, u64) {
    let bytes = match habit {
        Habit::SlowRead(_) | Habit::RstMidReply => plan.bytes.max(LONG),
        _ => plan.bytes,
    };
    let (mut text, want) = match &plan.talk {
        Talk::Number => (format!("{bytes}\n").into_bytes(), u64::from(bytes)),
        Talk::Echo => (common::service::answer_from(0, bytes).to_vec(), u64::from(bytes)),
        Talk::Raw { request, reply_bytes } => (request.clone(), u64::from(*reply_bytes)),
    };
    match habit {
        Habit::Silent | Habit::RstAfterConnect => text.clear(),
        Habit::HalfRequest => text.truncate(text.len().div_ceil(2).min(text.len().saturating_sub(1)).max(1)),
        Habit::NoNewline => text.truncate(text.len().saturating_sub(1).max(1)),
        Habit::HugeNumber => text = b"99999999999999999999\n".to_vec(),
        Habit::Garbage => {
            let mut random = Random::new(plan.seed);
            text = (0..64).map(|_| random.bits() as u8).filter(|byte| *byte != b'\n').chain([b'\n']).collect();
        }
        Habit::SlowSend(_) | Habit::SlowRead(_) | Habit::HalfClose | Habit::RstMidReply => {}
    }
    (text, want)
}

impl Mob<'_> {
    fn turn(&mut self) -> std::io::Result<()> {
        let now = self.crew.now();
        for i in 0..self.abusers.len() {
            if self.abusers.get(i).and_then(|abuser| abuser.due).is_some_and(|due| due <= now) {
                self.act(i, now);
            }
        }
        let next = self.abusers.iter().filter_map(|abuser| abuser.due).min().unwrap_or(u64::MAX);
        let patience = next.saturating_sub(self.crew.now()).min(GLANCE);
        for number in 0..self.epoll.wait(Duration::from_nanos(patience))? {
            if let Some(news) = self.epoll.news(number) {
                self.on_news(news);
            }
        }
        Ok(())
    }

    /// It is time for something: a connection, a byte, or a sip.
    fn act(&mut self, i: usize, now: u64) {
        let Some(abuser) = self.abusers.get_mut(i) else { return };
        abuser.due = None;
        match self.habit {
            _ if abuser.socket.is_none() => self.connect(i, now),
            Habit::SlowSend(_) => self.send(i, now),
            Habit::SlowRead(_) => self.read(i, now),
            _ => {}
        }
    }

    fn connect(&mut self, i: usize, now: u64) {
        let Some(abuser) = self.abusers.get_mut(i) else { return };
        *abuser = Abuser { began: now, ..Abuser::default() };
        self.fates.tried += 1;
        self.way += 1;
        let kind = Type::STREAM.nonblocking().cloexec();
        let made = Socket::new(Domain::for_address(self.addr), kind, None).and_then(|socket| {
            if matches!(self.habit, Habit::SlowRead(_)) {
                socket.set_recv_buffer_size(SIP)?;
            }
            match self.crew.route.connect(&socket, self.way, self.addr) {
                Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
                _ => self.epoll.add(&socket, i, BOTH)?,
            }
            Ok(socket)
        });
        match made {
            Ok(socket) => abuser.socket = Some(socket),
            Err(_) => self.ends(i, now, |fates| &mut fates.refused),
        }
    }

    fn on_news(&mut self, news: News) {
        let (i, now) = (news.token, self.crew.now());
        let Some(abuser) = self.abusers.get_mut(i) else { return };
        let Some(socket) = &abuser.socket else { return };
        if !abuser.connected {
            if !matches!(socket.take_error(), Ok(None)) {
                return self.ends(i, now, |fates| &mut fates.refused);
            }
            abuser.connected = true;
            self.fates.connected += 1;
            if self.habit == Habit::RstAfterConnect {
                return self.reset(i, now);
            }
        }
        if !matches!(self.habit, Habit::SlowSend(_)) || abuser.sent == 0 {
            self.send(i, now);
        }
        let slow = matches!(self.habit, Habit::SlowRead(_));
        if news.is_readable() && (!slow || news.is_over()) {
            self.read(i, now);
        }
    }

    /// Sends what the habit sends now.
    fn send(&mut self, i: usize, now: u64) {
        let Some(abuser) = self.abusers.get_mut(i) else { return };
        let Some(socket) = &abuser.socket else { return };
        let left = self.text.get(abuser.sent..).unwrap_or_default();
        let piece = match self.habit {
            Habit::SlowSend(_) => left.get(..left.len().min(1)).unwrap_or_default(),
            _ => left,
        };
        if !piece.is_empty() {
            // What a failed send means is read, or has been.
            abuser.sent += socket.send_with_flags(piece, libc::MSG_NOSIGNAL).unwrap_or(0);
        }
        let all = abuser.sent == self.text.len();
        match self.habit {
            Habit::SlowSend(pause) if !all => abuser.due = Some(now + nanos(pause)),
            Habit::SlowRead(pause) => abuser.due = Some(now + nanos(pause)),
            // Fails when the server has gone already, which is read then.
            Habit::HalfClose if all => _ = socket.shutdown(std::net::Shutdown::Write),
            _ => {}
        }
    }

    fn read(&mut self, i: usize, now: u64) {
        let Some(abuser) = self.abusers.get_mut(i) else { return };
        let Some(socket) = &abuser.socket else { return };
        let mut buffer = [0; 16 * 1024];
        let sip = if let Habit::SlowRead(_) = self.habit { SIP } else { buffer.len() };
        loop {
            let received = (&mut &*socket).read(buffer.get_mut(..sip).unwrap_or_default());
            match received {
                Ok(0) if abuser.error_line => return self.ends(i, now, |fates| &mut fates.error_line),
                Ok(0) if abuser.got >= self.want => return self.ends(i, now, |fates| &mut fates.answered),
                Ok(0) => return self.ends(i, now, |fates| &mut fates.closed),
                Ok(n) => {
                    abuser.error_line |= abuser.got == 0 && buffer.starts_with(b"ERR ");
                    abuser.got += n as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) if abuser.error_line => return self.ends(i, now, |fates| &mut fates.error_line),
                Err(_) => return self.ends(i, now, |fates| &mut fates.reset),
            }
            if self.habit == Habit::RstMidReply && !abuser.error_line {
                return self.reset(i, now);
            }
            if let Habit::SlowRead(pause) = self.habit {
                abuser.due = Some(now + nanos(pause));
                break;
            }
        }
        if abuser.got >= self.want && !abuser.error_line {
            self.ends(i, now, |fates| &mut fates.answered);
        }
    }

    /// Leaves by a reset.
    fn reset(&mut self, i: usize, now: u64) {
        if let Some(Abuser { socket: Some(socket), .. }) = self.abusers.get(i) {
            // Fails on a connection that is reset already, and then there is nothing to do.
            _ = socket.set_linger(Some(Duration::ZERO));
        }
        self.ends(i, now, |fates| &mut fates.left);
    }

    /// The connection is over, one way or another, and the abuser comes again.
    fn ends(&mut self, i: usize, now: u64, fate: impl Fn(&mut Fates) -> &mut u64) {
        let Some(abuser) = self.abusers.get_mut(i) else { return };
        *fate(&mut self.fates) += 1;
        let age = now.saturating_sub(abuser.began);
        if abuser.connected {
            self.fates.longest_ns = self.fates.longest_ns.max(age);
        }
        *abuser =
            Abuser { due: Some((abuser.began + nanos(AGAIN)).max(now)), began: abuser.began, ..Abuser::default() };
    }
}

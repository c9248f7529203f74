//! The run: join, talk, drain.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use socket2::{Domain, Socket, Type};

use super::clock::{Clock, Times};
use super::member::{Member, connect, end_of, payload};
use super::{Moment, Plan, Report};
use crate::engine::epoll::{BOTH, Epoll, News};
use crate::limits::{self, Cpu};
use crate::machine::Machine;

/// Connections that are being made at once.
const AT_ONCE: usize = 128;
/// Nothing has come for so long: nothing is on its way.
const QUIET: Duration = Duration::from_millis(300);
/// Members on whom latency is taken.
const PROBES: usize = 32;
const EVENTS: usize = 512;
/// A dead reader's receive buffer, so that the server feels it soon.
const SMALL: usize = 4096;
/// Longest wait between two looks at Ctrl-C.
const LOOK: Duration = Duration::from_millis(100);

struct Room<'a> {
    plan: &'a Plan,
    stop: &'a AtomicBool,
    epoll: Epoll,
    members: Vec<Member>,
    block: Vec<u8>,
    base: Instant,
    /// When the last byte came.
    heard: u64,
    clock: Clock,
    /// Deliveries, those of the warm-up too.
    counted: u64,
}

/// Fills a room, lets it talk, and says what came of it. `at` is called at each [`Moment`]; `stop` ends it early.
///
/// # Errors
/// The server cannot be reached, or does not let somebody in.
pub fn run(plan: &Plan, at: &mut dyn FnMut(Moment) -> anyhow::Result<()>, stop: &AtomicBool) -> anyhow::Result<Report> {
    let addr = (plan.host.as_str(), plan.port).to_socket_addrs();
    let addr = addr.with_context(|| plan.host.clone())?.next().with_context(|| plan.host.clone())?;
    let apart = if plan.wire.senders_apart() { plan.senders } else { 0 };
    limits::make_room(plan.members + plan.dead + apart)?;
    let mut room = Room::new(plan, stop)?;
    let join_seconds = room.join(addr, plan.members as usize, true)?;
    room.join(addr, apart as usize, false)?;
    let dead = room.bury(addr)?;
    let settled_seconds = room.settle()?;
    let join_bytes = room.members.iter().map(|member| member.bytes).sum();
    at(Moment::Joined)?;

    let (started, cpu) = room.talk(at)?;
    let seconds = Duration::from_nanos(room.heard.saturating_sub(started)).as_secs_f64();
    let cpu = Cpu::since(cpu);
    at(Moment::Ended)?;
    room.report(seconds, cpu, (join_seconds, settled_seconds, join_bytes), &dead)
}

impl<'a> Room<'a> {
    fn new(plan: &'a Plan, stop: &'a AtomicBool) -> anyhow::Result<Self> {
        let histogram = || Histogram::new_with_bounds(1, 3_600_000_000_000, 3);
        Ok(Room {
            plan,
            stop,
            epoll: Epoll::new(EVENTS).context("epoll_create1")?,
            members: Vec::new(),
            block: vec![0; super::member::BLOCK],
            base: Instant::now(),
            heard: 0,
            clock: Clock { times: Vec::new(), warm: 0, latency: histogram()?, from_send: histogram()? },
            counted: 0,
        })
    }

    fn now(&self) -> u64 {
        self.base.elapsed().as_nanos() as u64
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Lets so many in, a crowd of them at once. Seconds to the last welcome.
    fn join(&mut self, addr: SocketAddr, count: usize, listens: bool) -> anyhow::Result<f64> {
        let (start, before) = (Instant::now(), self.members.len());
        let mut welcomed = 0;
        while welcomed < count {
            while self.members.len() < (before + count).min(before + welcomed + AT_ONCE) {
                let socket = connect(addr).with_context(|| format!("connect {addr}"))?;
                let mut member = Member::new(socket, listens);
                let hello = self.plan.wire.hello(&format!("m{}", self.members.len()), listens);
                self.epoll.add(&member.socket, self.members.len(), BOTH).context("epoll_ctl")?;
                member.send(&hello).with_context(|| format!("connect {addr}"))?;
                self.members.push(member);
            }
            self.turn(LOOK)?;
            welcomed = self.members.iter().skip(before).filter(|member| member.is_in).count();
            if start.elapsed() > self.plan.patience {
                bail!("{welcomed} of {count} have joined after {} s", self.plan.patience.as_secs());
            }
            if self.is_stopped() {
                bail!("interrupted before all had joined");
            }
        }
        if listens {
            let step = count.div_ceil(PROBES).max(1);
            self.members.iter_mut().step_by(step).for_each(|member| member.is_probe = true);
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// Members who join and are never looked at again.
    fn bury(&mut self, addr: SocketAddr) -> anyhow::Result<Vec<Socket>> {
        let mut dead = Vec::new();
        for nth in 0..self.plan.dead {
            let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).context("socket")?;
            socket.set_recv_buffer_size(SMALL).context("setsockopt SO_RCVBUF")?;
            socket.connect(&addr.into()).with_context(|| format!("connect {addr}"))?;
            socket.send(&self.plan.wire.hello(&format!("dead{nth}"), true)).context("send")?;
            dead.push(socket);
        }
        Ok(dead)
    }

    /// Waits until nothing is on its way. Seconds from the beginning to the last byte.
    fn settle(&mut self) -> anyhow::Result<f64> {
        let end = self.now() + self.plan.patience.as_nanos() as u64;
        self.heard = self.heard.max(self.now().saturating_sub(QUIET.as_nanos() as u64 / 2));
        let heard = loop {
            let now = self.now();
            if now - self.heard > QUIET.as_nanos() as u64 || now > end || self.is_stopped() {
                break self.heard;
            }
            self.turn(LOOK)?;
        };
        Ok(Duration::from_nanos(heard).as_secs_f64())
    }

    /// Sends by the schedule, listens, and waits for the last deliveries. When the first message that counts was due,
    /// and the client's CPU time until then.
    fn talk(&mut self, at: &mut dyn FnMut(Moment) -> anyhow::Result<()>) -> anyhow::Result<(u64, Cpu)> {
        let plan = self.plan;
        let gap = 1e9 / plan.rate;
        let warm = (plan.warmup.as_secs_f64() * plan.rate) as u64;
        self.clock.warm = warm;
        let total = warm + (plan.duration.as_secs_f64() * plan.rate).round().max(1.0) as u64;
        let start = self.now() + LOOK.as_nanos() as u64 / 10;
        let first = if plan.wire.senders_apart() { plan.members as usize } else { 0 };
        let (mut number, mut counts) = (0, None);
        while number < total && !self.is_stopped() {
            let due = start + (number as f64 * gap) as u64;
            let now = self.now();
            if due > now {
                self.turn(Duration::from_nanos(due - now).min(LOOK))?;
                continue;
            }
            if number == warm {
                at(Moment::Started)?;
                counts = Some((due, Cpu::now()));
            }
            let sender = first + (number % u64::from(plan.senders)) as usize;
            self.say(sender, number, due);
            number += 1;
            // A schedule that is far too fast must not keep the client from listening.
            if number % 64 == 0 {
                self.turn(Duration::ZERO)?;
            }
        }
        let (started, cpu) = counts.unwrap_or_else(|| (self.now(), Cpu::now()));
        let (quiet, expected) = (plan.patience.as_nanos() as u64, self.expected());
        let mut moved = self.now();
        while self.delivered() < expected && self.now() - moved < quiet && !self.is_stopped() {
            let before = self.counted;
            self.turn(LOOK)?;
            if self.counted > before {
                moved = self.now();
            }
        }
        Ok((started, cpu))
    }

    fn say(&mut self, sender: usize, number: u64, intended: u64) {
        let message = self.plan.wire.message(&payload(number, self.plan.bytes));
        let now = self.now();
        let Some(member) = self.members.get_mut(sender) else { return };
        let sent = !member.is_gone && member.send(&message).is_ok();
        self.clock.times.push(Times { intended, sent: sent.then_some(now), ..Times::default() });
    }

    /// Deliveries of the messages that count and were sent, one for each other member.
    fn expected(&self) -> u64 {
        self.sent() * self.listeners()
    }

    fn sent(&self) -> u64 {
        self.clock.counting().filter(|times| times.sent.is_some()).count() as u64
    }

    fn delivered(&self) -> u64 {
        self.counted.saturating_sub(self.clock.warm * self.listeners())
    }

    fn listeners(&self) -> u64 {
        u64::from(self.plan.members) - u64::from(!self.plan.wire.senders_apart())
    }

    /// One wait, and what it brings.
    fn turn(&mut self, patience: Duration) -> anyhow::Result<()> {
        let count = self.epoll.wait(patience).context("epoll_wait")?;
        for nth in 0..count {
            if let Some(news) = self.epoll.news(nth) {
                self.hear(news)?;
            }
        }
        Ok(())
    }

    fn hear(&mut self, news: News) -> anyhow::Result<()> {
        let Some(member) = self.members.get_mut(news.token) else { return Ok(()) };
        if member.is_gone {
            return Ok(());
        }
        let broken = member.has_more() && member.flush().is_err();
        loop {
            let now = self.base.elapsed().as_nanos() as u64;
            let Some(member) = self.members.get_mut(news.token) else { return Ok(()) };
            match member.read(&mut self.block) {
                Ok(None) => break,
                Ok(Some(n @ 1..)) => {
                    self.heard = now;
                    let bytes = self.block.get(..n).unwrap_or_default();
                    if member.is_in {
                        let seen = |number| self.clock.seen(number, now);
                        self.counted += member.take(bytes, seen);
                    } else {
                        member.keep(bytes);
                        member.is_in = self.plan.wire.welcome(&member.came, member.listens).map_err(|text| {
                            anyhow::anyhow!("the server lets only {} members in: {text}", news.token)
                        })?;
                    }
                    if n < self.block.len() && !news.is_over() {
                        break;
                    }
                }
                Ok(Some(0)) | Err(_) => return self.gone(news.token),
            }
        }
        let wire = self.plan.wire;
        let Some(member) = self.members.get_mut(news.token) else { return Ok(()) };
        if wire == super::Wire::Lines && !member.is_in {
            member.is_in = !member.has_more();
        }
        if broken { self.gone(news.token) } else { Ok(()) }
    }

    fn gone(&mut self, token: usize) -> anyhow::Result<()> {
        let Some(member) = self.members.get_mut(token) else { return Ok(()) };
        member.is_gone = true;
        if member.is_in {
            return Ok(());
        }
        let error = member.socket.take_error().ok().flatten();
        let error = error.map_or_else(|| "it closed the connection".to_owned(), |error| error.to_string());
        bail!("the server lets only {token} members in: {error}; {}", member.last_words())
    }

    fn report(
        self,
        seconds: f64,
        cpu: Cpu,
        (join_seconds, settled_seconds, join_bytes): (f64, f64, u64),
        dead: &[Socket],
    ) -> anyhow::Result<Report> {
        let mut spread = Histogram::new_with_bounds(1, 3_600_000_000_000, 3)?;
        for times in self.clock.counting() {
            if let Some(first) = times.first {
                spread.saturating_record((times.last - first).max(1));
            }
        }
        let unsent = self.members.iter().filter(|member| member.has_more()).count() as u64;
        let (offered, sent) = (self.clock.counting().count() as u64, self.sent());
        let gone = self.members.iter().enumerate().filter(|(_, member)| member.is_gone);
        let lost_members = gone.map(|(nth, member)| format!("m{nth}: {}", member.last_words())).collect();
        Ok(Report {
            plan: self.plan.clone(),
            machine: Machine::here(self.base.elapsed()),
            join_seconds,
            settled_seconds,
            join_bytes,
            offered,
            sent: sent.saturating_sub(unsent),
            expected: self.expected(),
            delivered: self.delivered(),
            seconds,
            latency: self.clock.latency,
            from_send: self.clock.from_send,
            spread,
            lost_members,
            dead: dead.iter().map(end_of).collect(),
            cpu,
            server: None,
            interrupted: self.stop.load(Ordering::Relaxed),
        })
    }
}

//! One of the concurrent clients, without a socket: what its connection is doing, when it did it, and what comes next.
//!
//! The engine makes the calls and tells what came of them; a [`Client`] judges, counts in the [`Tally`], and answers
//! with the next [`Step`]. All times are nanoseconds since the run began.

use std::time::Duration;

use crate::answer::{Answer, Verdict};
use crate::failure::{Failure, Phase};
use crate::plan::{Close, Plan, Until, Verify};
use crate::random::Random;
use crate::stats::{Instants, Tally};
use crate::workload::Workload;

/// What the engine does next with the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until the kernel reports something.
    Wait,
    /// Send the next request.
    Send,
    /// Keep the connection until the next request is due: [`Client::next`].
    Pause,
    /// Close: the connection has served its purpose, or failed.
    Close,
}

/// What a plan means for one client.
#[derive(Clone, Debug)]
pub struct Rules {
    work: Workload,
    verify: Verify,
    per_connection: u32,
    endless: bool,
    /// Requests have a time of their own, by a schedule or after a pause.
    paced: bool,
    server_closes: bool,
    connect_timeout: Duration,
    timeout: Duration,
    deadline: Option<Duration>,
}

impl From<&Plan> for Rules {
    fn from(plan: &Plan) -> Self {
        Rules {
            work: plan.into(),
            verify: plan.verify,
            per_connection: plan.per_connection,
            // With a rate it is the schedule that ends.
            endless: matches!(plan.until, Until::Elapsed(_)) || plan.rate.is_some(),
            paced: plan.rate.is_some() || plan.think.is_some(),
            server_closes: plan.close == Close::Server,
            connect_timeout: plan.connect_timeout,
            timeout: plan.timeout,
            deadline: plan.deadline,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    /// Connecting, and there is no request yet.
    Opening,
    /// Established, and the next request is not due.
    Ready,
    /// Connecting, and the first request is to be sent.
    Connecting,
    /// The kernel has not taken the whole request yet.
    Sending,
    Waiting,
    /// The last answer is here, the server's close is not.
    AwaitingClose,
}

/// One concurrent client.
#[derive(Debug, Default)]
pub struct Client {
    state: State,
    /// How much of the requests sent together the kernel has taken, in bytes.
    taken: u64,
    /// How many requests were sent together, and how many of them have no answer yet.
    batch: u16,
    unanswered: u16,
    /// Bytes of the answer that is due next.
    want: u32,
    /// What sizes are drawn from: at the first request of those sent together, and behind the answer that is due next.
    batch_random: Random,
    random: Random,
    /// The errno of a send that failed; what the server had said before may still be read.
    send_errno: i32,
    /// Connections not begun yet; where the connection is kept, requests not begun yet.
    tries_left: u32,
    /// Requests not begun yet on this connection.
    requests_left: u32,
    answer: Answer,
    at: Instants,
}

impl Client {
    /// A client with all its work before it.
    pub fn new(until: Until, random: Random) -> Self {
        let tries_left = match until {
            Until::Tries(tries) => tries,
            Until::Elapsed(_) => 1,
        };
        Client { tries_left, random, ..Client::default() }
    }

    /// Whether it has a connection under way.
    pub fn is_idle(&self) -> bool {
        self.state == State::Idle
    }

    /// Whether its connection is not established yet.
    pub fn is_connecting(&self) -> bool {
        matches!(self.state, State::Connecting | State::Opening)
    }

    /// Whether its connection is not established yet, and there is no request to send on it.
    pub fn is_opening(&self) -> bool {
        self.state == State::Opening
    }

    /// Whether its connection is there for the next request.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Whether the request, or a part of it, is still to be sent.
    pub fn is_sending(&self) -> bool {
        matches!(self.state, State::Connecting | State::Sending)
    }

    /// Whether its present connection is still without any byte of an answer. False when idle.
    pub fn is_unanswered(&self) -> bool {
        self.is_sending() || self.is_opening() || (self.state == State::Waiting && !self.answer.begun())
    }

    /// Whether a send has failed on its connection.
    pub fn is_broken(&self) -> bool {
        self.send_errno != 0
    }

    /// Whether there is another connection to make.
    pub fn has_work(&self) -> bool {
        self.tries_left > 0
    }

    /// What is to be sent now, or its first piece, and how many bytes it is with what was sent already.
    pub fn text<'a>(&self, rules: &'a Rules, scratch: &'a mut String) -> (&'a [u8], u64) {
        let count = u32::from(self.batch);
        let whole = rules.work.length(count, &self.batch_random);
        (rules.work.text(count, &self.batch_random, self.taken, scratch), whole)
    }

    /// When its connection, or its request on a kept connection, began.
    pub fn began(&self) -> u64 {
        self.at.start
    }

    /// When its request was to start.
    pub fn intended(&self) -> u64 {
        self.at.intended
    }

    /// connect() is about to be called, for a request that was to start at `intended`.
    pub fn begin(&mut self, now: u64, intended: u64, rules: &Rules) {
        if !rules.endless {
            self.tries_left = self.tries_left.saturating_sub(1);
        }
        self.requests_left = rules.per_connection.saturating_sub(1);
        self.state = State::Connecting;
        self.at.start = now;
        self.at.intended = intended;
        self.next_requests(now, rules);
    }

    /// connect() is about to be called, for a connection that waits for its first request.
    pub fn begin_bare(&mut self, now: u64, rules: &Rules) {
        self.begin(now, now, rules);
        self.requests_left = rules.per_connection;
        self.state = State::Opening;
    }

    /// The connection that waits for its first request is established.
    pub fn opened(&mut self, now: u64, tally: &mut Tally) {
        tally.established(now.saturating_sub(self.at.start));
        self.state = State::Ready;
    }

    /// The next request on a connection that is ready, which was to start at `intended`.
    pub fn next(&mut self, now: u64, intended: u64, rules: &Rules) {
        self.state = State::Sending;
        self.at.start = now;
        self.at.intended = intended;
        self.next_requests(now, rules);
    }

    /// The server has closed the connection while no request was under way: that is no failure.
    pub fn closed_idle(&mut self, rules: &Rules) {
        self.state = State::Idle;
        if rules.per_connection == 0 && !rules.endless {
            self.tries_left += 1;
        }
    }

    /// The connection came to nothing and shall not count: as before [`begin`](Self::begin).
    pub fn rewind(&mut self, rules: &Rules) {
        self.state = State::Idle;
        if !rules.endless {
            self.tries_left += if rules.per_connection == 0 { u32::from(self.batch.max(1)) } else { 1 };
        }
        self.random = self.batch_random.clone();
    }

    /// The kernel took `n` bytes of the request in a send at `now`. Returns true when `whole` bytes are taken.
    pub fn took(&mut self, n: usize, whole: u64, now: u64, tally: &mut Tally) -> bool {
        self.established(now, tally);
        if self.taken == 0 {
            self.at.sent = now;
            tally.sent += u64::from(self.batch);
        }
        self.taken += n as u64;
        if self.taken >= whole {
            self.state = State::Waiting;
        }
        self.state == State::Waiting
    }

    /// The send of a request failed on an established connection. What the server said before is to be read yet.
    pub fn send_failed(&mut self, errno: i32, now: u64, tally: &mut Tally) {
        self.established(now, tally);
        if self.taken == 0 {
            tally.sent += u64::from(self.batch);
        }
        self.send_errno = errno;
        self.state = State::Waiting;
    }

    /// Bytes came.
    pub fn received(&mut self, bytes: &[u8], now: u64, rules: &Rules, tally: &mut Tally) -> Step {
        tally.bytes += bytes.len() as u64;
        match self.state {
            State::Idle | State::Opening | State::Ready => return Step::Close,
            State::AwaitingClose if rules.verify == Verify::None => return Step::Wait,
            State::AwaitingClose => {
                let failure = Failure::TooManyBytes { extra: bytes.len() as u64, want: self.want };
                return self.fail(&failure, now, tally);
            }
            State::Connecting | State::Sending | State::Waiting => {}
        }
        let mut rest = bytes;
        loop {
            if !self.answer.begun() {
                self.at.first = now;
            }
            let mine = self.of_this_answer(rest);
            match self.answer.feed(mine, self.want, rules.verify) {
                Verdict::Wrong(failure) => return self.fail(&failure, now, tally),
                Verdict::Complete if self.unanswered <= 1 => return self.complete(now, rules, tally),
                Verdict::Complete => self.next_answer(now, rules, tally),
                Verdict::Incomplete => {}
            }
            rest = rest.get(mine.len()..).unwrap_or_default();
            if rest.is_empty() {
                return Step::Wait;
            }
        }
    }

    /// The bytes that belong to the answer under way: all of them, unless other answers are due behind it.
    fn of_this_answer<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        match self.answer.missing(self.want) {
            missing @ 1.. if self.unanswered > 1 => bytes.get(..missing).unwrap_or(bytes),
            _ => bytes,
        }
    }

    /// One of several requests that were sent together is answered.
    fn next_answer(&mut self, now: u64, rules: &Rules, tally: &mut Tally) {
        self.at.last = now;
        self.done(rules, tally);
        self.unanswered -= 1;
        self.want = rules.work.want(&mut self.random);
        self.answer.reset();
    }

    /// The server has closed.
    pub fn eof(&mut self, now: u64, rules: &Rules, tally: &mut Tally) -> Step {
        match self.state {
            State::AwaitingClose => {
                self.done(rules, tally);
                self.state = State::Idle;
                Step::Close
            }
            _ if self.send_errno != 0 => self.broken(self.send_errno, now, tally),
            _ => self.fail(&self.answer.closed(self.want), now, tally),
        }
    }

    /// recv failed for good; `errno` is its reason unless a send had failed before.
    pub fn broken(&mut self, errno: i32, now: u64, tally: &mut Tally) -> Step {
        let errno = if self.send_errno == 0 { errno } else { self.send_errno };
        let failure = match self.state {
            State::AwaitingClose => Failure::ResetInAnswer { got: u64::from(self.want), want: self.want },
            _ => self.answer.broken(errno, self.want),
        };
        self.fail(&failure, now, tally)
    }

    /// Why this client has waited too long, if it has.
    pub fn overdue(&self, now: u64, rules: &Rules) -> Option<Failure> {
        let (since, bound) = match self.state {
            State::Idle | State::Ready => return None,
            State::Connecting | State::Opening => (self.at.start, rules.connect_timeout),
            _ => (self.at.sent, rules.timeout),
        };
        if let Some(deadline) = rules.deadline.filter(|deadline| self.is_late(now, *deadline)) {
            return Some(match self.state {
                State::Connecting | State::Opening => Failure::ConnectTimedOut(deadline.as_millis()),
                _ => Failure::DeadlineMissed(deadline.as_millis()),
            });
        }
        if u128::from(now.saturating_sub(since)) < bound.as_nanos() {
            return None;
        }
        Some(match self.state {
            State::Connecting | State::Opening => Failure::ConnectTimedOut(bound.as_millis()),
            State::AwaitingClose => Failure::NotClosed(bound.as_millis()),
            _ => self.answer.late(bound.as_millis(), self.want),
        })
    }

    /// The connection, or the request under way, has failed.
    pub fn fail(&mut self, failure: &Failure, now: u64, tally: &mut Tally) -> Step {
        let since = match (failure, self.state) {
            (Failure::DeadlineMissed(_), _) => self.at.intended,
            (_, State::Connecting | State::Opening) => self.at.start,
            _ => self.at.sent,
        };
        if self.state == State::Sending && self.taken == 0 {
            tally.sent += u64::from(self.batch);
        }
        let failed = if failure.kind().phase() == Phase::Connect { 1 } else { self.unanswered };
        for _ in 0..failed {
            tally.failure(failure, now, now.saturating_sub(since));
        }
        self.state = State::Idle;
        Step::Close
    }

    /// The run is over, whatever is under way.
    pub fn censor(&mut self, now: u64, tally: &mut Tally) {
        match self.state {
            State::Idle | State::Ready => {}
            State::Connecting | State::Opening => tally.connects_censored += 1,
            State::Sending if self.taken == 0 => {}
            _ => {
                tally.censored += u64::from(self.unanswered);
                tally.censored_oldest_ns = tally.censored_oldest_ns.max(now.saturating_sub(self.at.sent));
            }
        }
        self.state = State::Idle;
    }

    fn established(&mut self, now: u64, tally: &mut Tally) {
        if self.state == State::Connecting {
            tally.established(now.saturating_sub(self.at.start));
            self.state = State::Sending;
        }
    }

    fn complete(&mut self, now: u64, rules: &Rules, tally: &mut Tally) -> Step {
        self.at.last = now;
        let another = self.take_request(rules);
        if rules.server_closes && !another {
            self.state = State::AwaitingClose;
            return Step::Wait;
        }
        self.done(rules, tally);
        if another && rules.paced {
            self.state = State::Ready;
            Step::Pause
        } else if another {
            self.next(now, now, rules);
            Step::Send
        } else {
            self.state = State::Idle;
            Step::Close
        }
    }

    /// The answer is whole and right, and in time unless the deadline was before it.
    fn done(&self, rules: &Rules, tally: &mut Tally) {
        match rules.deadline.filter(|deadline| self.is_late(self.at.last, *deadline)) {
            None => tally.done(self.at),
            Some(deadline) => {
                let age = self.at.last.saturating_sub(self.at.intended);
                tally.failure(&Failure::DeadlineMissed(deadline.as_millis()), self.at.last, age);
            }
        }
    }

    fn is_late(&self, now: u64, deadline: Duration) -> bool {
        u128::from(now.saturating_sub(self.at.intended)) > deadline.as_nanos()
    }

    /// Whether this connection has another request to carry; takes it off what is left.
    fn take_request(&mut self, rules: &Rules) -> bool {
        let left = match (rules.per_connection, rules.endless) {
            (0, true) => return true,
            (0, false) => &mut self.tries_left,
            _ => &mut self.requests_left,
        };
        let another = *left > 0;
        *left = left.saturating_sub(1);
        another
    }

    /// Takes requests that are to be sent together with the next one off what is left, and counts all.
    fn take_batch(&mut self, rules: &Rules) -> u16 {
        let most = rules.work.pipeline.saturating_sub(1);
        let more = match (rules.per_connection, rules.endless) {
            (0, true) => most,
            (0, false) => most.min(self.tries_left),
            _ => most.min(self.requests_left),
        };
        match rules.per_connection {
            0 if !rules.endless => self.tries_left -= more,
            0 => {}
            _ => self.requests_left -= more,
        }
        more as u16 + 1
    }

    fn next_requests(&mut self, now: u64, rules: &Rules) {
        self.batch = self.take_batch(rules);
        self.unanswered = self.batch;
        self.batch_random = self.random.clone();
        self.want = rules.work.want(&mut self.random);
        self.taken = 0;
        self.send_errno = 0;
        self.answer.reset();
        self.at.sent = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Kind;
    use proptest::prelude::*;

    fn plan() -> Plan {
        Plan { bytes: 5, until: Until::Tries(2), ..Plan::default() }
    }

    fn client(plan: &Plan) -> (Client, Rules, Tally) {
        (Client::new(plan.until, Random::default()), Rules::from(plan), Tally::new().unwrap())
    }

    #[test]
    fn a_connection_per_request() {
        let (mut client, rules, mut tally) = client(&plan());
        for start in [100, 1000] {
            assert!(client.has_work());
            client.begin(start, start, &rules);
            assert!(client.is_connecting() && client.is_unanswered());
            assert!(client.took(2, 2, start + 10, &mut tally));
            assert_eq!(client.received(b"abc", start + 30, &rules, &mut tally), Step::Wait);
            assert_eq!(client.received(b"de", start + 60, &rules, &mut tally), Step::Close);
            assert!(client.is_idle());
        }
        assert!(!client.has_work());
        assert_eq!((tally.connected, tally.sent, tally.done, tally.failed, tally.bytes), (2, 2, 2, 0, 10));
        let max = |h: &hdrhistogram::Histogram<u64>| h.max();
        let latency = &tally.latency;
        assert_eq!(
            [max(&latency.connect), max(&latency.first_byte), max(&latency.service), max(&latency.total)],
            [10, 20, 50, 60]
        );
    }

    #[test]
    fn a_kept_connection_starts_later_requests_at_the_send() {
        let (mut client, rules, mut tally) = client(&Plan { per_connection: 0, ..plan() });
        client.begin(0, 0, &rules);
        client.took(2, 2, 10, &mut tally);
        assert_eq!(client.received(b"abcde", 30, &rules, &mut tally), Step::Send);
        assert!(!client.has_work());
        assert!(client.took(2, 2, 31, &mut tally));
        assert_eq!(client.received(b"abcde", 40, &rules, &mut tally), Step::Close);
        assert_eq!((tally.latency.total.min(), tally.latency.total.max()), (10, 30));
        assert_eq!((tally.connected, tally.sent, tally.done), (1, 2, 2));
    }

    #[test]
    fn a_failed_kept_connection_is_made_again_for_the_rest() {
        let (mut client, rules, mut tally) = client(&Plan { per_connection: 0, until: Until::Tries(3), ..plan() });
        client.begin(0, 0, &rules);
        client.took(2, 2, 10, &mut tally);
        assert_eq!(client.received(b"abcde", 30, &rules, &mut tally), Step::Send);
        client.took(2, 2, 31, &mut tally);
        assert_eq!(client.eof(32, &rules, &mut tally), Step::Close);
        assert_eq!(tally.rows[0].kind, Kind::ClosedEarly);
        assert!(client.has_work());
        client.begin(40, 40, &rules);
        assert!(!client.has_work());
    }

    #[test]
    fn what_the_server_said_before_a_failed_send_is_read_first() {
        let (mut client, rules, mut tally) = client(&plan());
        client.begin(0, 0, &rules);
        client.send_failed(libc::EPIPE, 10, &mut tally);
        assert_eq!(client.received(b"ERR busy\n", 12, &rules, &mut tally), Step::Close);
        client.begin(20, 20, &rules);
        client.send_failed(libc::EPIPE, 30, &mut tally);
        assert_eq!(client.eof(31, &rules, &mut tally), Step::Close);
        let kinds: Vec<_> = tally.rows.iter().map(|row| row.kind).collect();
        assert_eq!(kinds, [Kind::ErrLine, Kind::ResetEarly]);
        assert_eq!((tally.connected, tally.sent, tally.failed), (2, 2, 2));
    }

    #[test]
    fn the_servers_close_is_part_of_the_request_where_it_is_awaited() {
        let (mut client, rules, mut tally) = client(&Plan { close: Close::Server, until: Until::Tries(9), ..plan() });
        let mut open = |now: u64, tally: &mut Tally| {
            client.begin(now, now, &rules);
            client.took(2, 2, now + 1, tally);
            assert_eq!(client.received(b"abcde", now + 2, &rules, tally), Step::Wait);
            std::mem::take(&mut client)
        };
        let mut first = open(0, &mut tally);
        assert_eq!(first.eof(9, &rules, &mut tally), Step::Close);
        assert_eq!((tally.done, tally.latency.service.max()), (1, 1));
        let mut second = open(10, &mut tally);
        assert_eq!(second.received(b"f", 19, &rules, &mut tally), Step::Close);
        let mut third = open(20, &mut tally);
        assert_eq!(third.broken(libc::ECONNRESET, 29, &mut tally), Step::Close);
        let fourth = open(30, &mut tally);
        assert_eq!(fourth.overdue(31 + 10_000_000_000, &rules), Some(Failure::NotClosed(10_000)));
        let kinds: Vec<_> = tally.rows.iter().map(|row| row.kind).collect();
        assert_eq!(kinds, [Kind::TooManyBytes, Kind::ResetInAnswer]);
    }

    #[test]
    fn each_wait_has_its_bound() {
        const S: u64 = 1_000_000_000;
        let (mut client, rules, mut tally) = client(&plan());
        assert_eq!(client.overdue(u64::MAX, &rules), None);
        client.begin(0, 0, &rules);
        assert_eq!(client.overdue(5 * S - 1, &rules), None);
        assert_eq!(client.overdue(5 * S, &rules), Some(Failure::ConnectTimedOut(5000)));
        client.took(2, 2, S, &mut tally);
        assert_eq!(client.overdue(11 * S - 1, &rules), None);
        assert_eq!(client.overdue(11 * S, &rules), Some(Failure::TimedOut(10_000)));
        client.received(b"ab", 2 * S, &rules, &mut tally);
        assert_eq!(client.overdue(11 * S, &rules), Some(Failure::Stalled { got: 2, want: 5, ms: 10_000 }));
    }

    #[test]
    fn a_client_is_small() {
        assert!(size_of::<Client>() <= 128, "{}", size_of::<Client>());
    }

    #[derive(Clone, Debug)]
    enum Event {
        Took(u8),
        SendFailed,
        Received(Vec<u8>),
        Eof,
        Broken,
        Late,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (1u8..3).prop_map(Event::Took),
            1 => Just(Event::SendFailed),
            4 => prop::sample::select(vec!["a", "abc", "abcde", "abcdef", "x", "ERR busy\n", "E", "cde"])
                .prop_map(|text| Event::Received(text.as_bytes().to_vec())),
            1 => Just(Event::Eof),
            1 => Just(Event::Broken),
            1 => Just(Event::Late),
        ]
    }

    proptest! {
        /// sent = done + failed + censored, and tried = connected + failed + censored, whatever happens.
        #[test]
        fn no_request_is_lost(events in prop::collection::vec(event(), 0..200), k in 0u32..4, server in any::<bool>(), p in 1u32..4) {
            let close = if server { Close::Server } else { Close::Fin };
            let pipeline = if k == 0 { p } else { p.min(k) };
            let plan = Plan { per_connection: k, until: Until::Tries(9), close, pipeline, ..plan() };
            let mut scratch = String::new();
            let (mut client, rules, mut tally) = client(&plan);
            let mut now = 0;
            for event in events {
                now += 1;
                if client.is_idle() {
                    if !client.has_work() { break; }
                    client.begin(now, now, &rules);
                    tally.tried += 1;
                }
                match event {
                    Event::Took(n) if client.is_sending() => {
                        let whole = client.text(&rules, &mut scratch).1;
                        client.took(usize::from(n), whole, now, &mut tally);
                    }
                    Event::SendFailed if client.is_sending() => client.send_failed(libc::EPIPE, now, &mut tally),
                    Event::Late => {
                        now += 20_000_000_000;
                        if let Some(failure) = client.overdue(now, &rules) { client.fail(&failure, now, &mut tally); }
                    }
                    _ if client.is_sending() => {}
                    Event::Received(bytes) => { client.received(&bytes, now, &rules, &mut tally); }
                    Event::Eof => { client.eof(now, &rules, &mut tally); }
                    Event::Broken => { client.broken(libc::ECONNRESET, now, &mut tally); }
                    _ => {}
                }
            }
            client.censor(now, &mut tally);
            prop_assert_eq!(tally.sent, tally.done + tally.failed + tally.censored);
            prop_assert_eq!(tally.tried, tally.connected + tally.connects_failed + tally.connects_censored);
            prop_assert_eq!(tally.latency.total.len(), tally.done);
            prop_assert!(tally.sent <= plan.requests().unwrap());
        }
    }
}

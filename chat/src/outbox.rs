//! What waits to be sent to one client, and the end of its conversation.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cli::{Limits, Slow};
use crate::hub::{Out, Then};

/// How long a client that has had its FIN may take to answer it ...
pub const LINGER: Duration = Duration::from_secs(1);
/// ... and how much of what it still sends is thrown away meanwhile. Closing on unread bytes would be a reset, and the
/// last words lost.
pub const LINGER_BYTES: usize = 64 * 1024;
/// Most lines in one gathered write; the kernel takes up to 1024 (IOV_MAX).
const GATHERED: usize = 64;

/// What became of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It waits to be sent.
    Queued,
    /// It is not sent, and counted: the client will read how many lines it missed.
    Dropped,
    /// It does not fit. Tell the hub [`TooSlow`](crate::Event::TooSlow); what that says does fit.
    Overflow,
}

/// What a server does next with the sending side of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Send {
    /// Nothing waits.
    Nothing,
    /// Send [`Outbox::slices`], and [`consume`](Outbox::consume) what the kernel took. Only now ask for writability.
    Write,
    /// All has been said: `shutdown(SHUT_WR)`, then [`Outbox::hung_up`].
    HangUp,
    /// Read and throw away ([`Outbox::drained`]) until end of file or the deadline.
    Drain,
    /// Close.
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Open,
    /// Nothing may follow what is queued.
    Closing,
    Draining,
    Over,
}

/// Lines on their way, for a server that does not hold the outbox while it sends.
#[derive(Debug)]
pub struct Batch {
    lines: Vec<Arc<[u8]>>,
    sent: usize,
}

impl Batch {
    /// As [`Outbox::slices`].
    pub fn slices(&self) -> Vec<IoSlice<'_>> {
        gather(self.lines.iter(), self.sent)
    }
}

fn gather<'a>(lines: impl Iterator<Item = &'a Arc<[u8]>>, mut sent: usize) -> Vec<IoSlice<'a>> {
    let rest = |line: &'a Arc<[u8]>| IoSlice::new(line.get(std::mem::take(&mut sent)..).unwrap_or_default());
    lines.map(rest).collect()
}

/// The queue of one client. Its lines are shared with all other outboxes: a thousand receivers cost a thousand
/// pointers, not a thousand copies.
#[derive(Debug)]
pub struct Outbox {
    queue: VecDeque<Arc<[u8]>>,
    /// Bytes of the first line that have been sent.
    sent: usize,
    /// Lines of a batch that is being sent.
    leaving: usize,
    bytes: usize,
    mark: usize,
    slow: Slow,
    missed: u64,
    dropped: u64,
    patience: Duration,
    /// When a queue that does not move is given up.
    stalled_at: Option<Instant>,
    life: Life,
    end_at: Option<Instant>,
    drained: usize,
    eof: bool,
}

impl Outbox {
    /// An empty queue.
    pub fn new(limits: &Limits, slow: Slow) -> Outbox {
        Outbox {
            queue: VecDeque::new(),
            sent: 0,
            leaving: 0,
            bytes: 0,
            mark: limits.outbox,
            slow,
            missed: 0,
            dropped: 0,
            patience: limits.write_timeout(),
            stalled_at: None,
            life: Life::Open,
            end_at: None,
            drained: 0,
            eof: false,
        }
    }

    /// A queue without length: a line is taken if nothing waits, or else dropped. For servers that send at once.
    pub fn direct(limits: &Limits) -> Outbox {
        Outbox { mark: 0, ..Outbox::new(limits, Slow::Drop) }
    }

    /// Queues a line, or does not, as the policy says. What is said last always fits: it takes the place of whatever
    /// did not.
    pub fn push(&mut self, out: &Out, now: Instant) -> Fit {
        if self.life != Life::Open {
            return Fit::Dropped;
        }
        let last = out.then == Then::Close;
        let fits = self.queue.is_empty() || self.bytes + out.bytes.len() <= self.mark;
        match self.slow {
            _ if fits => {}
            _ if last => self.forget(),
            Slow::Block | Slow::Grow => {}
            Slow::Drop => {
                self.missed += 1;
                self.dropped += 1;
                return Fit::Dropped;
            }
            Slow::Kick => return Fit::Overflow,
        }
        if !out.bytes.is_empty() {
            self.enqueue(Arc::clone(&out.bytes), now);
        }
        if last {
            self.close(now);
        }
        Fit::Queued
    }

    /// Nothing more will be queued. What is queued has the write timeout to leave, whatever progress it makes.
    pub fn close(&mut self, now: Instant) {
        if self.life == Life::Open {
            self.life = Life::Closing;
            self.missed = 0;
            self.end_at = Some(now + self.patience);
        }
    }

    /// What to do next.
    pub fn next(&self) -> Send {
        match (self.life, self.queue.is_empty()) {
            (Life::Open, true) => Send::Nothing,
            (Life::Open | Life::Closing, false) => Send::Write,
            (Life::Closing, true) => Send::HangUp,
            (Life::Draining, _) => Send::Drain,
            (Life::Over, _) => Send::Close,
        }
    }

    /// What waits, for one gathered write (`sendmsg`, `writev`): a burst of lines is one system call.
    pub fn slices(&self) -> Vec<IoSlice<'_>> {
        gather(self.queue.iter().take(GATHERED), self.sent)
    }

    /// What [`slices`](Self::slices) shows, to be sent while others push. [`consume`](Self::consume) ends it.
    pub fn batch(&mut self) -> Batch {
        let lines: Vec<Arc<[u8]>> = self.queue.iter().take(GATHERED).cloned().collect();
        self.leaving = lines.len();
        Batch { lines, sent: self.sent }
    }

    /// The kernel took `n` bytes.
    pub fn consume(&mut self, n: usize, now: Instant) {
        self.bytes -= n.min(self.bytes);
        self.sent += n;
        self.leaving = 0;
        while let Some(line) = self.queue.front().filter(|line| line.len() <= self.sent) {
            self.sent -= line.len();
            self.queue.pop_front();
        }
        if self.queue.is_empty() {
            self.stalled_at = None;
            self.sent = 0;
            self.confess(now);
        } else if n > 0 {
            self.stalled_at = Some(now + self.patience);
        }
    }

    /// The FIN is out.
    pub fn hung_up(&mut self, now: Instant) {
        self.life = if self.eof { Life::Over } else { Life::Draining };
        self.end_at = Some(now + LINGER);
    }

    /// `n` bytes were read after [`close`](Self::close), and thrown away; 0 is the end of file.
    pub fn drained(&mut self, n: usize) {
        self.drained += n;
        self.eof |= n == 0 || self.drained > LINGER_BYTES;
        if self.life == Life::Draining && self.eof {
            self.life = Life::Over;
        }
    }

    /// The connection is gone: there is nobody to send to.
    pub fn lost(&mut self) {
        self.life = Life::Over;
    }

    /// When [`expire`](Self::expire) has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        match self.life {
            Life::Open => self.stalled_at.filter(|_| self.slow == Slow::Kick),
            Life::Closing | Life::Draining => self.end_at,
            Life::Over => None,
        }
    }

    /// Ends what has waited too long. True: tell the hub [`TooSlow`](crate::Event::TooSlow), nothing has left for the
    /// write timeout. False, and [`next`](Self::next) says what is left to do.
    pub fn expire(&mut self, now: Instant) -> bool {
        let late = self.deadline().is_some_and(|deadline| deadline <= now);
        if late && self.life != Life::Open {
            self.life = Life::Over;
        }
        late && self.life == Life::Open
    }

    /// True from [`close`](Self::close) on: the hub has forgotten this client.
    pub fn is_closing(&self) -> bool {
        self.life != Life::Open
    }

    /// True above the high-water mark: [`Slow::Block`] waits until it is not.
    pub fn is_over_mark(&self) -> bool {
        self.bytes > self.mark
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Lines dropped, in all.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn enqueue(&mut self, bytes: Arc<[u8]>, now: Instant) {
        self.stalled_at.get_or_insert(now + self.patience);
        self.bytes += bytes.len();
        self.queue.push_back(bytes);
    }

    /// Throws away what waits, but for lines that have begun to leave.
    fn forget(&mut self) {
        self.queue.truncate(self.leaving.max(usize::from(self.sent > 0)));
        self.bytes = self.queue.iter().map(|line| line.len()).sum::<usize>() - self.sent;
    }

    /// Dropping is honest only if the client knows.
    fn confess(&mut self, now: Instant) {
        if self.missed > 0 {
            let plural = if self.missed == 1 { "" } else { "s" };
            let confession = format!("* you missed {} line{plural}\n", self.missed);
            self.missed = 0;
            self.enqueue(confession.into_bytes().into(), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::To;
    use proptest::prelude::*;

    fn out(text: &str, then: Then) -> Out {
        Out { to: To::All, bytes: text.as_bytes().into(), then }
    }

    fn line(text: &str) -> Out {
        out(text, Then::Keep)
    }

    fn outbox(mark: usize, slow: Slow) -> Outbox {
        Outbox::new(&Limits { outbox: mark, ..Limits::default() }, slow)
    }

    fn send(outbox: &mut Outbox, most: usize, now: Instant) -> String {
        let mut taken: Vec<u8> = outbox.slices().iter().flat_map(|slice| slice.to_vec()).collect();
        taken.truncate(most);
        outbox.consume(taken.len(), now);
        String::from_utf8(taken).unwrap()
    }

    #[test]
    fn the_mark_and_one_more() {
        let now = Instant::now();
        for (slow, fit) in [
            (Slow::Block, Fit::Queued),
            (Slow::Grow, Fit::Queued),
            (Slow::Drop, Fit::Dropped),
            (Slow::Kick, Fit::Overflow),
        ] {
            let mut outbox = outbox(10, slow);
            assert_eq!(outbox.push(&line("12345"), now), Fit::Queued);
            assert_eq!(outbox.push(&line("67890"), now), Fit::Queued, "at the mark");
            assert!(!outbox.is_over_mark());
            assert_eq!(outbox.push(&line("x"), now), fit, "{slow:?}");
            assert_eq!(outbox.is_over_mark(), fit == Fit::Queued);
        }
        let mut empty = outbox(10, Slow::Kick);
        assert_eq!(empty.push(&line("longer than the mark"), now), Fit::Queued, "into an empty box fits anything");
    }

    #[test]
    fn a_burst_is_one_write_and_a_short_one_goes_on() {
        let now = Instant::now();
        let mut outbox = outbox(100, Slow::Kick);
        for text in ["one\n", "two\n", "three\n"] {
            outbox.push(&line(text), now);
        }
        assert_eq!((outbox.slices().len(), outbox.len()), (3, 14));
        assert_eq!(send(&mut outbox, 6, now), "one\ntw");
        assert_eq!(send(&mut outbox, 99, now), "o\nthree\n");
        assert_eq!((outbox.next(), outbox.len(), outbox.deadline()), (Send::Nothing, 0, None));
    }

    #[test]
    fn drops_are_confessed_when_there_is_room() {
        let now = Instant::now();
        let mut outbox = Outbox::direct(&Limits::default());
        outbox.push(&line("first\n"), now);
        assert_eq!(send(&mut outbox, 2, now), "fi");
        for _ in 0..12 {
            assert_eq!(outbox.push(&line("lost\n"), now), Fit::Dropped);
        }
        assert_eq!(send(&mut outbox, 99, now), "rst\n");
        assert_eq!(send(&mut outbox, 99, now), "* you missed 12 lines\n");
        assert_eq!((outbox.next(), outbox.dropped()), (Send::Nothing, 12));
        outbox.push(&line("next\n"), now);
        assert_eq!(outbox.push(&line("lost\n"), now), Fit::Dropped);
        assert_eq!(send(&mut outbox, 99, now), "next\n");
        assert_eq!(send(&mut outbox, 99, now), "* you missed 1 line\n");
    }

    #[test]
    fn last_words_take_the_place_of_what_waits() {
        let now = Instant::now();
        let mut outbox = outbox(10, Slow::Kick);
        outbox.push(&line("abcde\n"), now);
        outbox.push(&line("fgh\n"), now);
        assert_eq!(send(&mut outbox, 2, now), "ab");
        assert_eq!(outbox.push(&line("ijkl\n"), now), Fit::Overflow);
        assert_eq!(outbox.push(&out("! slow-reader\n", Then::Close), now), Fit::Queued);
        assert_eq!(outbox.push(&line("x\n"), now), Fit::Dropped, "nothing follows");
        assert_eq!(outbox.len(), 18);
        assert_eq!(send(&mut outbox, 99, now), "cde\n! slow-reader\n");
        assert_eq!(outbox.next(), Send::HangUp);
    }

    #[test]
    fn what_is_being_sent_is_not_forgotten() {
        let now = Instant::now();
        let mut outbox = outbox(10, Slow::Kick);
        outbox.push(&line("ab\n"), now);
        outbox.push(&line("cd\n"), now);
        assert_eq!(send(&mut outbox, 1, now), "a");
        let batch = outbox.batch();
        outbox.push(&line("ef\n"), now);
        outbox.push(&out("! slow-reader\n", Then::Close), now);
        let sending: Vec<u8> = batch.slices().iter().flat_map(|slice| slice.to_vec()).collect();
        assert_eq!(sending, b"b\ncd\n");
        outbox.consume(3, now);
        assert_eq!(send(&mut outbox, 99, now), "d\n! slow-reader\n");
        assert_eq!((outbox.len(), outbox.next()), (0, Send::HangUp));
    }

    #[test]
    fn last_words_follow_what_fits() {
        let now = Instant::now();
        let mut outbox = outbox(100, Slow::Kick);
        outbox.push(&line("~ 1\n= end history\n"), now);
        outbox.push(&out("* bye\n", Then::Close), now);
        assert_eq!(send(&mut outbox, 99, now), "~ 1\n= end history\n* bye\n");
    }

    #[test]
    fn the_end_has_its_order_and_its_time() {
        let start = Instant::now();
        let limits = Limits::default();
        let mut outbox = Outbox::new(&limits, Slow::Kick);
        outbox.push(&out("* bye\n", Then::Close), start);
        assert_eq!((outbox.next(), outbox.deadline()), (Send::Write, Some(start + limits.write_timeout())));
        send(&mut outbox, 99, start);
        outbox.hung_up(start);
        assert_eq!((outbox.next(), outbox.deadline()), (Send::Drain, Some(start + LINGER)));
        outbox.drained(LINGER_BYTES);
        assert_eq!(outbox.next(), Send::Drain, "at the limit");
        outbox.drained(1);
        assert_eq!(outbox.next(), Send::Close);

        let mut quick = Outbox::new(&limits, Slow::Kick);
        quick.close(start);
        quick.hung_up(start);
        quick.drained(0);
        assert_eq!(quick.next(), Send::Close, "end of file");

        let mut early = Outbox::new(&limits, Slow::Kick);
        early.close(start);
        early.drained(0);
        early.hung_up(start);
        assert_eq!(early.next(), Send::Close, "end of file before the FIN");

        let mut silent = Outbox::new(&limits, Slow::Kick);
        silent.close(start);
        silent.hung_up(start);
        assert!(!silent.expire(start + LINGER));
        assert_eq!(silent.next(), Send::Close, "out of time");
    }

    #[test]
    fn a_queue_that_does_not_move_is_too_slow() {
        let start = Instant::now();
        let patience = Limits::default().write_timeout();
        let mut outbox = outbox(100, Slow::Kick);
        outbox.push(&line("abc\n"), start);
        outbox.push(&line("def\n"), start + patience / 2);
        assert!(!outbox.expire(start + patience - Duration::from_millis(1)));
        assert!(outbox.clone_for_test().expire(start + patience), "a push is no progress");
        send(&mut outbox, 1, start + patience / 2);
        assert!(!outbox.expire(start + patience), "a byte is");
        assert!(outbox.expire(start + patience / 2 + patience));
    }

    impl Outbox {
        fn clone_for_test(&self) -> Outbox {
            Outbox { queue: self.queue.clone(), ..*self }
        }
    }

    proptest! {
        /// However the kernel takes it: whole lines, in order, none twice, and the count of the missed ones is right.
        #[test]
        fn what_arrives_is_whole_lines_in_order(steps in prop::collection::vec((0usize..4, 0usize..20), 1..200), mark in 0usize..64) {
            let now = Instant::now();
            let mut outbox = outbox(mark, Slow::Drop);
            let (mut queued, mut arrived, mut dropped) = (0u64, String::new(), 0);
            let mut number = 0;
            for (pushes, take) in steps {
                for _ in 0..pushes {
                    number += 1;
                    match outbox.push(&line(&format!("{number}\n")), now) {
                        Fit::Queued => queued += 1,
                        Fit::Dropped => dropped += 1,
                        Fit::Overflow => prop_assert!(false),
                    }
                }
                arrived += &send(&mut outbox, take, now);
            }
            while outbox.next() == Send::Write {
                arrived += &send(&mut outbox, 7, now);
            }
            let (mut last, mut lines, mut missed) = (0, 0, 0);
            for text in arrived.lines() {
                match text.strip_prefix("* you missed ") {
                    Some(rest) => missed += rest.split(' ').next().unwrap().parse::<u64>().unwrap(),
                    None => {
                        let this: u64 = text.parse().unwrap();
                        prop_assert!(this > last);
                        last = this;
                        lines += 1;
                    }
                }
            }
            prop_assert_eq!((lines, missed, outbox.len()), (queued, dropped, 0));
            prop_assert_eq!(outbox.dropped(), dropped);
        }
    }
}

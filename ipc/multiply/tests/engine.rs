//! The service without a socket: any split of the same bytes gives the same session.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::time::{Duration, Instant};

use common::cli::Limits;
use multiply::frame::{Framing, MESSAGE_MAX};
use multiply::request::answer;
use multiply::session::{INPUT, Next, OUTPUT, Session};
use proptest::prelude::*;

/// All answers to `bytes`, which are fed in pieces of these sizes. The answers are sent `take`
/// bytes at a time.
fn talk(framing: Framing, bytes: &[u8], pieces: &[usize], take: usize) -> Vec<u8> {
    let now = Instant::now();
    let mut session = Session::new(framing, &Limits::default(), now);
    let (mut rest, mut pieces, mut out) = (bytes, pieces.iter(), Vec::new());
    loop {
        assert!(session.pending().len() <= OUTPUT + 4 * MESSAGE_MAX, "bounded output");
        match session.next() {
            Next::Read if rest.is_empty() => session.eof(),
            Next::Read => {
                assert!((1..=65_536).contains(&session.room()));
                let n = pieces
                    .next()
                    .copied()
                    .unwrap_or(INPUT)
                    .clamp(1, rest.len().min(session.room()));
                session.feed(&rest[..n], now, |_, _| {});
                rest = &rest[n..];
            }
            Next::Write => {
                let n = take.min(session.pending().len());
                out.extend_from_slice(&session.pending()[..n]);
                session.consume(n, now, |_, _| {});
            }
            Next::ShutdownWrite => session.write_shut_down(now),
            Next::Close => return out,
        }
    }
}

fn framing() -> impl Strategy<Value = Framing> {
    prop_oneof![Just(Framing::Line), Just(Framing::Length)]
}

proptest! {
    #[test]
    fn any_split_gives_the_same_answers(
        framing in framing(),
        requests in prop::collection::vec("-?[0-9]{1,3}( [-+*/])? [0-9.ex]{1,4}", 1..40),
        pieces in prop::collection::vec(1usize..9, 0..200),
        take in 1usize..50,
    ) {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for request in &requests {
            framing.put(request, &mut bytes);
            framing.put("Data received", &mut expected);
            framing.put(&answer(request.as_bytes()), &mut expected);
        }
        prop_assert_eq!(talk(framing, &bytes, &pieces, take), expected);
    }

    #[test]
    fn random_bytes_neither_panic_nor_grow(
        framing in framing(),
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(0)], 0..20_000),
        pieces in prop::collection::vec(1usize..5000, 0..50),
    ) {
        let whole = talk(framing, &bytes, &[], usize::MAX);
        prop_assert_eq!(talk(framing, &bytes, &pieces, 1000), whole);
    }
}

#[test]
fn a_message_at_the_limit_is_answered_and_a_longer_one_is_an_error() {
    for framing in [Framing::Line, Framing::Length] {
        for (length, last) in [(MESSAGE_MAX, "number"), (MESSAGE_MAX + 1, "line too long")] {
            let mut bytes = Vec::new();
            framing.put(&format!("1 {}", "x".repeat(length - 2)), &mut bytes);
            let text = String::from_utf8_lossy(&talk(framing, &bytes, &[], 7)).into_owned();
            assert!(text.contains(&format!("ERR {last}")), "{framing:?} {length}: {text}");
            assert_eq!(text.contains("Data received"), length == MESSAGE_MAX);
        }
    }
}

#[test]
fn many_small_requests_do_not_grow_the_memory() {
    let lines = vec![b'\n'; 100_000];
    let out = talk(Framing::Line, &lines, &[], 999);
    assert_eq!(out, b"Data received\nERR two numbers expected\n".repeat(100_000));
}

/// Further bytes of a message do not move its deadline.
#[test]
fn the_line_deadline_is_absolute() {
    let (start, limits) = (Instant::now(), Limits { line_timeout: 1000, ..Limits::default() });
    let mut session = Session::new(Framing::Line, &limits, start);
    for i in 0..10 {
        session.feed(b"1", start + Duration::from_millis(i * 99), |_, _| {});
    }
    assert_eq!(session.deadline(), start + Duration::from_secs(1));
    session.expire(start + Duration::from_millis(999));
    assert_eq!(session.next(), Next::Read);
    session.expire(start + Duration::from_secs(1));
    assert_eq!(session.pending(), b"ERR timeout\n");
}

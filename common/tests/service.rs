//! The byte service without a socket: any split of the same bytes gives the same answer, nothing panics, and a clock
//! in the test's hand shows every deadline.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // test code: the lints know only #[test] functions as such

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use common::cli::Limits;
use common::service::{
    BLOCK, Conn, LINE_MAX, LINGER, LINGER_BYTES, Next, PATTERN, Rejection, Stream, parse_request, serve,
};
use proptest::prelude::*;

/// Drives a `Conn` as a server would, receiving at most `chunks` bytes at a time and sending at most `most` at a time.
fn converse(input: &[u8], chunks: &[usize], most: usize, limits: &Limits) -> Vec<u8> {
    let now = Instant::now();
    let mut conn = Conn::new(limits, now);
    let mut chunks = chunks.iter().cycle();
    let (mut given, mut answer) = (0, Vec::new());
    loop {
        match conn.next() {
            Next::Read if given == input.len() => conn.eof(),
            Next::Read => {
                assert!(conn.room() > 0, "Read with no room would spin");
                let n = (*chunks.next().unwrap()).clamp(1, conn.room()).min(input.len() - given);
                conn.feed(&input[given..given + n], now);
                given += n;
            }
            Next::Write => {
                assert!(!conn.pending().is_empty() && conn.pending().len() <= BLOCK);
                let n = conn.pending().len().min(most);
                answer.extend_from_slice(&conn.pending()[..n]);
                conn.consume(n, now);
            }
            Next::ShutdownWrite => conn.write_shut_down(now),
            Next::Close => return answer,
        }
        assert!(conn.deadline() <= now + Duration::from_secs(86_400 * 2));
    }
}

/// What the service must answer, said the slow and obvious way.
fn expected(input: &[u8], max: u32) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), input);
    loop {
        let Some(end) = rest.iter().take(LINE_MAX).position(|b| *b == b'\n') else {
            if rest.len() >= LINE_MAX {
                out.extend_from_slice(b"ERR line too long\n");
            }
            return out;
        };
        match parse_request(&rest[..end], max) {
            Ok(n) => out.extend((0..n as usize).map(|i| b'a' + (i % 26) as u8)),
            Err(why) => {
                let limits = Limits { max_request: max, ..Limits::default() };
                out.extend_from_slice(why.line(&limits).as_bytes());
                return out;
            }
        }
        rest = &rest[end + 1..];
    }
}

fn requests() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        6 => (1u32..70_000).prop_map(|n| format!("{n}\n").into_bytes()),
        2 => (1u32..300).prop_map(|n| format!("{n:05}\r\n").into_bytes()),
        1 => prop_oneof![Just("0\n"), Just("-1\n"), Just("+5\n"), Just("4294967296\n"), Just("99999999999\n"), Just("\r\r\n")]
            .prop_map(|line| line.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..60),
    ];
    proptest::collection::vec(line, 0..6).prop_map(|lines| lines.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_gives_the_same_answer(
        input in requests(),
        chunks in proptest::collection::vec(1usize..40, 1..20),
        most in 1usize..20_000,
    ) {
        let limits = Limits { max_request: 65_536, ..Limits::default() };
        prop_assert_eq!(converse(&input, &chunks, most, &limits), expected(&input, limits.max_request));
    }

    #[test]
    fn random_bytes_neither_panic_nor_hold_memory(
        input in proptest::collection::vec(any::<u8>(), 0..65_536),
        chunks in proptest::collection::vec(1usize..5000, 1..20),
    ) {
        let limits = Limits { max_request: 1000, ..Limits::default() };
        prop_assert_eq!(converse(&input, &chunks, usize::MAX, &limits), expected(&input, limits.max_request));
    }

    #[test]
    fn calls_in_any_order_never_panic(calls in proptest::collection::vec((0u8..6, any::<u8>()), 0..200)) {
        let start = Instant::now();
        let limits = Limits { line_timeout: 7, idle_timeout: 11, write_timeout: 13, ..Limits::default() };
        let mut conn = Conn::new(&limits, start);
        let mut now = start;
        for (call, n) in calls {
            now += Duration::from_millis(u64::from(n / 64));
            match call {
                0 => conn.feed(&[n; 40], now),
                1 => conn.feed(b"77\n", now),
                2 => conn.consume(usize::from(n), now),
                3 => conn.write_shut_down(now),
                4 => conn.expire(now),
                _ => if n > 250 { conn.eof() },
            }
            prop_assert!((conn.next() == Next::Read) == (conn.room() > 0));
            prop_assert!((conn.next() == Next::Write) != conn.pending().is_empty());
        }
    }
}

#[test]
fn a_conversation_is_small() {
    assert!(size_of::<Conn>() <= 256, "{} bytes", size_of::<Conn>());
}

#[test]
fn the_pattern_says_where_a_byte_belongs() {
    assert!(PATTERN.iter().enumerate().all(|(i, b)| *b == b'a' + (i % 26) as u8));
}

#[test]
fn at_the_limit_and_one_beyond() {
    assert_eq!(parse_request(b"1048576", 1 << 20), Ok(1 << 20));
    assert_eq!(parse_request(b"1048577", 1 << 20), Err(Rejection::OutOfRange));
    assert_eq!(parse_request(b"0000000005", 5), Ok(5));
    assert_eq!(parse_request(b"00000000005", 5), Err(Rejection::NotANumber));
    let line_of = |n: usize| [vec![b'9'; n], b"\n".to_vec()].concat();
    let limits = Limits::default();
    assert_eq!(converse(&line_of(LINE_MAX - 1), &[1], 9, &limits), b"ERR number expected\n");
    assert_eq!(converse(&line_of(LINE_MAX), &[1], 9, &limits), b"ERR line too long\n");
}

fn limits() -> Limits {
    Limits { line_timeout: 100, idle_timeout: 1000, write_timeout: 300, ..Limits::default() }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn a_line_has_an_absolute_deadline() {
    let start = Instant::now();
    let mut conn = Conn::new(&limits(), start);
    assert_eq!(conn.deadline(), start + ms(1000));
    conn.feed(b"3", start + ms(900));
    conn.feed(b"0", start + ms(950));
    assert_eq!(conn.deadline(), start + ms(1000), "a further byte does not buy time");
    conn.expire(start + ms(999));
    assert_eq!(conn.next(), Next::Read);
    conn.expire(start + ms(1000));
    assert_eq!(conn.pending(), b"ERR timeout\n");
    conn.consume(100, start + ms(1000));
    assert_eq!(conn.next(), Next::ShutdownWrite);
    conn.write_shut_down(start + ms(1000));
    assert_eq!((conn.next(), conn.deadline()), (Next::Read, start + ms(1000) + LINGER));
    conn.expire(start + ms(2000));
    assert_eq!(conn.next(), Next::Close);
    assert_eq!(conn.result().unwrap_err().kind(), ErrorKind::TimedOut);
}

#[test]
fn silence_is_an_error_before_the_first_request_and_none_after() {
    let start = Instant::now();
    let mut silent = Conn::new(&limits(), start);
    silent.expire(start + ms(1000));
    assert_eq!(silent.pending(), b"ERR timeout\n");

    let mut served = Conn::new(&limits(), start);
    served.feed(b"1\n", start);
    served.consume(1, start + ms(10));
    assert_eq!(served.deadline(), start + ms(1010));
    served.expire(start + ms(1010));
    assert_eq!(served.next(), Next::Close);
    assert!(served.result().is_ok());
}

#[test]
fn a_stalled_or_slow_reader_is_cut_off() {
    let start = Instant::now();
    let mut conn = Conn::new(&limits(), start);
    conn.feed(b"1000\n", start);
    conn.consume(1, start + ms(299));
    assert_eq!(conn.deadline(), start + ms(599), "progress buys time");
    conn.expire(start + ms(599));
    assert_eq!(conn.next(), Next::Close);

    // One byte at a time stays ahead of the stall, but not of the minimum rate: 300 ms and 1000 / 500 s.
    let mut conn = Conn::new(&limits(), start);
    conn.feed(b"1000\n", start);
    let mut now = start;
    while conn.next() == Next::Write {
        now += ms(200);
        conn.expire(now);
        conn.consume(1, now);
    }
    assert_eq!(now, start + ms(2400));
    assert_eq!(conn.result().unwrap_err().kind(), ErrorKind::TimedOut);
}

#[test]
fn the_linger_reads_a_bounded_amount() {
    let now = Instant::now();
    let mut conn = Conn::rejected(Rejection::Busy, &limits(), now);
    assert_eq!(conn.pending(), b"ERR busy\n");
    conn.consume(9, now);
    conn.write_shut_down(now);
    for _ in 0..LINGER_BYTES / 1024 {
        assert_eq!(conn.next(), Next::Read);
        conn.feed(&[b'5'; 1024], now);
    }
    assert_eq!(conn.next(), Next::Close);
    assert_eq!(conn.result().unwrap_err().kind(), ErrorKind::ResourceBusy);
}

/// A blocking stream in memory. `None` in the script is a signal: EINTR.
struct Script {
    reads: VecDeque<Option<Vec<u8>>>,
    written: Vec<u8>,
    setsockopts: u32,
    finished: bool,
}

impl Read for Script {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.reads.pop_front() {
            None => Ok(0),
            Some(None) => Err(ErrorKind::Interrupted.into()),
            Some(Some(mut bytes)) => {
                let n = bytes.len().min(buffer.len());
                buffer[..n].copy_from_slice(&bytes[..n]);
                if n < bytes.len() {
                    self.reads.push_front(Some(bytes.split_off(n)));
                }
                Ok(n)
            }
        }
    }
}

impl Write for Script {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(1000);
        self.written.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Script {
    fn read_within(&mut self, _: Duration) -> io::Result<()> {
        self.setsockopts += 1;
        Ok(())
    }

    fn write_within(&mut self, _: Duration) -> io::Result<()> {
        self.setsockopts += 1;
        Ok(())
    }

    fn finish_writing(&mut self) -> io::Result<()> {
        self.finished = true;
        Ok(())
    }
}

fn script(reads: &[Option<&str>]) -> Script {
    let reads = reads.iter().map(|bytes| bytes.map(|text| text.as_bytes().to_vec())).collect();
    Script { reads, written: Vec::new(), setsockopts: 0, finished: false }
}

#[test]
fn the_blocking_driver_gives_the_same_answers() {
    let mut stream = script(&[Some("30"), None, Some("00\n4\n"), Some("5")]);
    serve(&mut stream, &Limits::default()).unwrap();
    assert_eq!(stream.written, expected(b"3000\n4\n5", 1 << 20));
    assert!(!stream.finished);
}

#[test]
fn the_blocking_driver_sends_a_fin_and_drains_after_an_error() {
    let mut stream = script(&[Some("3\nx\x1b\n5\n"), Some("more"), None, Some("and more")]);
    let error = serve(&mut stream, &Limits::default()).unwrap_err();
    assert_eq!(stream.written, b"abcERR number expected\n");
    assert!(stream.finished && stream.reads.is_empty());
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    assert_eq!(error.to_string(), r"ERR number expected, got 'x\x1b'");
}

#[test]
fn an_ordinary_request_costs_no_setsockopt() {
    let many: Vec<_> = (0..1000).map(|_| Some("20\n")).collect();
    let mut stream = script(&many);
    serve(&mut stream, &Limits::default()).unwrap();
    assert_eq!(stream.written.len(), 20_000);
    assert!(stream.setsockopts <= 4, "{} for 1000 requests", stream.setsockopts);
}
